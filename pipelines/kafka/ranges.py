"""The bounded read of Kafka: ranges of offsets, and the DoFn that reads them."""

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa

from millrace.pipelines.kafka.process import HEARTBEAT
from millrace.pipelines.kafka.reader import counted_block
from millrace.pipelines.kafka.topic_sources import number_of
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_records import KafkaReadError, PartitionReader

# A bounded read fails when an offset of its range has not come for this long: longer than a broker takes to restart.
_QUIET_SECONDS = 30.0
# Records per range of a bounded read: about a second of work, so that a runner can spread a partition over workers.
_RANGE_RECORDS = 100_000


class OffsetRange(NamedTuple):
    """Offsets `[start, end)` of one partition."""

    topic: str
    partition: int
    start: int
    end: int


def cut_ranges(
    start: Mapping[tuple[str, int], int], end: Mapping[tuple[str, int], int], size: int = _RANGE_RECORDS
) -> Iterator[OffsetRange]:
    """Ranges of at most `size` offsets that cover [start, end) of every partition."""
    for (topic, partition), first in sorted(start.items()):
        last = end[topic, partition]
        for low in range(first, last, size):
            yield OffsetRange(topic, partition, low, min(low + size, last))


class ReadRangesDoFn(beam.DoFn):
    """Reads every record of a range of offsets; offsets whose records compaction removed are passed over.

    One client per instance of this DoFn reads its ranges one after the other.
    """

    def __init__(self, connection: KafkaConnection, max_records: int) -> None:
        self._connection, self._max_records = connection, max_records
        self._reader: PartitionReader | None = None
        self._sources: dict[str, int] = {}

    def process(self, wanted: OffsetRange) -> Iterator[pa.RecordBatch]:
        key = (wanted.topic, wanted.partition)
        if self._reader is None:
            self._reader = PartitionReader(self._connection, {key: wanted.start})
        else:
            self._reader.assign({key: wanted.start})
        source = self._source(self._reader, wanted.topic)
        give_up = time.monotonic() + _QUIET_SECONDS
        while (left := wanted.end - self._reader.positions()[key]) > 0:
            HEARTBEAT.beat()
            # The client waits until it has as many as it is asked for: asked for more than come, it waits in vain.
            for records in self._reader.read(min(self._max_records, left), 0.2):
                give_up = time.monotonic() + _QUIET_SECONDS
                yield _up_to(counted_block(records, source), wanted.end)
            if time.monotonic() > give_up:
                raise KafkaReadError(
                    f"{key[0]}[{key[1]}]: offset {wanted.end - 1} has not come for {_QUIET_SECONDS:g} s; does the "
                    "range end in an open transaction, or beyond the end of the partition?"
                )

    def _source(self, reader: PartitionReader, topic: str) -> int:
        if topic not in self._sources:
            found = reader.describe([topic], _QUIET_SECONDS)
            if not found:
                raise KafkaReadError(f"{topic}: no broker says what this topic is, after {_QUIET_SECONDS:g} s")
            self._sources[topic] = number_of(found[topic])
        return self._sources[topic]

    def teardown(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _up_to(block: pa.RecordBatch, end: int) -> pa.RecordBatch:
    """The records with an offset below `end`, of a block of one partition, in which offsets ascend."""
    offsets = block.column("offset").to_numpy()
    return block.slice(0, int(offsets.searchsorted(end)))
