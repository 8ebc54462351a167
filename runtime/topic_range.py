"""Reads a bounded range of a topic once, or the newest record of a partition; joins no consumer group."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import KafkaError, Message, TopicPartition

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, is_passing, make_consumer, watermarks
from millrace.runtime.kafka_positions import resolve_start
from millrace.runtime.kafka_records import KafkaReadError

# Longer than a broker takes to restart; a read fails after this time without an answer.
_SILENT_SECONDS = 30.0
_GROUP = "millrace-records"
_FIRST_LOOK = 100  # offsets; each further look takes ten times as many, until it begins at the first record
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class TopicRange:
    """Offsets of a topic.

    Attributes:
      offsets: {partition: (first offset, offset after the last)}.
    """

    connection: KafkaConnection
    topic: str
    offsets: Mapping[int, tuple[int, int]]

    @property
    def size(self) -> int:
        """Offsets in the range; some may hold no record."""
        return sum(end - start for start, end in self.offsets.values())


def resolve_range(
    connection: KafkaConnection,
    topic: str,
    start: str = "earliest",
    until: str = "end",
    partition: int | None = None,
    group: str = _GROUP,
) -> TopicRange:
    """The range between two positions, of one partition or all.

    Args:
      start: a position, as `resolve_start` takes it.
      until: the same, or `end`, which is the end as it is now.
      partition: None for all partitions.

    Raises: UserError for a topic or partition that does not exist, and for a wrong position.
    """
    first = resolve_start(connection, topic, start, group, "--start")
    after = resolve_start(connection, topic, "latest" if until == "end" else until, group, "--until")
    if partition is not None and partition not in first:
        raise UserError("--partition", partition, f"{topic} has no such partition", f"choose one of {sorted(first)}")
    chosen = first if partition is None else {partition: first[partition]}
    return TopicRange(connection, topic, {each: (at, max(at, after[each])) for each, at in chosen.items()})


def read_messages(wanted: TopicRange, max_records: int = 4096) -> Iterator[list[Message]]:
    """The committed records of the range, in offset order within each partition.

    Raises: KafkaReadError when no broker answers for 30 s, or an offset does not exist any more.
    """
    left = {partition: end for partition, (start, end) in wanted.offsets.items() if start < end}
    consumer = make_consumer(
        wanted.connection, _GROUP, auto_offset_reset="error", enable_partition_eof=True, reconnect_backoff_max_ms=1000
    )
    try:
        consumer.assign([TopicPartition(wanted.topic, each, wanted.offsets[each][0]) for each in left])
        heard = time.monotonic()
        while left:
            messages = consumer.consume(max_records, 0.1)
            records, done = _records_and_ends(messages, left)
            if records:
                yield records
            if done:
                consumer.incremental_unassign([TopicPartition(wanted.topic, each) for each in done])
            left = {partition: end for partition, end in left.items() if partition not in done}
            heard = time.monotonic() if messages else heard
            if time.monotonic() - heard > _SILENT_SECONDS:
                raise KafkaReadError(f"{wanted.topic}: no answer for {_SILENT_SECONDS:g} s, partitions {sorted(left)}")
    finally:
        consumer.close()


def _records_and_ends(messages: Sequence[Message], left: Mapping[int, int]) -> tuple[list[Message], set[int]]:
    """Returns (records of the range, partitions whose range was read to its end)."""
    records, done = [], set()
    for message in messages:
        partition, error = message.partition(), message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                done.add(partition)
            elif not is_passing(error):
                raise KafkaReadError(f"{message.topic()}[{partition}]: {error.str()}")
        elif partition in left:
            if message.offset() < left[partition]:
                records.append(message)
            if message.offset() + 1 >= left[partition]:
                done.add(partition)
    return records, done & left.keys()


def newest_record(
    connection: KafkaConnection, topic: str, partition: int, parse: Callable[[bytes], _Found | None]
) -> tuple[_Found | None, int]:
    """What `parse` makes of the newest committed record that it knows; and the offset after the partition's last.

    The last offsets may hold no record: transactions end in one, and aborted records are not read.

    Args:
      parse: gets a record's value; None: the record is somebody else's.

    Returns: (None, end) when there is no such record.
    Raises: KafkaReadError, KafkaException: brokers do not answer. UserError: no such topic.
    """
    low, high = watermarks(connection, topic)[partition]
    until, width = high, _FIRST_LOOK
    while until > low:
        start = max(low, high - width)
        found = None
        for messages in read_messages(TopicRange(connection, topic, {partition: (start, until)})):
            for message in messages:
                parsed = parse(message.value() or b"")
                found = found if parsed is None else parsed
        if found is not None:
            return found, high
        until, width = start, width * 10
    return None, high
