"""How far a feed's stateful step has come compared with its readers, where all of them run in one process.

Prism keeps whatever a reader gives in memory, without a limit. A reader that catches up would get minutes ahead of the
join, take its processor time, and commit offsets of records that nobody has processed. So the join tells how far it has
come, a reader waits while too many of its records are not processed, and commits wait for the join. A record's place is
told by the time stamp of its element, which such a reader sets to the time of reading.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

# Dead letters never reach the join. They count as processed once it has had nothing to do for this long: longer than a
# bundle takes.
_QUIET_SECONDS = 5.0


class JoinProgress:
    """What each shard of the stateful step has processed, and when the oldest row that it holds is due.

    A block has rows for nearly every shard, and blocks arrive in the order of their time stamps. So what the slowest
    shard has processed, all shards have.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._read_at: dict[int, Timestamp] = {}
        self._due: dict[int, float] = {}
        self._heard = clock()

    def reached(self, shard: int, read_at: Timestamp | None, due_seconds: float | None) -> None:
        """A bundle of `shard` is about to end.

        Args:
          read_at: everything that was read up to then is processed; None when only time has passed.
          due_seconds: from now until the oldest row that is held must leave, negative when it is late; None when
            nothing is held.
        """
        with self._lock:
            now = self._clock()
            if read_at is not None:
                self._read_at[shard] = max(read_at, self._read_at.get(shard, read_at))
            self._due[shard] = float("inf") if due_seconds is None else now + due_seconds
            self._heard = now

    def read_at(self) -> Timestamp:
        """Everything that was read up to then is processed."""
        with self._lock:
            return min(self._read_at.values(), default=MIN_TIMESTAMP)

    def due(self) -> float:
        """When, on this clock, the oldest row that is held must leave; infinity when nothing is held."""
        with self._lock:
            return min(self._due.values(), default=float("inf"))

    def quiet(self) -> bool:
        """Whether no shard has reported for `_QUIET_SECONDS`."""
        with self._lock:
            return self._clock() - self._heard > _QUIET_SECONDS


@dataclass
class UnderWay:
    """Counts the records that one reader has given and the stateful step has not processed.

    Args:
      idle: returns whether that step has no bundle at work.
    """

    progress: JoinProgress
    idle: Callable[[], bool]
    _blocks: deque[tuple[Timestamp, int]] = field(default_factory=deque)
    _records: int = 0

    def given(self, read_at: Timestamp, records: int) -> None:
        """The reader gave a block of `records` records with time stamp `read_at`."""
        self._blocks.append((read_at, records))
        self._records += records

    def records(self) -> int:
        """How many there are now."""
        reached = self.progress.read_at()
        while self._blocks and self._blocks[0][0] <= reached:
            self._records -= self._blocks.popleft()[1]
        if self._blocks and self.progress.quiet() and self.idle():
            self._blocks.clear()
            self._records = 0
        return self._records

    def processed(self, read_at: Timestamp) -> bool:
        """Whether everything that was read up to then is processed."""
        self.records()
        return not self._blocks or self._blocks[0][0] > read_at
