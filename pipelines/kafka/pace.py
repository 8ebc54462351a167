"""How far a feed's stateful step has come, where it runs in the same process as the feed's readers.

Prism keeps whatever a reader gives in memory, without a limit. A reader that catches up would get minutes ahead of the
join and take its processor time. So the step tells how far it has come, and a reader waits while too many of its
records are not processed. By the same reports a reader knows what it may commit (`millrace.pipelines.kafka.commits`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from millrace.transforms.feed.spans import Span

# A runner's timer comes within a second, even on a busy machine. Later than this, its clock may have stepped back.
_LATE_SECONDS = 3.0


@dataclass
class _Report:
    """What one feed shard reported last."""

    ends: Mapping[int, int]
    floors: Mapping[int, int]
    due: float


class FeedProgress:
    """What the feed shards of the stateful step have processed and let go.

    Every shard gets a piece of every block, so what the slowest shard has processed, all have.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._shards = 0
        self._reports: dict[int, _Report] = {}

    def finished(
        self,
        shard: int,
        shards: int,
        ends: Mapping[int, int],
        floors: Mapping[int, int],
        due_seconds: float | None = None,
    ) -> None:
        """A bundle of `shard` has ended, and what it wrote is acknowledged.

        Args:
          shards: how many there are.
          ends: {source partition: offset below which the shard has processed everything}.
          floors: {source partition: offset below which it holds nothing either}.
          due_seconds: from now until something that it holds must leave; None when nothing is held.
        """
        due = float("inf") if due_seconds is None else self._clock() + due_seconds
        with self._lock:
            self._shards = shards
            self._reports[shard] = _Report(dict(ends), dict(floors), due)

    def processed(self, source_partition: int) -> int | None:
        """The offset below which all shards have processed everything; None while one has not reported."""
        return self._least(source_partition, lambda report: report.ends)

    def floor(self, source_partition: int) -> int | None:
        """The offset below which nothing is held or unsent in any shard; None while one has not reported."""
        return self._least(source_partition, lambda report: report.floors)

    def overdue(self) -> bool:
        """Whether something should have left a few seconds ago, so that the timer for it may have been lost."""
        with self._lock:
            due = min((report.due for report in self._reports.values()), default=float("inf"))
        return self._clock() > due + _LATE_SECONDS

    def _least(self, source_partition: int, of: Callable[[_Report], Mapping[int, int]]) -> int | None:
        with self._lock:
            if not self._reports or len(self._reports) < self._shards:
                return None
            found = [of(report).get(source_partition) for report in self._reports.values()]
        known = [offset for offset in found if offset is not None]
        return min(known) if len(known) == len(found) else None


@dataclass
class UnderWay:
    """Counts the records that one reader has given and the stateful step has not processed."""

    progress: FeedProgress
    _given: dict[int, tuple[int, int]] = field(default_factory=dict)

    def given(self, spans: Iterable[Span]) -> None:
        """The reader gave a block with these spans."""
        for span in spans:
            begin, _ = self._given.get(span.source_partition, (span.begin, 0))
            self._given[span.source_partition] = begin, span.after

    def records(self) -> int:
        """How many there are now; offsets without a record count too."""
        total = 0
        for number, (begin, after) in self._given.items():
            processed = self.progress.processed(number)
            total += max(0, after - (begin if processed is None else max(begin, processed)))
        return total
