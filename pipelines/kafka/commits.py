"""Which offsets a reader may commit to its consumer group: those below which the feed holds nothing and owes nothing.

A feed that starts again from the group reads on from the committed offsets. Rows that a stateful step still holds in
memory, and rows whose train blocks are not acknowledged, must lie at or above them, or they would be lost with the
process. So a reader commits floors (`millrace.pipelines.kafka.pace.FeedProgress.floor`): no delay stands for them.
"""

from collections.abc import Callable, Iterable

from millrace.runtime.kafka_positions import Partition, Positions

# A commit is a request to the brokers; more than one per second would tell nobody anything new.
_INTERVAL_SECONDS = 1.0


class FloorCommits:
    """Commits floors, at most once per second; without floors, what is final.

    Args:
      commit: takes {(topic, partition): offset}.
      clock: seconds, monotonic.
      floors: takes (topic, partition)s and returns the floors of those of which they are known; None where no step
        holds anything back.
    """

    def __init__(
        self,
        commit: Callable[[Positions], None],
        clock: Callable[[], float],
        floors: Callable[[Iterable[Partition]], Positions] | None = None,
    ) -> None:
        self._commit, self._clock, self._floors = commit, clock, floors
        self._committed: Positions = {}
        self._next_commit = 0.0
        self._ended = False

    def end(self) -> None:
        """The client is gone: what becomes final from now on is committed by a later reader."""
        self._ended = True

    def reached(self, positions: Positions) -> None:
        """A bundle became final that ended at `positions`."""
        now = self._clock()
        if self._ended or now < self._next_commit:
            return
        self._next_commit = now + _INTERVAL_SECONDS
        allowed = positions if self._floors is None else self._floors(positions)
        new = {key: offset for key, offset in allowed.items() if self._committed.get(key) != offset}
        if new:
            self._commit(new)
            self._committed |= new
