"""When a reader may commit an offset to its consumer group: not before the records below it have left the feed.

A feed that starts again from the group reads on from the committed offsets. Records that a stateful step still holds in
memory must lie at or above them, or they would be lost with the process.
"""

from collections import deque
from collections.abc import Callable

from apache_beam.utils.timestamp import Timestamp

from millrace.pipelines.kafka.pace import UnderWay
from millrace.runtime.kafka_positions import Positions

# A commit is a request to the brokers; more than one per second would tell nobody anything new.
_INTERVAL_SECONDS = 1.0


class TrailingCommits:
    """Commits offsets some time after the bundle that ended at them became final, at most once per second.

    That time is the longest for which a stateful step holds a row when nothing is late. What is late is not counted:
    a bundle that writes and is not acknowledged may hold rows that were due when it began. Where the stateful step
    tells how far it has come, the time begins when it has processed the records, and does not run out while its oldest
    row is late.

    Args:
      commit: takes {(topic, partition): offset}.
      delay: that time, in seconds; 0 where no step holds anything back.
      clock: seconds, monotonic.
      oldest_write: when, on `clock`, the oldest write that is not acknowledged began; infinity when there is none.
      under_way: what the stateful step has not processed yet; None where it does not tell.
    """

    def __init__(
        self,
        commit: Callable[[Positions], None],
        delay: float,
        clock: Callable[[], float],
        oldest_write: Callable[[], float],
        under_way: UnderWay | None = None,
    ) -> None:
        self._commit, self._delay, self._clock = commit, delay, clock
        self._oldest_write, self._under_way = oldest_write, under_way
        self._final: deque[tuple[Timestamp, Positions]] = deque()  # not processed yet
        self._waiting: deque[tuple[float, Positions]] = deque()  # processed at that time, and maybe still held
        self._committed: Positions = {}
        self._next_commit = 0.0
        self._ended = False

    def end(self) -> None:
        """The client is gone: what becomes final from now on is committed by a later reader."""
        self._ended = True

    def reached(self, positions: Positions, read_at: Timestamp) -> None:
        """A bundle became final that ended at `positions` and whose last block was read at `read_at`."""
        if self._ended:
            return
        now = self._clock()
        self._final.append((read_at, positions))
        while self._final and (self._under_way is None or self._under_way.processed(self._final[0][0])):
            self._waiting.append((now, self._final.popleft()[1]))
        if now < self._next_commit:
            return
        on_time = self._on_time(now)
        ripe: Positions = {}
        while self._waiting and self._waiting[0][0] <= on_time - self._delay:
            ripe = self._waiting.popleft()[1]
        if ripe and ripe != self._committed:
            self._commit(ripe)
            self._committed = ripe
        self._next_commit = now + _INTERVAL_SECONDS

    def _on_time(self, now: float) -> float:
        """Everything that was due by then has left."""
        if not self._delay:
            return now
        due = self._under_way.progress.due() if self._under_way else now
        return min(now, due, self._oldest_write())
