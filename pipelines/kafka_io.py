"""ReadFromKafka and WriteToKafka: native Kafka connectors on confluent-kafka, no expansion service.

Reading. The element is a block (schema: `transforms.record_batch.raw_schema`) of up to `max_records` records of one
topic, never a single record. Unbounded, it is Beam's `UnboundedSource`: a split reads a set of partitions, of several
topics if need be (each split costs a bundle a poll); its checkpoint mark is the next offset of each partition, and a
runner with durable state (Flink, Dataflow) resumes from the mark. Offsets are also committed to a consumer group when a
bundle is final, for monitoring and for runners whose state dies with them: the commit trails by `commit_delay_seconds`,
so that a feed that starts from the group reads again what a stateful step may have held in memory for so long. Bounded,
it reads offset ranges fixed at construction.

Writing. One idempotent producer (`acks=all`) per process and broker. A bundle ends when its messages are acknowledged
and fails when one is not, so a runner's retry may write a message twice and never loses one.
"""

import copy
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    ReadFromUnboundedSource,
    UnboundedReader,
    UnboundedSource,
)
from apache_beam.metrics import Metrics
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from runtime import telemetry
from runtime.kafka_blocks import Block, BlockReader, Positions
from runtime.kafka_client import KafkaConnection, UndeliveredError, make_producer
from transforms import beam_coder, record_batch

__all__ = [
    "FIRST_POLL",
    "HEARTBEAT",
    "KafkaRecord",
    "OffsetRange",
    "ReadFromKafka",
    "WriteToKafka",
    "WriteToKafkaDoFn",
    "raw_batch",
]

_LOGGER = logging.getLogger(__name__)
_NAMESPACE = telemetry.namespace("pipelines", "kafka_io")

DEFAULT_MAX_RECORDS = 2000
# An idle split asks again after this long; the wait is the runner's, not a blocked worker thread.
DEFAULT_POLL_SECONDS = 0.1
# A busy split ends its bundle after so many blocks: downstream steps and commits see them at once.
_BLOCKS_PER_BUNDLE = 4
_READ_SECONDS = 0.001
_COMMIT_INTERVAL_SECONDS = 1.0
_IDLE_SECONDS = 2.0
_DELIVERY_SECONDS = 60.0
_QUIET_SECONDS = 30.0
_RANGE_RECORDS = 100_000


_READ = telemetry.counter("feed_records_read", "Records read from Kafka.", ("topic",))

HEARTBEAT = telemetry.Heartbeat("reading from Kafka")
"""Beats when a reader of this process is asked for more."""

FIRST_POLL = threading.Event()
"""Set when a reader of this process has asked the brokers for the first time."""


def raw_batch(block: Block) -> pa.RecordBatch:
    """`block` in the raw schema of `transforms.record_batch`; counts its records as read."""
    Metrics.counter(_NAMESPACE, "records_read").inc(len(block.values))
    Metrics.counter(_NAMESPACE, "blocks_read").inc()
    _READ.labels(block.topic).inc(len(block.values))
    return pa.record_batch(
        [
            pa.array(block.values, pa.binary()),
            pa.array(block.partitions, pa.int32()),
            pa.array(block.offsets, pa.int64()),
            pa.array(block.timestamps_ms, pa.int64()),
        ],
        schema=record_batch.raw_schema(block.topic),
    )


class OffsetRange(NamedTuple):
    """Offsets `[start, end)` of one partition."""

    topic: str
    partition: int
    start: int
    end: int


class ReadFromKafka(beam.PTransform):
    """Reads topics as blocks of records, one topic a block.

    Args:
      connection: brokers and client settings.
      start: {(topic, partition): first offset}; every partition to read is named.
      end: {(topic, partition): offset after the last}; None reads on for ever.
      group_id: consumer group that progress is committed to; used when unbounded.
      splits: readers that share the partitions; more than one pays only when a reader is the limit.
      max_records: records per block at most.
      poll_seconds: how long an idle split rests before it asks again.
      commit_delay_seconds: how far the committed offsets trail behind what was read.

    Counters (`millrace.pipelines.kafka_io`): `records_read`, `blocks_read`.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        start: Mapping[tuple[str, int], int],
        end: Mapping[tuple[str, int], int] | None = None,
        group_id: str = "millrace",
        splits: int = 1,
        max_records: int = DEFAULT_MAX_RECORDS,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        commit_delay_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        if not start:
            raise ValueError("start must name at least one partition, got {}")
        if splits < 1 or max_records < 1 or poll_seconds <= 0 or commit_delay_seconds < 0:
            raise ValueError(f"out of range: {splits=}, {max_records=}, {poll_seconds=}, {commit_delay_seconds=}")
        if end is not None and set(end) != set(start):
            raise ValueError(f"end must name the same partitions as start, got {end!r} and {start!r}")
        self._connection, self._start, self._end = connection, dict(start), end
        self._group_id, self._splits, self._max_records = group_id, splits, max_records
        self._poll_seconds, self._commit_delay_seconds = poll_seconds, commit_delay_seconds

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        if self._end is None:
            source = KafkaSource(
                self._connection,
                tuple(sorted(self._start.items())),
                self._group_id,
                self._splits,
                self._max_records,
                self._commit_delay_seconds,
            )
            blocks = begin | "ReadUnbounded" >> ReadFromUnboundedSource(
                source, poll_interval=self._poll_seconds, max_records_per_bundle=_BLOCKS_PER_BUNDLE
            )
        else:
            ranges = list(cut_ranges(self._start, self._end))
            blocks = (
                begin
                | "ListRanges" >> beam.Create(ranges)
                | "SpreadRanges" >> beam.Reshuffle()
                | "ReadRanges" >> beam.ParDo(_ReadRangeDoFn(self._connection, self._max_records))
            )
        return blocks


def cut_ranges(
    start: Mapping[tuple[str, int], int], end: Mapping[tuple[str, int], int], size: int = _RANGE_RECORDS
) -> Iterator[OffsetRange]:
    """Ranges of at most `size` offsets that cover [start, end) of every partition."""
    for (topic, partition), first in sorted(start.items()):
        last = end[topic, partition]
        for low in range(first, last, size):
            yield OffsetRange(topic, partition, low, min(low + size, last))


class KafkaMark(CheckpointMark):
    """Position of a split. `on_final` lives only in the process that read."""

    def __init__(self, positions: Mapping[tuple[str, int], int], on_final: Callable[[], None] | None = None) -> None:
        self.positions = dict(positions)
        self._on_final = on_final

    def finalize_checkpoint(self) -> None:
        if self._on_final is not None:
            self._on_final()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KafkaMark) and self.positions == other.positions

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.positions.items())))


class KafkaMarkCoder(coders.Coder):
    """A mark as JSON `[[topic, partition, offset], ...]`, so that a checkpoint outlives the code that wrote it."""

    def encode(self, mark: KafkaMark) -> bytes:
        return json.dumps([[*key, offset] for key, offset in sorted(mark.positions.items())]).encode()

    def decode(self, encoded: bytes) -> KafkaMark:
        return KafkaMark({(topic, partition): offset for topic, partition, offset in json.loads(encoded)})

    def is_deterministic(self) -> bool:
        return True


@dataclass(frozen=True)
class KafkaSource(UnboundedSource):
    """Partitions from fixed offsets on; see `ReadFromKafka` for the arguments.

    Equal sources are equal: Beam pickles one for every bundle, and remembers the result by value.
    """

    connection: KafkaConnection
    start: tuple[tuple[tuple[str, int], int], ...]
    group_id: str
    splits: int
    max_records: int
    commit_delay_seconds: float

    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        count = min(self.splits, desired_num_splits, len(self.start))
        return [replace(self, start=self.start[index::count], splits=1) for index in range(count)]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        start = checkpoint_mark.positions if isinstance(checkpoint_mark, KafkaMark) else dict(self.start)
        resting = _resting.take(self.group_id, start)
        if resting is not None:
            return resting.successor()

        def open_at(positions: Positions) -> BlockReader:
            return BlockReader(self.connection, positions, self.group_id)

        return KafkaBlockReader(open_at, start, self.max_records, self.commit_delay_seconds, self.group_id)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        return KafkaMarkCoder()

    def default_output_coder(self) -> coders.Coder:
        return beam_coder.RecordBatchCoder()


class KafkaBlockReader(UnboundedReader):
    """Gives one block per advance, without waiting.

    A read that was not full is the last of its bundle: at any rate of records there are a few more a moment later, and
    small blocks cost as much as large ones.

    Beam parks a reader between bundles with the instance of the step that used it. Flink resumes a split in any of its
    many instances, each of which would open a client of its own while the parked ones keep their threads and buffers:
    a reader that rests at a mark is therefore handed on to whoever resumes from that mark in this process.

    Args:
      open_at: opens a client at some positions.
      start: where to begin.
      group_id: tells readers of different feeds apart.
    """

    def __init__(
        self,
        open_at: Callable[[Positions], BlockReader],
        start: Mapping[tuple[str, int], int],
        max_records: int,
        commit_delay_seconds: float,
        group_id: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_at, self._max_records, self._commit_delay = open_at, max_records, commit_delay_seconds
        self._group_id, self._clock, self._wall_clock = group_id, clock, wall_clock
        self._given: Positions = dict(start)
        self._watermark = self._timestamp = MIN_TIMESTAMP
        self._last_read = clock()
        self._block: pa.RecordBatch | None = None
        self._bundle_done = False
        self._open()

    def _open(self) -> None:
        self._reader: BlockReader | None = self._open_at(self._given)
        self._commits = _TrailingCommits(self._reader.commit, self._commit_delay, self._clock)
        self._read: deque[Block] = deque()  # blocks not given yet: the mark does not cover them

    def successor(self) -> "KafkaBlockReader":
        """A reader that goes on with this one's client; this one opens another should it ever be resumed."""
        reader = copy.copy(self)
        reader._given = dict(self._given)
        self._reader = None
        return reader

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        HEARTBEAT.beat()
        _resting.remove(self._group_id, self._given, self)
        if self._reader is None:
            self._open()
        assert self._reader is not None
        if not self._read and not self._bundle_done:
            self._read.extend(self._reader.read(self._max_records, _READ_SECONDS))
            self._bundle_done = sum(len(block.values) for block in self._read) < self._max_records
            FIRST_POLL.set()
        if not self._read:
            return False
        block = self._read.popleft()
        for partition, offset in zip(block.partitions, block.offsets, strict=True):
            self._given[block.topic, partition] = offset + 1
        self._block = raw_batch(block)
        self._last_read = self._clock()
        # A producer may claim any time at all; a time to come would hold the watermark there for ever.
        self._timestamp = Timestamp.of(min(min(block.timestamps_ms) / 1000, self._wall_clock()))
        self._watermark = max(self._watermark, self._timestamp)
        return True

    def get_current(self) -> pa.RecordBatch:
        return self._block

    def get_current_timestamp(self) -> Timestamp:
        return self._timestamp

    def get_watermark(self) -> Timestamp:
        """The oldest record time of the last block; when nothing comes, it follows the clock."""
        if self._clock() - self._last_read > _IDLE_SECONDS:
            self._watermark = max(self._watermark, Timestamp.of(self._wall_clock() - _IDLE_SECONDS))
        return self._watermark

    def get_checkpoint_mark(self) -> KafkaMark:
        self._bundle_done = False
        positions, commits = dict(self._given), self._commits
        _resting.put(self._group_id, positions, self)
        return KafkaMark(positions, lambda: commits.reached(positions))

    def close(self) -> None:
        _resting.remove(self._group_id, self._given, self)
        if self._reader is not None:
            self._commits.end()
            self._reader.close()
            self._reader = None


class _Resting:
    """Readers of this process that rest at a mark, by feed and mark."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[tuple[str, frozenset[tuple[tuple[str, int], int]]], KafkaBlockReader] = {}

    def put(self, group_id: str, positions: Positions, reader: KafkaBlockReader) -> None:
        with self._lock:
            self._readers[group_id, frozenset(positions.items())] = reader

    def take(self, group_id: str, positions: Positions) -> KafkaBlockReader | None:
        with self._lock:
            return self._readers.pop((group_id, frozenset(positions.items())), None)

    def remove(self, group_id: str, positions: Positions, reader: KafkaBlockReader) -> None:
        key = (group_id, frozenset(positions.items()))
        with self._lock:
            if self._readers.get(key) is reader:
                del self._readers[key]


_resting = _Resting()


class _TrailingCommits:
    """Commits the offsets that were final `delay` seconds ago, once a second at most."""

    def __init__(self, commit: Callable[[Positions], None], delay: float, clock: Callable[[], float]) -> None:
        self._commit, self._delay, self._clock = commit, delay, clock
        self._waiting: deque[tuple[float, Positions]] = deque()
        self._committed: Positions = {}
        self._next_commit = 0.0
        self._ended = False

    def end(self) -> None:
        """The client is gone: what becomes final now is committed by a later reader."""
        self._ended = True

    def reached(self, positions: Positions) -> None:
        if self._ended:
            return
        now = self._clock()
        self._waiting.append((now, positions))
        if now < self._next_commit:
            return
        ripe: Positions = {}
        while self._waiting and self._waiting[0][0] <= now - self._delay:
            ripe = self._waiting.popleft()[1]
        if ripe and ripe != self._committed:
            self._commit(ripe)
            self._committed = ripe
        self._next_commit = now + _COMMIT_INTERVAL_SECONDS


class _ReadRangeDoFn(beam.DoFn):
    """Reads every record of an offset range; records that compaction removed are not there to read."""

    def __init__(self, connection: KafkaConnection, max_records: int) -> None:
        self._connection, self._max_records = connection, max_records

    def process(self, wanted: OffsetRange) -> Iterator[pa.RecordBatch]:
        key = (wanted.topic, wanted.partition)
        reader = BlockReader(self._connection, {key: wanted.start})
        give_up = time.monotonic() + _QUIET_SECONDS
        try:
            while reader.positions()[key] < wanted.end:
                for block in reader.read(self._max_records, 0.2):
                    give_up = time.monotonic() + _QUIET_SECONDS
                    yield _up_to(raw_batch(block), wanted.end)
                if time.monotonic() > give_up:
                    raise TimeoutError(f"{key[0]}[{key[1]}]: offset {wanted.end - 1} does not arrive")
        finally:
            reader.close()


def _up_to(batch: pa.RecordBatch, end: int) -> pa.RecordBatch:
    """Rows of a single-partition block with an offset below `end`: offsets ascend."""
    offsets = batch.column("offset").to_numpy()
    return batch.slice(0, int(offsets.searchsorted(end)))


class KafkaRecord(NamedTuple):
    """One message to produce; `partition` None lets the key decide."""

    value: bytes
    key: bytes | None = None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class WriteToKafka(beam.PTransform):
    """Produces `KafkaRecord`s to one topic; each bundle ends only when its messages are acknowledged.

    Counter (`millrace.pipelines.kafka_io`): `messages_written`.
    """

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        super().__init__()
        self._connection, self._topic = connection, topic

    def expand(self, records: beam.PCollection[KafkaRecord]) -> beam.PCollection[None]:
        return records | "Produce" >> beam.ParDo(WriteToKafkaDoFn(self._connection, self._topic))


class WriteToKafkaDoFn(beam.DoFn):
    """What `WriteToKafka` does, for a `pipelines.chain.Chain`."""

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        self._connection, self._topic = connection, topic
        self._written = Metrics.counter(_NAMESPACE, "messages_written")

    def start_bundle(self) -> None:
        self._producer = _shared_producers.get(self._connection)
        self._pending = _Deliveries()

    def process(self, record: KafkaRecord) -> None:
        self._pending.sent()
        arguments: dict[str, Any] = {} if record.partition is None else {"partition": record.partition}
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    on_delivery=self._pending.delivered,
                    **arguments,
                )
                break
            except BufferError:  # the local queue is full: let deliveries drain it
                self._producer.poll(0.1)
        self._written.inc()

    def finish_bundle(self) -> None:
        if self._pending.left == 0:
            return
        # flush() sends at once, without lingering; it serves the callbacks of other bundles as well.
        self._producer.flush(_DELIVERY_SECONDS)
        give_up = time.monotonic() + 1.0
        while self._pending.left and time.monotonic() < give_up:
            self._producer.poll(0.01)
        if self._pending.error is not None or self._pending.left:
            _shared_producers.forget(self._connection)
            reason = self._pending.error or f"{self._pending.left} messages not acknowledged in {_DELIVERY_SECONDS:g} s"
            raise UndeliveredError(f"{self._topic}: {reason}")


class _Deliveries:
    """Counts the acknowledgements of one bundle; callbacks may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.left = 0
        self.error: str | None = None

    def sent(self) -> None:
        with self._lock:
            self.left += 1

    def delivered(self, error: Any, _message: Any) -> None:
        with self._lock:
            self.left -= 1
            if error is not None:
                self.error = error.str()


class _SharedProducers:
    """One producer per broker in this process; a producer that failed is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._producers: dict[KafkaConnection, Any] = {}

    def get(self, connection: KafkaConnection) -> Any:
        with self._lock:
            if connection not in self._producers:
                self._producers[connection] = make_producer(connection, linger_ms=5)
            return self._producers[connection]

    def forget(self, connection: KafkaConnection) -> None:
        with self._lock:
            self._producers.pop(connection, None)


_shared_producers = _SharedProducers()
