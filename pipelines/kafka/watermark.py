"""Event time of what a Kafka reader gives: time stamp policies, and a watermark that no idle partition holds back."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from millrace.runtime.kafka_blocks import Block, KafkaReadError

TimestampPolicy = Literal["record_time", "log_append_time", "processing_time"]
"""Whose clock says when a record happened: its producer's, its broker's, or that of the reader."""

POLICIES: tuple[str, ...] = get_args(TimestampPolicy)

_IDLE_SECONDS = 2.0

Partition = tuple[str, int]


def record_times(block: Block, policy: TimestampPolicy, now: float) -> dict[int, Timestamp]:
    """{partition: time of its oldest record in `block`}.

    A producer may claim any time at all; a time to come would hold the watermark there for ever, so that `now` is the
    most. A record without a time counts as one of 1970.

    Args:
      now: seconds since the epoch.

    Raises:
      KafkaReadError: the policy is log_append_time and the topic does not keep it.
    """
    if policy == "processing_time":
        return dict.fromkeys(block.partitions, Timestamp.of(now))
    if policy == "log_append_time" and not block.append_times:
        raise KafkaReadError(
            f"{block.topic} does not keep log append times; set its message.timestamp.type=LogAppendTime, "
            "or choose timestamp_policy record_time"
        )
    partitions, times_ms = np.asarray(block.partitions), np.asarray(block.timestamps_ms)
    return {
        partition: Timestamp.of(min(float(times_ms[partitions == partition].min()) / 1000, now))
        for partition in set(block.partitions)
    }


@dataclass
class _Partition:
    watermark: Timestamp
    last_read: float
    caught_up: bool = False


class PartitionWatermarks:
    """The watermark of a split: the least of its active partitions' watermarks.

    A partition's watermark is the oldest time of its last block. It is idle, and holds nothing back, when it was read
    to its end and has given nothing for `idle_seconds`. Where all are idle the watermark follows the clock, that much
    behind. It never goes back.

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
        """Takes these partitions into account as well."""
        for key in partitions:
            self._partitions[key] = _Partition(MIN_TIMESTAMP, self._clock())

    def read(self, topic: str, times: dict[int, Timestamp]) -> None:
        """A block gave records; `times` as of `record_times`."""
        now = self._clock()
        for number, oldest in times.items():
            partition = self._partitions[topic, number]
            partition.watermark, partition.last_read = max(partition.watermark, oldest), now

    def caught_up(self, key: Partition, yes: bool) -> None:
        """Whether the partition was read to its end."""
        self._partitions[key].caught_up = yes

    def value(self) -> Timestamp:
        silent_since = self._clock() - self._idle_seconds
        active = [
            each.watermark for each in self._partitions.values() if not each.caught_up or each.last_read >= silent_since
        ]
        idle = Timestamp.of(self._wall_clock() - self._idle_seconds)
        self._value = max(self._value, min(active, default=idle))
        return self._value
