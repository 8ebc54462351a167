"""Records of several Kafka partitions in the order of their time stamps, within a slack, while any of them lags.

A reader that catches up is given what its brokers answer first: minutes of one partition, then minutes of another. A
step that counts time from the arrival of a row, such as the join, would see impressions whose actions come long after
their window. So what is ahead of a partition that has more to read is held back. At the ends nothing is.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.runtime.kafka_blocks import Block, join_blocks

DEFAULT_ALIGN_MS = 500

SILENT_SECONDS = 5.0
"""A partition that gives nothing for so long while others wait for it holds them back no more, until it gives again.

The next time they wait half as long, and so on until it is seen at its end: an open transaction hides an end.
"""

_HELD_BLOCKS = 4
_HELD_BYTES = 16 << 20  # a partition; as much as the client buffers
# What passes between two reads counts for no more: a reader that is not asked does not wait.
_MOST_BETWEEN_READS = 1.0
_NEVER_MS = 1 << 62

Partition = tuple[str, int]


@dataclass
class _Partition:
    """What is held of a partition, and how far it has come.

    Attributes:
      times: of the records of `block`, in ms: the newest time up to there, so that they ascend.
      newest_ms: time of the newest record that was read; 0 before the first.
      ended_ms: when it was last seen at its end; what comes after that is no older, as a rule.
      waited: seconds that others have waited for it.
      patience: seconds that they wait at most.
    """

    block: Block
    times: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    nbytes: int = 0
    newest_ms: int = 0
    ended_ms: int = 0
    at_end: bool = False
    waited: float = 0.0
    patience: float = SILENT_SECONDS

    def take(self, block: Block, now_ms: int) -> None:
        # A producer may claim a time to come, for which the other partitions would have to wait.
        times = np.minimum(np.asarray(block.timestamps_ms, np.int64), now_ms)
        times = np.maximum(np.maximum.accumulate(times), self.newest_ms)
        self.times = np.concatenate([self.times, times])
        self.block = join_blocks([self.block, block])
        self.nbytes += block.nbytes
        self.newest_ms = int(times[-1])

    def look(self, at_end: bool, waited: float, now_ms: int) -> bool:
        """Notes that others have `waited` seconds more; returns whether they do so no longer, for the first time."""
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

    def cut(self, count: int) -> Block:
        """Takes the first records out."""
        head, self.block = self.block.slice(0, count), self.block.slice(count)
        self.times = self.times[count:]
        self.nbytes -= head.nbytes
        return head

    @property
    def held(self) -> int:
        return len(self.times)

    @property
    def silent(self) -> bool:
        return self.waited >= self.patience

    @property
    def reached_ms(self) -> int:
        """What comes next is no older; `_NEVER_MS` when nobody has to wait for it."""
        if self.at_end or self.silent:
            return _NEVER_MS
        return max(self.newest_ms, self.ended_ms)


class PartitionAligner:
    """Holds records back that are more than `align_ms` ahead of a partition that has more to read.

    What is given in one go spans any time, but leaves nothing older behind. A partition of which nothing is known yet
    has more to read.

    Args:
      max_records: of a topic that are given in one go, unless more have the same time.
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
        """Takes these partitions into account as well."""
        for topic, number in partitions:
            self._partitions[topic, number] = _Partition(Block(topic))

    def held(self, key: Partition) -> int:
        """Records of the partition that were read and not given."""
        return self._partitions[key].held

    def take(self, blocks: Iterable[Block], lags: Mapping[Partition, int | None]) -> list[Partition]:
        """Takes what was read just now.

        Args:
          lags: how many records each partition has beyond what was read; None, or left out, when nobody knows.

        Returns:
          Partitions that have become silent (`SILENT_SECONDS`) for the first time since they were at their end.
        """
        now, now_ms = self._clock(), int(self._wall_clock() * 1000)
        waited = min(now - self._last_take, _MOST_BETWEEN_READS) if self._any_held() else 0.0
        self._last_take = now
        for block in blocks:
            for number, part in block.by_partition().items():
                self._partitions[block.topic, number].take(part, now_ms)
        return [key for key, each in self._partitions.items() if each.look(lags.get(key) == 0, waited, now_ms)]

    def give(self) -> list[Block]:
        """The oldest records that are held, in blocks of one topic; [] when all that is held has to wait."""
        until_ms = self._until_ms()
        parts = defaultdict(list)
        for (topic, _), each in self._partitions.items():
            count = _count_until(each, until_ms)
            if count:
                parts[topic].append(each.cut(count))
        return [piece for blocks in parts.values() for piece in self._pieces(join_blocks(blocks))]

    def throttle(self) -> tuple[Collection[Partition], Collection[Partition]]:
        """The partitions to read no further for now, of which much is held, and those to go on with."""
        full = {key for key in self._partitions if self._fill(key) > 1.0} - self._paused
        drained = {key for key in self._paused if self._fill(key) <= 0.5}
        self._paused = (self._paused | full) - drained
        return full, drained

    def _until_ms(self) -> int:
        """The records up to then are given next: all that need not wait, or the oldest of them."""
        limit = min((each.reached_ms for each in self._partitions.values()), default=_NEVER_MS) + self._align_ms
        times = defaultdict(list)
        for (topic, _), each in self._partitions.items():
            times[topic].append(each.times[: _count_until(each, limit)])
        return min([limit, *(_nth_time(np.concatenate(some), self._max_records) for some in times.values())])

    def _pieces(self, block: Block) -> Iterator[Block]:
        for start in range(0, len(block.values), self._max_records):
            yield block.slice(start, start + self._max_records)

    def _fill(self, key: Partition) -> float:
        each = self._partitions[key]
        return max(each.held / (_HELD_BLOCKS * self._max_records), each.nbytes / _HELD_BYTES)

    def _any_held(self) -> bool:
        return any(each.held for each in self._partitions.values())


def _count_until(partition: _Partition, limit_ms: int) -> int:
    return int(partition.times.searchsorted(limit_ms, "right"))


def _nth_time(times: np.ndarray, n: int) -> int:
    """The time of the `n`th record from the oldest; `_NEVER_MS` when there are fewer."""
    return int(np.partition(times, n - 1)[n - 1]) if len(times) >= n else _NEVER_MS
