"""Event time of the blocks of a Kafka reader: time stamp policies, and a watermark that idle partitions do not stop."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from millrace.runtime.kafka_positions import Partition
from millrace.runtime.kafka_records import KafkaReadError, TopicRecords

TimestampPolicy = Literal["record_time", "log_append_time", "processing_time"]
"""Whose clock dates a record: that of its producer, of its broker, or of the reader."""

POLICIES: tuple[str, ...] = get_args(TimestampPolicy)

# Longer than the longest pause of a live producer, as a rule; shorter than a user waits for a window to close.
_IDLE_SECONDS = 2.0


def record_times(records: TopicRecords, policy: TimestampPolicy, now: float) -> dict[int, Timestamp]:
    """{partition: time of its oldest record among `records`}.

    A producer may write any time stamp. One of the future would lift the watermark for ever, so `now` is the latest.
    A record without a time stamp counts as one of 1970.

    Args:
      now: seconds since the epoch.

    Raises:
      KafkaReadError: the policy is log_append_time and the topic does not keep it.
    """
    if policy == "processing_time":
        return dict.fromkeys(records.partitions, Timestamp.of(now))
    if policy == "log_append_time" and not records.append_times:
        raise KafkaReadError(
            f"{records.topic} does not keep log append times; set its message.timestamp.type=LogAppendTime, "
            "or choose timestamp_policy record_time"
        )
    partitions, times_ms = np.asarray(records.partitions), np.asarray(records.timestamps_ms)
    return {
        partition: Timestamp.of(min(float(times_ms[partitions == partition].min()) / 1000, now))
        for partition in set(records.partitions)
    }


@dataclass
class _Partition:
    watermark: Timestamp
    last_read: float
    caught_up: bool = False


class PartitionWatermarks:
    """The watermark of a split: the lowest watermark of its active partitions.

    The watermark of a partition is the oldest time of its last block. A partition is idle, and holds the watermark of
    the split back no more, when it was read to its end and has given nothing for `idle_seconds`. While all are idle the
    watermark is the clock minus `idle_seconds`. It never goes back.

    Args:
      clock: seconds, monotonic.
      wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        partitions: Iterable[Partition],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        self._clock, self._wall_clock, self._idle_seconds = clock, wall_clock, idle_seconds
        self._partitions: dict[Partition, _Partition] = {}
        self._value = MIN_TIMESTAMP
        self.add(partitions)

    def add(self, partitions: Iterable[Partition]) -> None:
        """Counts these partitions as well."""
        for key in partitions:
            self._partitions[key] = _Partition(MIN_TIMESTAMP, self._clock())

    def remove(self, partitions: Iterable[Partition]) -> None:
        """Counts these partitions no more."""
        for key in partitions:
            del self._partitions[key]

    def read(self, topic: str, times: dict[int, Timestamp]) -> None:
        """A block of `topic` was given; `times` is its `record_times`."""
        now = self._clock()
        for number, oldest in times.items():
            partition = self._partitions[topic, number]
            partition.watermark, partition.last_read = max(partition.watermark, oldest), now

    def caught_up(self, key: Partition, yes: bool) -> None:
        """Notes whether the partition was read to its end."""
        self._partitions[key].caught_up = yes

    def value(self) -> Timestamp:
        """The watermark now."""
        silent_since = self._clock() - self._idle_seconds
        active = [
            each.watermark for each in self._partitions.values() if not each.caught_up or each.last_read >= silent_since
        ]
        idle = Timestamp.of(self._wall_clock() - self._idle_seconds)
        self._value = max(self._value, min(active, default=idle))
        return self._value
