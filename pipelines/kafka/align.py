"""Gives the records of several Kafka partitions in the order of their time stamps while any partition lags.

A reader that catches up gets what its brokers answer first: minutes of one partition, then minutes of another. The join
counts a window from the arrival of a row, so it would see impressions whose actions arrive long after the window. So a
record waits here while it is ahead of a partition that has more to read. Once every partition is read to its end,
nothing waits.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.runtime.kafka_positions import Partition
from millrace.runtime.kafka_records import TopicRecords, join_records

DEFAULT_ALIGN_MS = 500
"""How far a record may be ahead: far less than a window of the join, and more than a read of a busy partition spans."""

SILENT_SECONDS = 5.0
"""After the others have waited this long in vain for a partition, they wait for it no more until it gives again.

The next time they wait half as long, and so on until the partition is seen at its end. An open transaction hides the
end of a partition for as long as it is open; without the halving the others would wait each time it gives a little.
"""

# A partition is paused when it holds this many full reads, or as many bytes as the client buffers. More would only cost
# memory: what is held is given before anything else is read.
_HELD_READS = 4
_HELD_BYTES = 16 << 20
# The time between two reads counts as waiting up to this many seconds: a reader that nobody asks does not wait.
_MAX_WAIT_SECONDS = 1.0
_NEVER_MS = 1 << 62  # later than any time stamp


@dataclass
class _Partition:
    """The records that are held of a partition, and how far it has come.

    Attributes:
      records: those that are held.
      times: for each of them, in ms, the newest time stamp up to it; so they ascend.
      nbytes: bytes of the values that are held.
      newest_ms: the newest time stamp that was read; 0 before the first record.
      ended_ms: when the partition was last seen at its end; a record after that is seldom older.
      at_end: whether it was at its end when this was last asked.
      waited: seconds that other partitions have waited for it.
      patience: seconds that they wait at most.
    """

    records: TopicRecords
    times: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    nbytes: int = 0
    newest_ms: int = 0
    ended_ms: int = 0
    at_end: bool = False
    waited: float = 0.0
    patience: float = SILENT_SECONDS

    def take(self, records: TopicRecords, now_ms: int) -> None:
        """Holds records that were read just now."""
        # A producer may write a time stamp of the future; the other partitions would have to wait until then.
        times = np.minimum(np.asarray(records.timestamps_ms, np.int64), now_ms)
        times = np.maximum(np.maximum.accumulate(times), self.newest_ms)
        self.times = np.concatenate([self.times, times])
        self.records = join_records([self.records, records])
        self.nbytes += records.nbytes
        self.newest_ms = int(times[-1])

    def note_wait(self, at_end: bool, waited: float, now_ms: int) -> bool:
        """Notes that others have waited `waited` seconds more; returns whether they now give up for the first time."""
        self.at_end = at_end
        if at_end:
            self.ended_ms, self.waited, self.patience = now_ms, 0.0, SILENT_SECONDS
            return False
        if self.held:
            self.waited = 0.0
            return False
        was_silent = self.silent
        self.waited += waited
        if was_silent or not self.silent:
            return False
        self.patience /= 2
        return self.patience == SILENT_SECONDS / 2

    def cut(self, count: int) -> TopicRecords:
        """Takes the first `count` records out."""
        head, self.records = self.records.slice(0, count), self.records.slice(count)
        self.times = self.times[count:]
        self.nbytes -= head.nbytes
        return head

    @property
    def held(self) -> int:
        """Records that are held."""
        return len(self.times)

    @property
    def silent(self) -> bool:
        """Whether others have given up waiting for it."""
        return self.waited >= self.patience

    @property
    def reached_ms(self) -> int:
        """No record that comes next is older, as a rule; `_NEVER_MS` when nobody has to wait for this partition."""
        if self.at_end or self.silent:
            return _NEVER_MS
        return max(self.newest_ms, self.ended_ms)


class PartitionAligner:
    """Holds records back that are more than `align_ms` ahead of a partition that has more to read.

    One call of `give` may span any time, but no record that stays is older than one that is given. A partition that has
    not answered yet counts as one that has more to read.

    Args:
      partitions: (topic, partition), as in `add`.
      align_ms: in ms of record time stamps.
      max_records: most records of a topic that one call of `give` returns; more when more have the same time stamp, and
        then in several elements.
      clock: seconds, monotonic.
      wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        partitions: Iterable[Partition],
        align_ms: int = DEFAULT_ALIGN_MS,
        max_records: int = 2000,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._align_ms, self._max_records = align_ms, max_records
        self._clock, self._wall_clock = clock, wall_clock
        self._partitions: dict[Partition, _Partition] = {}
        self._paused: set[Partition] = set()
        self._last_take = clock()
        self.add(partitions)

    def add(self, partitions: Iterable[Partition]) -> None:
        """Aligns these partitions as well."""
        for topic, number in partitions:
            self._partitions[topic, number] = _Partition(TopicRecords(topic))

    def remove(self, partitions: Collection[Partition]) -> int:
        """Aligns these partitions no more; returns how many of their records were held, which are dropped."""
        self._paused -= set(partitions)
        return sum(self._partitions.pop(key).held for key in partitions)

    def held(self, key: Partition) -> int:
        """Records of the partition that were read and not given."""
        return self._partitions[key].held

    def take(self, read: Iterable[TopicRecords], lags: Mapping[Partition, int | None]) -> list[Partition]:
        """Takes the records that were read just now.

        Args:
          lags: how many records each partition has that were not read; None, or left out, when that is unknown.

        Returns:
          Partitions that others give up waiting for (`SILENT_SECONDS`), the first time since they were at their end.
        """
        now, now_ms = self._clock(), int(self._wall_clock() * 1000)
        waited = min(now - self._last_take, _MAX_WAIT_SECONDS) if self._any_held() else 0.0
        self._last_take = now
        for records in read:
            for number, part in records.by_partition().items():
                self._partitions[records.topic, number].take(part, now_ms)
        return [key for key, each in self._partitions.items() if each.note_wait(lags.get(key) == 0, waited, now_ms)]

    def give(self) -> list[TopicRecords]:
        """Takes out the oldest records that need not wait, each element of one topic; [] when there are none."""
        until_ms = self._until_ms()
        parts = defaultdict(list)
        for (topic, _), each in self._partitions.items():
            count = _count_until(each, until_ms)
            if count:
                parts[topic].append(each.cut(count))
        return [piece for cut in parts.values() for piece in self._pieces(join_records(cut))]

    def throttle(self) -> tuple[Collection[Partition], Collection[Partition]]:
        """Returns (partitions to pause, because much of them is held; partitions to resume)."""
        full = {key for key in self._partitions if self._fill(key) > 1.0} - self._paused
        drained = {key for key in self._paused if self._fill(key) <= 0.5}
        self._paused = (self._paused | full) - drained
        return full, drained

    def _until_ms(self) -> int:
        """The time stamp up to which records are given next: all that need not wait, or `max_records` of a topic."""
        limit = min((each.reached_ms for each in self._partitions.values()), default=_NEVER_MS) + self._align_ms
        times = defaultdict(list)
        for (topic, _), each in self._partitions.items():
            times[topic].append(each.times[: _count_until(each, limit)])
        return min([limit, *(_nth_time(np.concatenate(some), self._max_records) for some in times.values())])

    def _pieces(self, records: TopicRecords) -> Iterator[TopicRecords]:
        for start in range(0, len(records.values), self._max_records):
            yield records.slice(start, start + self._max_records)

    def _fill(self, key: Partition) -> float:
        """How much of what a partition may hold it holds; more than 1.0 is too much."""
        each = self._partitions[key]
        return max(each.held / (_HELD_READS * self._max_records), each.nbytes / _HELD_BYTES)

    def _any_held(self) -> bool:
        return any(each.held for each in self._partitions.values())


def _count_until(partition: _Partition, limit_ms: int) -> int:
    return int(partition.times.searchsorted(limit_ms, "right"))


def _nth_time(times: np.ndarray, n: int) -> int:
    """The time of the `n`th record, counted from the oldest; `_NEVER_MS` when there are fewer."""
    return int(np.partition(times, n - 1)[n - 1]) if len(times) >= n else _NEVER_MS
