"""Reads blocks of Kafka records from given partitions, and finds the offsets to read from and to."""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, repeat
from operator import eq, itemgetter
from typing import NoReturn

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, KafkaException, Message, TopicPartition

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, is_passing, make_consumer, partitions_of, watermark_offsets

# A broker that has just started answers within this time.
_REQUEST_SECONDS = 10.0
_BEYOND_END = 1 << 62  # above every offset
_START_CHOICES = "earliest, latest, group, time:MILLISECONDS or a JSON object of offsets"


class KafkaReadError(RuntimeError):
    """A partition cannot be read any more."""


Partition = tuple[str, int]
"""(topic, number of the partition)."""

Positions = dict[Partition, int]
"""{partition: next offset}."""


@dataclass
class Block:
    """Records of one topic, in offset order within each partition; all lists have the same length.

    Attributes:
      values: bytes of the records; None for a tombstone.
      partitions, offsets: where each record lies.
      timestamps_ms: time stamps in ms since the epoch, 0 for a record without one.
      append_times: whether the broker wrote the time stamps, not the producers.
    """

    topic: str
    values: list[bytes | None] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    timestamps_ms: list[int] = field(default_factory=list)
    append_times: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(map(len, filter(None, self.values)))

    def slice(self, start: int, stop: int | None = None) -> "Block":
        """The records from place `start` up to `stop`, or to the end."""
        at = slice(start, stop)
        return Block(
            self.topic,
            self.values[at],
            self.partitions[at],
            self.offsets[at],
            self.timestamps_ms[at],
            self.append_times,
        )

    def by_partition(self) -> dict[int, "Block"]:
        """{number of the partition: its records}."""
        numbers = dict.fromkeys(self.partitions)
        if len(numbers) == 1:
            return dict.fromkeys(numbers, self)
        return {number: self._of_partition(number) for number in numbers}

    def _of_partition(self, number: int) -> "Block":
        mine = list(map(eq, self.partitions, repeat(number)))
        return Block(
            self.topic,
            list(compress(self.values, mine)),
            [number] * sum(mine),
            list(compress(self.offsets, mine)),
            list(compress(self.timestamps_ms, mine)),
            self.append_times,
        )


def join_blocks(blocks: Sequence[Block]) -> Block:
    """The records of all blocks, at least one and all of one topic, in this order."""
    some = [block for block in blocks if block.values] or blocks[:1]
    if len(some) == 1:
        return some[0]
    return Block(
        some[0].topic,
        list(chain.from_iterable(block.values for block in some)),
        list(chain.from_iterable(block.partitions for block in some)),
        list(chain.from_iterable(block.offsets for block in some)),
        list(chain.from_iterable(block.timestamps_ms for block in some)),
        all(block.append_times for block in some),
    )


class BlockReader:
    """Reads partitions, of several topics if need be, from given offsets on; never joins a consumer group.

    It gives committed records only: none of an aborted transaction, and none of one that is still open.

    Args:
      start: {(topic, partition): first offset to read}.
      group_id: where `commit` records progress.
    """

    def __init__(
        self, connection: KafkaConnection, start: Mapping[tuple[str, int], int], group_id: str = "millrace"
    ) -> None:
        self._consumer = make_consumer(
            connection,
            group_id,
            auto_offset_reset="error",
            queued_max_messages_kbytes=16_384,  # bounds the client's memory; the default is 64 MiB
            # How long the client pauses when its queue is full. With the default, 1 s, a fast reader empties the queue
            # and then waits.
            fetch_queue_backoff_ms=10,
            reconnect_backoff_max_ms=1000,  # back within a second after a broker restarts; the default is 10 s
        )
        self._next: Positions = {}
        self.assign(start)

    def assign(self, start: Mapping[tuple[str, int], int]) -> None:
        """Reads these partitions from these offsets on, and no others."""
        self._next = dict(start)
        self._consumer.assign([TopicPartition(*key, offset) for key, offset in start.items()])

    def add(self, start: Mapping[tuple[str, int], int]) -> None:
        """Reads these partitions as well."""
        self._next |= start
        self._consumer.incremental_assign([TopicPartition(*key, offset) for key, offset in start.items()])

    def pause(self, partitions: Collection[tuple[str, int]]) -> None:
        """Reads nothing of these until `resume`; the client then fetches again what it had fetched of them already."""
        self._consumer.pause([TopicPartition(*key) for key in partitions])

    def resume(self, partitions: Collection[tuple[str, int]]) -> None:
        """Reads these again, from where they were paused."""
        self._consumer.resume([TopicPartition(*key) for key in partitions])

    def read(self, max_records: int, seconds: float) -> list[Block]:
        """Up to `max_records` records, one block per topic, after at most `seconds`; [] when there are none.

        Raises:
          KafkaReadError: an offset does not exist any more (retention), or a topic was deleted.
        """
        messages: Sequence[Message] = self._consumer.consume(max_records, seconds)
        if any(map(Message.error, messages)):
            messages = [message for message in messages if not self._is_passing(message)]
        blocks = [_block(topic, chosen) for topic, chosen in _by_topic(messages)]
        for block in blocks:
            for partition, offset in dict(zip(block.partitions, block.offsets, strict=True)).items():
                self._next[block.topic, partition] = offset + 1
        return blocks

    def positions(self) -> Positions:
        """The next offsets, after control records and gaps that `read` passed over."""
        known = self._consumer.position([TopicPartition(*key) for key in self._next])
        return {
            (each.topic, each.partition): max(each.offset, self._next[each.topic, each.partition]) for each in known
        }

    def lags(self) -> dict[tuple[str, int], int | None]:
        """{partition: records that were not read yet}, as of its broker's last answer; None before the first answer."""
        lags: dict[tuple[str, int], int | None] = {}
        for key, position in self.positions().items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
            lags[key] = max(0, high - position) if high >= 0 else None
        return lags

    def partitions(self, topics: Collection[str], seconds: float) -> dict[str, list[int]]:
        """{topic: its partition numbers}, [] for a topic that does not exist; {} if no broker answers in `seconds`."""
        found = {}
        try:
            for topic in topics:
                metadata = self._consumer.list_topics(topic, timeout=seconds).topics[topic]
                found[topic] = sorted(metadata.partitions)
        except KafkaException:
            return {}
        return found

    def first_offset(self, topic: str, partition: int, seconds: float) -> int | None:
        """The oldest offset that exists; None when no broker answers within `seconds`."""
        try:
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=seconds)
        except KafkaException:
            return None
        return int(low)

    def commit(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Commits `positions` to the group without waiting; a failure only shows when a later reader starts there."""
        self._consumer.commit(
            offsets=[TopicPartition(*key, offset) for key, offset in positions.items()], asynchronous=True
        )

    def close(self) -> None:
        self._consumer.close()

    def _is_passing(self, message: Message) -> bool:
        """Whether `message` is an error that passes, not a record; raises KafkaReadError for one that does not."""
        error = message.error()
        if error is None:
            return False
        if not is_passing(error):
            self._fail(message.topic(), message.partition(), error)
        return True

    def _fail(self, topic: str | None, partition: int | None, error: KafkaError) -> NoReturn:
        place = f"{topic}[{partition}]"
        if error.code() in _GONE:
            raise KafkaReadError(f"{place} does not exist any more; was the topic deleted?")
        if error.code() in _OUT_OF_RANGE:
            offset = self._next.get((topic or "", partition or 0))
            raise KafkaReadError(
                f"{place}: offset {offset} is out of range: retention removed it, or the topic was created anew; "
                "start from earliest or from another offset"
            )
        raise KafkaReadError(f"{place}: {error.str()}")


_GONE = {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}


def _by_topic(messages: Sequence[Message]) -> Iterator[tuple[str, Sequence[Message]]]:
    topics = list(map(Message.topic, messages))
    for topic in dict.fromkeys(topics):
        same = map(eq, topics, [topic] * len(topics))
        yield topic, messages if topics.count(topic) == len(topics) else list(compress(messages, same))


def _block(topic: str, messages: Sequence[Message]) -> Block:
    stamps = list(map(Message.timestamp, messages))
    return Block(
        topic,
        list(map(Message.value, messages)),
        list(map(Message.partition, messages)),
        list(map(Message.offset, messages)),
        [time_ms if time_ms > 0 else 0 for time_ms in map(itemgetter(1), stamps)],
        all(kind == TIMESTAMP_LOG_APPEND_TIME for kind in map(itemgetter(0), stamps)),
    )


def resolve_start(
    connection: KafkaConnection, topic: str, start: str, group_id: str, field_name: str = "--start"
) -> dict[int, int]:
    """The offsets that a position means.

    Args:
      start: earliest, latest, time:MILLISECONDS (the first record of that time or later), group (the committed offsets,
        earliest where there is none) or {"0": 17, ...}.
      field_name: setting that an error names.

    Returns: {partition: offset}; an offset that retention has removed becomes the earliest.
    Raises: UserError for a topic or partition that does not exist, a wrong position, or a broker that refuses.
    """
    partitions = partitions_of(connection, topic)
    consumer = make_consumer(connection, group_id)
    try:
        ends = {partition: watermark_offsets(consumer, topic, partition) for partition in partitions}
        chosen: Mapping[int, int]
        if start == "earliest":
            chosen = {}
        elif start == "latest":
            chosen = {partition: high for partition, (_, high) in ends.items()}
        elif start == "group":
            chosen = _committed(consumer, topic, partitions)
        elif start.startswith("time:"):
            chosen = _at_time(consumer, topic, partitions, start, field_name)
        else:
            chosen = _explicit(start, partitions, field_name)
    except KafkaException as error:
        raise UserError("--kafka", connection.bootstrap_servers, error.args[0].str(), "see the broker's log") from error
    finally:
        consumer.close()
    return {partition: min(high, max(low, chosen.get(partition, low))) for partition, (low, high) in ends.items()}


def resolve_topics(
    connection: KafkaConnection, topics: Collection[str], start: str, group_id: str, field_name: str = "start"
) -> Positions:
    """`resolve_start` for several topics."""
    return {
        (topic, partition): offset
        for topic in topics
        for partition, offset in resolve_start(connection, topic, start, group_id, field_name).items()
    }


def _committed(consumer: Consumer, topic: str, partitions: list[int]) -> dict[int, int]:
    # A broker that has just started may still be loading the offsets of the group.
    give_up = time.monotonic() + _REQUEST_SECONDS
    while True:
        try:
            found = consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=5.0)
            return {each.partition: each.offset for each in found if each.offset >= 0}
        except KafkaException:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


def _at_time(consumer: Consumer, topic: str, partitions: list[int], start: str, field_name: str) -> dict[int, int]:
    try:
        time_ms = int(start.removeprefix("time:"))
    except ValueError:
        raise UserError(field_name, start, "not a number of milliseconds", f"choose {_START_CHOICES}") from None
    asked = [TopicPartition(topic, partition, time_ms) for partition in partitions]
    found = consumer.offsets_for_times(asked, timeout=_REQUEST_SECONDS)
    # A negative offset says that every record is older.
    return {each.partition: each.offset if each.offset >= 0 else _BEYOND_END for each in found}


def _explicit(start: str, partitions: list[int], field_name: str) -> dict[int, int]:
    try:
        chosen = {int(partition): int(offset) for partition, offset in json.loads(start).items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(field_name, start, "not a start position", f"choose {_START_CHOICES}") from None
    unknown = sorted(set(chosen) - set(partitions))
    if unknown:
        raise UserError(field_name, start, f"partition {unknown[0]} does not exist", f"partitions are {partitions}")
    return chosen
