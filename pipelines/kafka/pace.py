"""How far a feed's stateful step has come behind its readers, where both run in one process.

Prism holds whatever a reader gives in its memory, without bounds: a reader that catches up would be minutes ahead of
the join, starve it, and commit offsets of records that nobody has processed. So the join tells how far it has come, a
reader waits while too many of its records are under way, and commits trail behind the join. What tells a record's place
is the element's time stamp, which for such readers is the time of reading.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

# Records of which the join never hears (dead letters) count as processed when it has had nothing to do for so long.
_QUIET_SECONDS = 5.0


class Progress:
    """What each shard of the stateful step has processed, and when the oldest of what it holds is due.

    A block has rows for nearly every shard, and blocks arrive in the order of their times: the slowest shard tells.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._read_at: dict[int, Timestamp] = {}
        self._due: dict[int, float] = {}
        self._heard = clock()

    def reached(self, shard: int, read_at: Timestamp | None, due_seconds: float | None) -> None:
        """A bundle of `shard` is about to end.

        Args:
          read_at: everything read up to then was processed; None when only time has passed.
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
        """Everything read up to then was processed."""
        with self._lock:
            return min(self._read_at.values(), default=MIN_TIMESTAMP)

    def due(self) -> float:
        """When, on this clock, the oldest row that is held must leave; infinity when nothing is held."""
        with self._lock:
            return min(self._due.values(), default=float("inf"))

    def quiet(self) -> bool:
        """Whether nothing was heard for a while."""
        with self._lock:
            return self._clock() - self._heard > _QUIET_SECONDS


_progress: dict[str, Progress] = {}
_lock = threading.Lock()


def progress_of(feed_id: str) -> Progress:
    """The one of this process and feed."""
    with _lock:
        return _progress.setdefault(feed_id, Progress())


@dataclass
class UnderWay:
    """Records that a reader has given and the stateful step has not processed.

    Args:
      idle: whether that step has no bundle at work.
    """

    progress: Progress
    idle: Callable[[], bool]
    _blocks: deque[tuple[Timestamp, int]] = field(default_factory=deque)
    _records: int = 0

    def given(self, read_at: Timestamp, records: int) -> None:
        self._blocks.append((read_at, records))
        self._records += records

    def records(self) -> int:
        reached = self.progress.read_at()
        while self._blocks and self._blocks[0][0] <= reached:
            self._records -= self._blocks.popleft()[1]
        if self._blocks and self.progress.quiet() and self.idle():
            self._blocks.clear()
            self._records = 0
        return self._records

    def processed(self, read_at: Timestamp) -> bool:
        """Whether everything read up to then was."""
        self.records()
        return not self._blocks or self._blocks[0][0] > read_at
