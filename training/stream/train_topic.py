"""The train topic as one stream of blocks, whatever happens to brokers, partitions and the topic itself."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from confluent_kafka import KafkaException

from millrace.runtime.kafka_client import KafkaConnection, make_consumer, watermark_offsets
from millrace.runtime.kafka_positions import resolve_start
from millrace.runtime.kafka_records import KafkaReadError, PartitionReader, TopicRecords
from millrace.runtime.kafka_topics import KafkaTopic, TopicDescriber
from millrace.runtime.telemetry import WAITS, LogLimit, counter

_LOG = logging.getLogger(__name__)
_LOST = counter("train_records_lost", "records of the train topic that were gone before they were read", ("partition",))
_INCARNATIONS = counter("train_topic_incarnations", "partitions of the train topic found made anew or cut short")
_POSITION_GROUP = "millrace-position"  # it joins and commits nothing
_WATCH_SECONDS = 5.0  # between two looks at the topic's id and partitions: new partitions are read within ten seconds
_RETRY_SECONDS = 1.0  # before a topic that could not be read is opened anew: time for a broker to come back
_REQUEST_SECONDS = 5.0  # a broker that is up answers within this time; the reader's thread ends no later than this


def place_in_topic(connection: KafkaConnection, topic: str, position: str) -> tuple[dict[int, int], str]:
    """({partition: offset} of `position`, which is as `resolve_start` takes it, id of the topic's incarnation).

    Raises: UserError: there is no such topic. UnreachableError, KafkaException: brokers do not answer.
    """
    describer = TopicDescriber(connection)
    while True:
        found = describer.describe([topic], _REQUEST_SECONDS).get(topic)
        offsets = resolve_start(connection, topic, position, _POSITION_GROUP, "--resume-from-good")
        again = describer.describe([topic], _REQUEST_SECONDS).get(topic)
        if found is not None and again is not None and found.id == again.id:  # not made anew in between
            return offsets, found.id


class TrainMessage(NamedTuple):
    """One message of the train topic.

    Attributes:
      offset: of the message itself.
      topic_id: id of the topic's incarnation in which `offset` counts.
    """

    value: bytes | None
    partition: int
    offset: int
    topic_id: str


class TrainTopic:
    """Reads all partitions of the train topic, each from where a checkpoint says.

    A broker that is away, and a topic that does not exist, are waited for. Where the offset of a checkpoint counts in
    another incarnation of the topic, or lies beyond the end, the partition is read from its beginning. Where retention
    has removed records that were not read, the rest is read, and the lost ones are counted.

    Args:
      offsets: {partition: next offset}; partitions that are not named are read from their beginning.
      topic_ids: {partition: id of the incarnation in which its offset counts}; "" or none where it is not known.
      watch_seconds: between two looks at the topic's id and partitions.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        offsets: Mapping[int, int],
        topic_ids: Mapping[int, str],
        watch_seconds: float = _WATCH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._topic, self._clock = connection, topic, clock
        self._group = f"millrace-trainer-{topic}"
        self._offsets, self._topic_ids = dict(offsets), dict(topic_ids)
        self._brokers = f"Kafka at {connection.bootstrap_servers}"
        self._describer = TopicDescriber(connection)
        self._log_limit = LogLimit(clock=clock)
        self._watch_seconds = watch_seconds
        self._reader: PartitionReader | None = None
        self._unsure: list[TopicRecords] = []  # read, and it is not known yet whether by the topic as it was opened
        self._opened = KafkaTopic("", "", ())
        self._waits = ExitStack()  # holds an entry of what this process waits for, while the topic cannot be read
        self._waiting = ""
        self._look_at = self._open_at = clock()

    def read(self, max_records: int, seconds: float) -> list[TrainMessage]:
        """The next messages, at most so many, after at most so many seconds; [] too while the topic cannot be read."""
        if self._reader is None:
            if self._clock() < self._open_at or not self._open():
                time.sleep(seconds)
                return []
        elif self._clock() >= self._look_at and self._has_changed():
            self._close_reader()
            return []
        assert self._reader is not None
        try:
            self._unsure = self._unsure or self._reader.read(max_records, seconds)
        except KafkaReadError as error:
            _LOG.warning("%s; looking at the topic anew", error)
            self._close_reader()
            return []
        blocks = self._confirmed()
        messages = [
            TrainMessage(value, partition, offset, self._opened.id)
            for block in blocks
            for value, partition, offset in zip(block.values, block.partitions, block.offsets, strict=True)
        ]
        for message in messages:
            self._offsets[message.partition] = message.offset + 1
        return messages

    def _confirmed(self) -> list[TopicRecords]:
        """What was read last, if the topic is the same after it was read; [] until a broker tells.

        The client asks by the topic's name, so that it may go on in a topic that was made anew, at the old one's
        offset. The floors in its blocks would speak of blocks before that offset, which were never read.
        """
        if not self._unsure:
            return []
        found = self._describe()
        if found is None:
            return []
        if found.id != self._opened.id:
            self._log_changed(found)
            self._close_reader()
            return []
        blocks, self._unsure = self._unsure, []
        return blocks

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Stores {partition: next offset} for the consumer group, so that tools can show the lag."""
        if self._reader is not None:
            known = {(self._topic, each): offsets[each] for each in self._opened.partitions if each in offsets}
            self._reader.commit(known)

    def close(self) -> None:
        """Closes the consumer."""
        self._waits.close()
        self._waiting = ""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_reader(self) -> None:
        self.close()
        self._unsure = []
        self._open_at = self._clock() + _RETRY_SECONDS

    def _has_changed(self) -> bool:
        """Whether the topic was made anew or got partitions; False while nobody answers."""
        self._look_at = self._clock() + self._watch_seconds
        found = self._describe()
        if found is None or (found.id, found.partitions) == (self._opened.id, self._opened.partitions):
            return False
        self._log_changed(found)
        return True

    def _log_changed(self, found: KafkaTopic) -> None:
        _LOG.warning(
            "%s has changed: %d partitions and id %s, before %d and %s",
            self._topic, len(found.partitions), found.id, len(self._opened.partitions), self._opened.id,
        )  # fmt: skip

    def _describe(self) -> KafkaTopic | None:
        try:
            found = self._describer.describe([self._topic], _REQUEST_SECONDS).get(self._topic)
        except KafkaException as error:
            self._wait_for(self._brokers, error.args[0].str())
            return None
        if found is None or not found.partitions:
            self._wait_for(f"topic {self._topic}", "it is missing; give --create-topics to the command that lacks it")
            return None
        self._waits.close()
        self._waiting = ""
        return found

    def _wait_for(self, what: str, why: str) -> None:
        if self._waiting != what:
            self._waits.close()
            self._waits.enter_context(WAITS.entry(what))
            self._waiting = what
        if self._log_limit.count(what):
            _LOG.warning("%s: waiting for %s (%s)", self._topic, what, why)

    def _open(self) -> bool:
        self._open_at = self._clock() + _RETRY_SECONDS
        found = self._describe()
        if found is None:
            return False
        consumer = make_consumer(self._connection, self._group)
        try:
            ends = {
                partition: watermark_offsets(consumer, self._topic, partition, _REQUEST_SECONDS)
                for partition in found.partitions
            }
        except KafkaException as error:
            self._wait_for(self._brokers, error.args[0].str())
            return False
        finally:
            consumer.close()
        start = {partition: self._start_of(partition, found.id, first, end) for partition, (first, end) in ends.items()}
        self._offsets, self._topic_ids = start, dict.fromkeys(start, found.id)
        positions = {(self._topic, partition): offset for partition, offset in start.items()}
        self._reader = PartitionReader(self._connection, positions, self._group)
        self._opened = found
        self._look_at = self._clock() + self._watch_seconds
        return True

    def _start_of(self, partition: int, topic_id: str, first: int, end: int) -> int:
        """Where to go on in a partition that has the offsets [first, end)."""
        if partition not in self._offsets:
            return first
        offset, known_id = self._offsets[partition], self._topic_ids.get(partition, "")
        if known_id and known_id != topic_id:
            self._log_new(partition, offset, first, f"the topic was made anew: its id is {topic_id}, not {known_id}")
            return first
        if offset > end:
            self._log_new(
                partition, offset, first, f"the partition ends at offset {end}: it was cut short or made anew"
            )
            return first
        if offset < first:
            _LOST.labels(str(partition)).inc(first - offset)
            _LOG.warning(
                "%s[%d]: offsets %d to %d were removed by retention before they were read; going on at %d",
                self._topic, partition, offset, first - 1, first,
            )  # fmt: skip
        return max(offset, first)

    def _log_new(self, partition: int, offset: int, first: int, why: str) -> None:
        _INCARNATIONS.inc()
        _LOG.warning(
            "%s[%d]: offset %d counts in another log (%s); reading it from its beginning, offset %d",
            self._topic, partition, offset, why, first,
        )  # fmt: skip
