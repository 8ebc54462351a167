"""Reads the records of given Kafka partitions, from given offsets on.

As in `kafka_positions`, a partition is (topic, number), and a position is the offset of the next record to read.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, repeat
from operator import eq, itemgetter

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, TopicPartition

from millrace.runtime.kafka_client import KafkaConnection, is_passing, make_consumer
from millrace.runtime.kafka_positions import Partition, Positions
from millrace.runtime.kafka_topics import KafkaTopic, TopicDescriber


class KafkaReadError(RuntimeError):
    """A partition cannot be read on: the broker refuses for good, and a retry would not help."""


class OffsetGoneError(KafkaReadError):
    """The next offset of a partition lies below its first or beyond its end."""


@dataclass
class TopicRecords:
    """Records of one topic, in offset order within each partition; all lists have the same length.

    Attributes:
      values: bytes of each record; None for a tombstone, a record without a value.
      partitions: number of the partition of each record.
      offsets: offset of each record in its partition.
      timestamps_ms: time stamp of each record, Unix milliseconds; 0 for a record without one.
      append_times: true if all time stamps are those of the broker's write (`LogAppendTime`), not the producers'.
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

    def slice(self, start: int, stop: int | None = None) -> "TopicRecords":
        """The records at list indices from `start` up to, but not including, `stop` (None: to the end)."""
        at = slice(start, stop)
        return TopicRecords(
            self.topic,
            self.values[at],
            self.partitions[at],
            self.offsets[at],
            self.timestamps_ms[at],
            self.append_times,
        )

    def by_partition(self) -> dict[int, "TopicRecords"]:
        """{number of the partition: its records}, without partitions that have none here."""
        numbers = dict.fromkeys(self.partitions)
        if len(numbers) == 1:
            return dict.fromkeys(numbers, self)
        return {number: self._of_partition(number) for number in numbers}

    def _of_partition(self, number: int) -> "TopicRecords":
        mine = list(map(eq, self.partitions, repeat(number)))
        return TopicRecords(
            self.topic,
            list(compress(self.values, mine)),
            [number] * sum(mine),
            list(compress(self.offsets, mine)),
            list(compress(self.timestamps_ms, mine)),
            self.append_times,
        )


def join_records(parts: Sequence[TopicRecords]) -> TopicRecords:
    """The records of all `parts`, one part after the other; there must be a part, and all must be of one topic."""
    some = [part for part in parts if part.values] or parts[:1]
    if len(some) == 1:
        return some[0]
    return TopicRecords(
        some[0].topic,
        list(chain.from_iterable(part.values for part in some)),
        list(chain.from_iterable(part.partitions for part in some)),
        list(chain.from_iterable(part.offsets for part in some)),
        list(chain.from_iterable(part.timestamps_ms for part in some)),
        all(part.append_times for part in some),
    )


class PartitionReader:
    """Reads partitions of one or more topics from given offsets on; it never joins a consumer group.

    Records of transactions that were aborted or are still open are left out.

    Args:
      start: {partition: first offset to read}.
      group_id: consumer group under which `commit` stores offsets.
    """

    def __init__(
        self, connection: KafkaConnection, start: Mapping[tuple[str, int], int], group_id: str = "millrace"
    ) -> None:
        self._consumer = make_consumer(
            connection,
            group_id,
            auto_offset_reset="error",
            queued_max_messages_kbytes=16_384,  # at most 16 MiB fetched ahead per reader; the default is 64 MiB
            # How long the client pauses when its queue is full. With the default, 1 s, a fast reader empties the queue
            # and then waits.
            fetch_queue_backoff_ms=10,
            reconnect_backoff_max_ms=1000,  # back within a second after a broker restarts; the default is 10 s
        )
        self._describer = TopicDescriber(connection)
        self._next: Positions = {}
        self.assign(start)

    def assign(self, start: Mapping[tuple[str, int], int]) -> None:
        """From now on reads the partitions of `start`, {partition: first offset}, in place of all earlier ones."""
        self._next = dict(start)
        self._consumer.assign([TopicPartition(*key, offset) for key, offset in start.items()])

    def add(self, start: Mapping[tuple[str, int], int]) -> None:
        """From now on also reads the partitions of `start`, {partition: first offset}; none may be read already."""
        self._next |= start
        self._consumer.incremental_assign([TopicPartition(*key, offset) for key, offset in start.items()])

    def remove(self, partitions: Collection[tuple[str, int]]) -> None:
        """From now on does not read these partitions."""
        for key in partitions:
            self._next.pop(key, None)
        self._consumer.incremental_unassign([TopicPartition(*key) for key in partitions])

    def pause(self, partitions: Collection[tuple[str, int]]) -> None:
        """Stops reading these partitions until `resume`. The client drops their records that it holds already."""
        self._consumer.pause([TopicPartition(*key) for key in partitions])

    def resume(self, partitions: Collection[tuple[str, int]]) -> None:
        """Reads these partitions again, from where they were paused; the client fetches anew what it dropped."""
        self._consumer.resume([TopicPartition(*key) for key in partitions])

    def read(
        self, max_records: int, seconds: float, troubled: dict[Partition, KafkaReadError] | None = None
    ) -> list[TopicRecords]:
        """Waits until `max_records` records have come or `seconds` have passed, and returns what has come.

        Args:
          troubled: takes {partition: what is wrong} of those that stop because their offset or their topic does not
            exist any more; None: that is raised.

        Returns: one element per topic that has records; [] when none came.
        Raises: KafkaReadError when an offset does not exist any more (retention), a topic was deleted, or the broker
          reports another error that does not pass. A broker that restarts or is away is waited for.
        """
        messages: Sequence[Message] = self._consumer.consume(max_records, seconds)
        if any(map(Message.error, messages)):
            messages = [message for message in messages if not self._is_passing(message, troubled)]
        found = [_records_of(topic, chosen) for topic, chosen in _by_topic(messages)]
        for records in found:
            for partition, offset in dict(zip(records.partitions, records.offsets, strict=True)).items():
                self._next[records.topic, partition] = offset + 1
        return found

    def positions(self) -> Positions:
        """{partition: offset at which it is read on}, for all partitions, those that are paused included.

        It may be more than one above the last record's: control records and gaps at the end are passed over as well.
        """
        known = self._consumer.position([TopicPartition(*key) for key in self._next])
        return {
            (each.topic, each.partition): max(each.offset, self._next[each.topic, each.partition]) for each in known
        }

    def lags(self) -> dict[tuple[str, int], int | None]:
        """{partition: offsets between its position and its end}; None before a broker has told the end.

        The end is the one in the broker's last answer; nothing is asked.
        """
        lags: dict[tuple[str, int], int | None] = {}
        for key, position in self.positions().items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
            lags[key] = max(0, high - position) if high >= 0 else None
        return lags

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic] | None:
        """{topic: what it is now}, without topics that do not exist; None if nobody answers within `seconds`."""
        try:
            return self._describer.describe(topics, seconds)
        except KafkaException:
            return None

    def extent(self, topic: str, partition: int, seconds: float) -> tuple[int, int] | None:
        """(oldest offset, next offset) that exist; None if the question fails or has no answer within `seconds`."""
        try:
            self._consumer.list_topics(topic, timeout=seconds)  # it looks for partitions by itself only after minutes
            low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=seconds)
        except KafkaException:
            return None
        return int(low), int(high)

    def commit(self, positions: Mapping[tuple[str, int], int], tags: Mapping[str, str] | None = None) -> None:
        """Stores `positions`, {partition: next offset}, as the group's committed offsets, and does not wait.

        A failure is not told: the group keeps its older offsets, and a reader that starts from them repeats records.

        Args:
          tags: {topic: text that is stored with its offsets}, by which `kafka_positions` tells whose they are.
        """
        tags = tags or {}
        self._consumer.commit(
            offsets=[
                TopicPartition(topic, partition, offset, tags.get(topic, ""))
                for (topic, partition), offset in positions.items()
            ],
            asynchronous=True,
        )

    def close(self) -> None:
        """Closes the client; commits nothing by itself."""
        self._consumer.close()

    def _is_passing(self, message: Message, troubled: dict[Partition, KafkaReadError] | None) -> bool:
        """Whether `message` is an error that passes, not a record; raises KafkaReadError for one that does not."""
        error = message.error()
        if error is None:
            return False
        if not is_passing(error):
            key = (message.topic() or "", message.partition() or 0)
            problem = self._problem(key, error)
            if troubled is None or error.code() not in _GONE | _OUT_OF_RANGE:
                raise problem
            if key in self._next:  # else the client speaks of a partition that was removed
                troubled[key] = problem
        return True

    def _problem(self, key: Partition, error: KafkaError) -> KafkaReadError:
        place = f"{key[0]}[{key[1]}]"
        if error.code() in _GONE:
            return KafkaReadError(f"{place} does not exist any more; was the topic deleted?")
        if error.code() in _OUT_OF_RANGE:
            return OffsetGoneError(
                f"{place}: offset {self._next.get(key)} is out of range: retention removed it, or the topic was "
                "created anew; start from earliest or from another offset"
            )
        return KafkaReadError(f"{place}: {error.str()}")


_GONE = {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}


def _by_topic(messages: Sequence[Message]) -> Iterator[tuple[str, Sequence[Message]]]:
    topics = list(map(Message.topic, messages))
    for topic in dict.fromkeys(topics):
        same = map(eq, topics, [topic] * len(topics))
        yield topic, messages if topics.count(topic) == len(topics) else list(compress(messages, same))


def _records_of(topic: str, messages: Sequence[Message]) -> TopicRecords:
    stamps = list(map(Message.timestamp, messages))
    return TopicRecords(
        topic,
        list(map(Message.value, messages)),
        list(map(Message.partition, messages)),
        list(map(Message.offset, messages)),
        [time_ms if time_ms > 0 else 0 for time_ms in map(itemgetter(1), stamps)],
        all(kind == TIMESTAMP_LOG_APPEND_TIME for kind in map(itemgetter(0), stamps)),
    )
