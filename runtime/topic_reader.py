"""Reads partitions of one topic in order, without a consumer group, and waits out restarts of the brokers."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from millrace.runtime.kafka_client import KafkaConnection, make_consumer

_LOG = logging.getLogger(__name__)
# A reader sleeps no longer than this: its loop has other work between two reads.
_POLL_SECONDS = 0.02
_END_REQUEST_SECONDS = 1.0  # a loop may wait so long for a broker; the request is repeated later
_LOG_EVERY_SECONDS = 10.0  # otherwise every read would report a lost broker
# The default is 10 s at most; a reader of deltas must be back sooner, as what it reads is served within a second.
_RECONNECT_MS, _RECONNECT_MAX_MS = 250, 1000


@dataclass(frozen=True)
class Record:
    """One message; `key` and `value` are None where the producer sent none."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class TopicReader:
    """Reads every record of given partitions; commits nothing.

    No error ends it. While brokers are away or the topic does not exist, `read` returns nothing and logs a warning
    every 10 s. After an offset that retention has removed it goes on at the earliest one that exists.

    Args:
      start: {partition: offset of the first record to read}.
    """

    def __init__(self, connection: KafkaConnection, topic: str, start: Mapping[int, int]) -> None:
        self.topic = topic
        self._positions = dict(start)
        self._ends: dict[int, int] = {}
        self._ended: set[int] = set()
        self._went_back = self._heard = False
        self._quiet_until = 0.0
        self._consumer: Consumer = make_consumer(
            connection,
            group_id="millrace-reader",
            enable_partition_eof=True,
            reconnect_backoff_ms=_RECONNECT_MS,
            reconnect_backoff_max_ms=_RECONNECT_MAX_MS,
            topic_metadata_refresh_interval_ms=30_000,
        )
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in start.items()])

    @property
    def heard(self) -> bool:
        """Whether a broker has answered with a record of the topic, or with the word that there is none."""
        return self._heard

    @property
    def went_back(self) -> bool:
        """Whether a partition was found shorter than where the reader stood: it was made anew, or cut off.

        The reader has then gone on at the earliest record that exists.
        """
        return self._went_back

    @property
    def positions(self) -> dict[int, int]:
        """{partition: offset of the next record}."""
        return dict(self._positions)

    def read(self, max_records: int = 500, seconds: float = _POLL_SECONDS) -> list[Record]:
        """Up to `max_records` next records, as soon as there is one; [] after `seconds` without any."""
        records = []
        for message in self._consumer.consume(max_records, seconds):
            error, partition, offset = message.error(), message.partition(), message.offset()
            if error is None:
                self._move(partition, offset, offset + 1)
                records.append(Record(partition, offset, message.key(), message.value(), message.timestamp()[1]))
            elif error.code() == KafkaError._PARTITION_EOF:
                self._move(partition, offset, offset)
                self._ended.add(partition)
            else:
                self._warn(str(error))
        return records

    def reached_end(self) -> bool:
        """Whether every partition was read up to the end that it had at the first call that a broker answered.

        The end of a partition is taken from the broker's word that there is no more: what ends a transaction takes an
        offset too, and records of one that is open are not read.
        """
        for partition in self._positions.keys() - self._ended:
            if partition not in self._ends:
                try:
                    _, end = self._consumer.get_watermark_offsets(
                        TopicPartition(self.topic, partition), timeout=_END_REQUEST_SECONDS
                    )
                except KafkaException as error:
                    self._warn(str(error.args[0]))
                    return False
                if end < self._positions[partition]:
                    return False  # a new topic, or a transaction that is open: the broker's word follows
                self._ends[partition] = end
        return all(
            partition in self._ended or position >= self._ends[partition]
            for partition, position in self._positions.items()
        )

    def _move(self, partition: int, offset: int, position: int) -> None:
        self._heard = True
        self._went_back = self._went_back or offset < self._positions[partition]
        self._positions[partition] = position

    def close(self) -> None:
        self._consumer.close()

    def _warn(self, problem: str) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _LOG_EVERY_SECONDS
            _LOG.warning("reading %s: %s; trying again", self.topic, problem)
