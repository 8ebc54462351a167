"""Predictions and labels by second of event time, given out once all labels of the second have come."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from millrace.transforms.batch.record_batch import is_valid_label

_CHUNK_ROWS = 1_024
_FEW_ROWS = 16  # of a chunk: so few rows with a wrong clock set neither the newest time nor the lag
_LAG_CHUNKS = 1_024  # a million rows: long enough that a lag once seen is waited for again
_SLACK, _SLACK_MS = 1.25, 1_000
_MAX_COHORTS = 100_000  # more than a day of seconds, some 30 MB
_LEAST_ROWS = 64


class Cohort(NamedTuple):
    """Rows of one second or more.

    Attributes:
      rows: float64 [heads], how many have a label.
      predicted, positive: float64 [heads], their mean probability and label.
      begun_ms: wall clock when the first of them came.
    """

    rows: np.ndarray
    predicted: np.ndarray
    positive: np.ndarray
    begun_ms: int


class Cohorts:
    """Collects rows until their cohort is complete.

    Negatives come a window later than positives, so that only a complete second of event time has both in their true
    proportion. A second is complete when event time and wall clock have both gone on by more than the largest lag of
    the newest million rows, with slack. The wall clock counts since a restarted feed or trainer reads partitions one
    after the other, each faster than event time. Rows that come later all the same show that cohorts were given out
    incomplete: `outgrown` says so, and what was concluded from them is void.

    Rows whose event times are all equal, or missing, never make a cohort complete.

    Attributes:
      outgrown: whether rows of the newest batch belong to cohorts that had been given out.
    """

    def __init__(self, heads: int) -> None:
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pending_since_ms = 0
        self._newest_ms = 0
        self._must_drop = True  # the first rows may be the second half of their cohorts
        self._dropped = self._given_out = 0  # newest seconds that are not collected any more
        self._lags: deque[tuple[int, int]] = deque(maxlen=_LAG_CHUNKS)
        self._sums: dict[int, tuple[int, np.ndarray]] = {}  # {second: (wall ms of its first row, [3, heads])}
        self._part, self._part_begun_ms = np.zeros((3, heads)), 0
        self.outgrown = False

    @property
    def begun_ms(self) -> int | None:
        """Wall clock when the first row came of what is not given out yet."""
        if self._part.any():
            return self._part_begun_ms
        return min((begun for begun, _ in self._sums.values()), default=None)

    def past(self) -> dict[str, Any]:
        """What `remember` takes, as JSON."""
        return {"newest_ms": self._newest_ms, "lag_ms": list(self._lag())}

    def remember(self, past: Mapping[str, Any]) -> None:
        """Goes on from what `past` returned; cohorts that had begun by then are never complete."""
        self._newest_ms = int(past.get("newest_ms", 0))
        event_ms, wall_ms = past.get("lag_ms", (0, 0))
        self._lags.append((int(event_ms), int(wall_ms)))

    def drop(self) -> None:
        """Forgets all cohorts that have begun before the next chunk of rows: rows of them are missing."""
        self._must_drop = True

    def add(self, times_ms: np.ndarray, labels: np.ndarray, logits: np.ndarray, now_ms: int) -> list[Cohort]:
        """The cohorts that are complete once the batch is added.

        Args:
          times_ms: int64 [rows], event times.
          labels: float32 [rows, heads].
          logits: float64 [rows, heads], corrected for sampling.
          now_ms: wall clock.
        """
        self.outgrown = False
        if not self._pending:
            self._pending_since_ms = now_ms
        self._pending.append((times_ms, labels, logits))
        if sum(len(each[0]) for each in self._pending) < _CHUNK_ROWS:
            return []
        times, labels, logits = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        self._pending = []
        known = is_valid_label(labels)
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
        figures = np.stack([known, known * probabilities, known & (labels > 0.5)], 1).astype(np.float64)
        self._take(times, figures, now_ms)
        return self._complete(now_ms)

    def _take(self, times: np.ndarray, figures: np.ndarray, now_ms: int) -> None:
        ordered, since_ms = np.sort(times), self._pending_since_ms
        self._newest_ms = max(self._newest_ms, int(ordered[-_FEW_ROWS]))
        if self._must_drop:
            self._forget()
        seconds, where = np.unique(times // 1_000, return_inverse=True)
        begun = np.array([self._sums[each][0] if each in self._sums else since_ms for each in seconds.tolist()])
        late = (seconds <= self._given_out) & (seconds > self._dropped)
        self.outgrown = int(late[where].sum()) >= _FEW_ROWS
        wall_lag = int(np.sort(now_ms - begun[where])[-_FEW_ROWS])
        self._lags.append((self._newest_ms - int(ordered[_FEW_ROWS]), wall_lag))
        sums = np.zeros((len(seconds), *figures.shape[1:]))
        np.add.at(sums, where, figures)
        for second, first_ms, each in zip(seconds.tolist(), begun.tolist(), sums, strict=True):
            if second > self._given_out:
                before = self._sums.get(second)
                self._sums[second] = (first_ms, each if before is None else before[1] + each)
        if self.outgrown or len(self._sums) > _MAX_COHORTS:
            self._forget()

    def _forget(self) -> None:
        self._sums.clear()
        self._part = np.zeros_like(self._part)
        self._dropped = self._given_out = max(self._given_out, self._newest_ms // 1_000)
        self._must_drop = False

    def _complete(self, now_ms: int) -> list[Cohort]:
        event_ms, wall_ms = (_SLACK * lag + _SLACK_MS for lag in self._lag())
        complete = []
        for second in sorted(self._sums):
            if (second + 1) * 1_000 > self._newest_ms - event_ms or self._sums[second][0] > now_ms - wall_ms:
                break
            self._given_out = second
            begun_ms, sums = self._sums.pop(second)
            self._part_begun_ms = min(self._part_begun_ms, begun_ms) if self._part.any() else begun_ms
            self._part = self._part + sums
            if self._part[0].max() >= _LEAST_ROWS:
                rows = np.maximum(self._part[0], 1)
                complete.append(Cohort(self._part[0], self._part[1] / rows, self._part[2] / rows, self._part_begun_ms))
                self._part = np.zeros_like(self._part)
        return complete

    def _lag(self) -> tuple[int, int]:
        """Largest (event time, wall clock) lag, ms."""
        return max((event for event, _ in self._lags), default=0), max((wall for _, wall in self._lags), default=0)
