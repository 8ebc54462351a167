"""Judges the share of positives in whole seconds of event time."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from millrace.training.online.cohorts import Cohort, Cohorts
from millrace.training.task import Guard
from millrace.training.task.guard import BLOCK_ROWS

CLIP = 3.0  # standard deviations of one observation at most: one session of a strange user is no alarm
_SPREAD_BLOCKS = 16  # rows of a session follow each other: the spread of sums of so many observations has this in it
_LEAST_SPREAD = 1e-3  # a past without any spread would make everything strange
_SESSION_SPREAD = 1.5  # how much more than independent rows the rows of few sessions vary
_RISES = "predictions are higher than labels: positives are missing"
_FALLS = "predictions are lower than labels: negatives are missing, or labels are wrong"


class Calibration:
    """Raises an alarm when predictions leave the labels and the share of positives leaves its past, both one way.

    The share alone moves when other rows come, which predictions follow. Predictions alone move when the model learns
    from a stretch in which negatives are late. Only what moves the share against the predictions counts: the smaller of
    the two deviations goes into a cumulative sum.

    Attributes:
      alarm: index of the head and what is wrong, once it is.
      since_ms: Unix milliseconds; an alarm that is raised now questions nothing from before. None while nothing is
        judged.
    """

    def __init__(self, guard: Guard, heads: int) -> None:
        self._guard = guard
        self._cohorts = Cohorts(heads)
        past, self._gap = guard.past_rows // BLOCK_ROWS, guard.gap_rows // BLOCK_ROWS
        self._least = guard.least_rows // BLOCK_ROWS
        self._seen: deque[Cohort] = deque(maxlen=past + self._gap)
        self._sums = np.zeros((2, heads))
        self._begun_ms = 0
        self.alarm: tuple[int, str] | None = None
        self.since_ms: int | None = None

    def past(self) -> dict[str, Any]:
        """What `remember` takes, as JSON."""
        seen = [[np.round(each, 5).tolist() for each in cohort[:3]] for cohort in self._past()]
        return {"cohorts": self._cohorts.past(), "seen": seen}

    def remember(self, past: Mapping[str, Any], now_ms: int) -> None:
        """Goes on from what `past` returned; `now_ms` is the start."""
        self._cohorts.remember(past.get("cohorts", {}))
        for each in past.get("seen", ()):
            rows, predicted, positive = (np.array(values, np.float64) for values in each)
            self._seen.append(Cohort(rows, predicted, positive, now_ms))

    def drop(self) -> None:
        """Forgets cohorts of which rows are missing."""
        self._cohorts.drop()

    def add(self, times_ms: np.ndarray, labels: np.ndarray, logits: np.ndarray, now_ms: int) -> None:
        """Takes a batch, as `Cohorts.add` does."""
        for cohort in self._cohorts.add(times_ms, labels, logits, now_ms):
            self._judge(cohort)
            self._seen.append(cohort)
        if self._cohorts.outgrown:  # all of it came from cohorts that were not complete
            self._seen.clear()
            self._sums[:] = 0
        begun = self._cohorts.begun_ms if not self._sums.any() else self._begun_ms
        self.since_ms = begun if len(self._past()) >= self._least else None

    def _past(self) -> list[Cohort]:
        return list(self._seen)[: max(0, len(self._seen) - self._gap)]

    def _judge(self, cohort: Cohort) -> None:
        past = self._past()
        if len(past) < self._least:
            return
        share = np.stack([each.positive for each in past])
        excess = np.stack([each.predicted for each in past]) - share
        mean = share.mean(0)
        least = _SESSION_SPREAD * np.sqrt(np.maximum(mean * (1 - mean), 1e-6) / np.maximum(cohort.rows, 1))
        more = (cohort.predicted - cohort.positive - excess.mean(0)) / np.maximum(spread(excess), least)
        fewer = (mean - cohort.positive) / np.maximum(spread(share), least)
        z = np.stack([np.minimum(more, fewer), np.minimum(-more, -fewer)])
        if not self._sums.any():
            self._begun_ms = cohort.begun_ms
        self._sums = np.maximum(
            0.0, self._sums + np.where(cohort.rows > 0, np.minimum(z, CLIP), 0.0) - self._guard.slack
        )
        if self.alarm is None and self._sums.max() > self._guard.threshold:
            direction, head = np.unravel_index(int(self._sums.argmax()), self._sums.shape)
            self.alarm = int(head), (_RISES, _FALLS)[int(direction)]


def spread(past: np.ndarray) -> np.ndarray:
    """Standard deviation of one observation, [heads], with what neighbours have in common; `past` is [n, heads]."""
    total = np.cumsum(np.concatenate([np.zeros((1, past.shape[1])), past]), 0)
    sums = total[_SPREAD_BLOCKS:] - total[:-_SPREAD_BLOCKS]
    return np.maximum(np.maximum(past.std(0), sums.std(0) / _SPREAD_BLOCKS**0.5), _LEAST_SPREAD)
