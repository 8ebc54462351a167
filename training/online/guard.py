"""Judges a model while it is trained: raises an alarm when what it learns does not fit what it knew a moment ago."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from millrace.training.online.calibration import CLIP, Calibration, spread
from millrace.training.online.slope import slopes
from millrace.training.task import Guard
from millrace.training.task.guard import BLOCK_ROWS
from millrace.transforms.batch.record_batch import is_valid_label

_LEAST_RATE = 1e-12  # as in the loss: heads.correct_logits
_LEAST_ERROR = 0.01  # of predictions; smaller ones say little about gradients
_STRONG_GRADIENTS, _OF_GRADIENTS = 4, 8
_SHARE_ROWS = 1_024
_RENEW_BLOCKS = 8  # 512 rows: the past hardly changes in so many, and its spread costs some 0.1 ms
_LEAST_INFORMATION = 0.1  # of the past's mean: the score of a block with less is no normal number
_MARKS = 2_048  # two million rows: alarms by calibration question what was learned a window ago
_LABELS_WRONG = "log loss is higher than its own probabilities explain, labels do not follow them: wrong labels or ids"


@dataclass(frozen=True)
class Alarm:
    """Why nothing more is published.

    Attributes:
      reason: for people.
      suspect_ms: Unix milliseconds; what was learned since may be wrong.
      suspect_offsets, offsets: {partition of the train topic: next offset} then and now.
    """

    reason: str
    suspect_ms: int
    suspect_offsets: dict[int, int] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Block:
    score: np.ndarray
    information: np.ndarray
    begun_ms: int
    offsets: dict[int, int]


@dataclass(frozen=True)
class _Standard:
    """Of the past, float64 [heads] each: score per information, spread of a block's deviation, least information.

    Labels may follow predictions more than these say: a model that is young, or of products of embeddings that begin
    near 0, predicts too little from what it has learned right, and the slope falls to 1 as it learns. No past demands
    more than 1, where score per information is 0.
    """

    slope: np.ndarray
    spread: np.ndarray
    least: np.ndarray

    @classmethod
    def of(cls, past: list[_Block], least_blocks: int) -> "_Standard":
        """Of blocks that have both labels; a head with fewer of them than `least_blocks` is not judged (spread inf)."""
        score, information = (np.stack([getattr(block, name) for block in past]) for name in ("score", "information"))
        slope = np.minimum(score.sum(0) / np.maximum(information.sum(0), 1e-12), 0.0)
        says = information > 0
        least = np.maximum(_LEAST_INFORMATION * information.sum(0) / np.maximum(says.sum(0), 1), 1e-12)
        z = cls(slope, np.ones(len(slope)), least).deviation(score, information)
        spreads = [
            spread(z[says[:, head], head : head + 1])[0] if says[:, head].sum() >= least_blocks else np.inf
            for head in range(len(slope))
        ]
        return cls(slope, np.array(spreads), least)

    def deviation(self, score: np.ndarray, information: np.ndarray) -> np.ndarray:
        """How much less labels follow predictions than in the past, in standard deviations."""
        return (self.slope * information - score) / np.sqrt(np.maximum(information, self.least)) / self.spread


class Judge:
    """Takes the predictions of each batch; `alarm` is set once and for all when they are suspicious.

    Args:
      heads: names, in the order of the labels; each is judged by itself.

    Attributes:
      alarm: None while all is well.
      rows: rows that were judged or are part of the past.
    """

    def __init__(self, guard: Guard, heads: tuple[str, ...]) -> None:
        self._guard, self._heads = guard, heads
        self._past_blocks = guard.past_rows // BLOCK_ROWS
        self._gap_blocks = guard.gap_rows // BLOCK_ROWS
        self._least_blocks = guard.least_rows // BLOCK_ROWS
        self._blocks: deque[_Block] = deque(maxlen=self._past_blocks + self._gap_blocks)
        self._marks: deque[tuple[int, dict[int, int]]] = deque(maxlen=_MARKS)  # one for each _SHARE_ROWS rows
        self._standard: _Standard | None = None
        self._sums = np.zeros(len(heads))
        self._judged_since = 0  # count of blocks when there was a standard first
        self._count = 0
        self._pending = np.zeros((0, 2, len(heads)))  # labels and logits of rows that make no block yet
        self._block_begun: tuple[int, dict[int, int]] = 0, {}
        self._calibration = Calibration(guard, len(heads))
        self._gradients: deque[float] = deque(maxlen=self._past_blocks)
        self._gradient_rows = 0  # of the updates whose gradients the past consists of, and of those before
        self._strong: deque[bool] = deque(maxlen=_OF_GRADIENTS)
        self._finite: deque[tuple[int, int]] = deque()
        self._latest: tuple[int, dict[int, int]] = 0, {}
        self.alarm: Alarm | None = None
        self.rows = 0

    @property
    def is_content(self) -> bool:
        """Whether there is a past to judge by, so many rows as the gap holds were judged by it, and all is well."""
        judged = self._count - self._judged_since if self._standard is not None else 0
        return self.alarm is None and (not self._guard.enabled or judged >= self._gap_blocks)

    def past(self) -> dict[str, Any]:
        """What no alarm can question any more, as JSON; `remember` takes it, in another process too."""
        blocks = self._past()
        return {
            "heads": list(self._heads),
            "blocks": [[np.round(each, 5).tolist() for each in (block.score, block.information)] for block in blocks],
            "gradients": [float(f"{each:.4g}") for each in self._gradients],
            "gradient_rows": self._gradient_rows,
            "calibration": self._calibration.past(),
        }

    def remember(self, past: Mapping[str, Any], now_ms: int, offsets: Mapping[int, int]) -> None:
        """Goes on from what `past` returned, if it is of these heads; `now_ms` and `offsets` are those of the start."""
        if past.get("heads") != list(self._heads):
            return
        for score, information in past["blocks"]:
            self._blocks.append(_Block(np.array(score), np.array(information), now_ms, dict(offsets)))
        self._gradients.extend(past["gradients"])
        self._gradient_rows = past["gradient_rows"]
        self._calibration.remember(past["calibration"], now_ms)
        if len(self._blocks) >= self._least_blocks:
            self._renew_standard(list(self._blocks))

    def forget_offsets(self, partition: int) -> None:
        """The partition was made anew: offsets from before count in nothing that is left, its beginning is suspect."""
        for _, offsets in [*self._marks, self._latest, self._block_begun]:
            offsets.pop(partition, None)
        for block in self._blocks:
            block.offsets.pop(partition, None)

    def drop_cohorts(self) -> None:
        """Rows were passed over: cohorts that have begun are incomplete."""
        self._calibration.drop()

    @property
    def trusted_ms(self) -> int:
        """Unix milliseconds; an alarm that is raised now questions nothing from before. 0 while nothing is judged."""
        gap = max(self._gap_blocks, 1)
        if len(self._blocks) < gap:
            return 0
        newest, since = self._blocks[-gap].begun_ms, self._calibration.since_ms
        return newest if since is None else min(newest, since)

    def add(
        self,
        labels: np.ndarray,
        logits: np.ndarray,
        sample_rates: np.ndarray,
        event_times_ms: np.ndarray,
        finite: np.ndarray,
        gradient_rms: np.ndarray,
        now_ms: int,
        offsets: Mapping[int, int],
    ) -> None:
        """Takes one batch.

        Args:
          labels, logits: float32 [rows, heads], the latter from before the batch was learned.
          sample_rates: float32 [rows].
          event_times_ms: int64 [rows].
          finite: bool [rows], which of them were learned.
          gradient_rms: float32 [updates], see `Learned`.
          now_ms: Unix milliseconds.
          offsets: {partition of the train topic: next offset} before the batch.
        """
        if not self._guard.enabled or self.alarm is not None:
            return
        if not self._marks or self.rows // _SHARE_ROWS < (self.rows + len(labels)) // _SHARE_ROWS:
            self._marks.append((now_ms, dict(offsets)))
        self.rows += len(labels)
        self._latest = now_ms, dict(offsets)
        self._add_finite(finite, offsets)
        corrected = logits.astype(np.float64) - np.log(np.clip(sample_rates, _LEAST_RATE, 1.0))[:, np.newaxis]
        self._add_gradients(gradient_rms / _error_rms(labels, corrected), len(labels), offsets)
        self._add_rows(np.stack([labels, corrected], 1), now_ms, offsets)
        self._calibration.add(event_times_ms, labels, corrected, now_ms)
        if self._calibration.alarm is not None:
            head, reason = self._calibration.alarm
            self._raise(f"{reason} (head {self._heads[head]})", offsets, self._calibration.since_ms)

    def _add_rows(self, rows: np.ndarray, now_ms: int, offsets: Mapping[int, int]) -> None:
        """Makes blocks of labels and logits, float64 [rows, 2, heads]."""
        if not len(self._pending):
            self._block_begun = now_ms, dict(offsets)
        rows = np.concatenate([self._pending, rows])
        whole = len(rows) // BLOCK_ROWS
        self._pending = rows[whole * BLOCK_ROWS :]
        if not whole:
            return
        blocks = rows[: whole * BLOCK_ROWS].reshape(whole, BLOCK_ROWS, 2, -1)
        for score, information in zip(*slopes(blocks[:, :, 0], blocks[:, :, 1]), strict=True):
            self._close_block(_Block(score, information, *self._block_begun), offsets)
            self._block_begun = now_ms, dict(offsets)

    def _past(self) -> list[_Block]:
        return list(self._blocks)[: max(0, len(self._blocks) - self._gap_blocks)]

    def _close_block(self, block: _Block, offsets: Mapping[int, int]) -> None:
        if self._count % _RENEW_BLOCKS == 0 and len(past := self._past()) >= self._least_blocks:
            self._renew_standard(past)
        self._blocks.append(block)
        self._count += 1
        if self._standard is None:
            return
        z = self._standard.deviation(block.score, block.information)
        self._sums = np.maximum(0.0, self._sums + np.minimum(z, CLIP) - self._guard.slack)
        head = int(self._sums.argmax())
        if self._sums[head] > self._guard.threshold:
            self._raise(f"{_LABELS_WRONG} (head {self._heads[head]})", offsets)

    def _renew_standard(self, past: list[_Block]) -> None:
        if self._standard is None:
            self._judged_since = self._count
        self._standard = _Standard.of(past, self._least_blocks // 2)

    def _add_gradients(self, rms: np.ndarray, rows: int, offsets: Mapping[int, int]) -> None:
        """Compares each update's gradient per prediction error with the past; `rows` is of all of them.

        Negatives that come after many positives are errors and make gradients large; wrong weights are no errors.
        """
        past = self._gradients
        is_known = self._gradient_rows >= self._guard.least_rows and len(past) >= _OF_GRADIENTS
        limit = self._guard.gradient_factor * float(np.median(past)) if is_known else np.inf
        for each in rms[np.isfinite(rms)].tolist():
            self._strong.append(each > limit)
            if each <= limit:
                past.append(each)  # what is strange is no standard
            if sum(self._strong) >= _STRONG_GRADIENTS:
                self._raise("gradients are many times those of the past: wrong weights or labels", offsets)
                return
        self._gradient_rows += rows

    def _add_finite(self, finite: np.ndarray, offsets: Mapping[int, int]) -> None:
        self._finite.append((len(finite), int((~finite).sum())))
        rows = sum(rows for rows, _ in self._finite)
        while rows - self._finite[0][0] >= _SHARE_ROWS:
            rows -= self._finite.popleft()[0]
        share = sum(left_out for _, left_out in self._finite) / max(rows, 1)
        if rows >= _SHARE_ROWS and share > self._guard.not_finite_share:
            self._raise(f"the updates of {share:.0%} of the newest rows are not finite", offsets)

    def _raise(self, reason: str, offsets: Mapping[int, int], since_ms: int | None = None) -> None:
        """Raises an alarm. All that the gap holds may be wrong: weak poison is found late, and a sum tells no time."""
        if self.alarm is not None:
            return
        begun = [(block.begun_ms, block.offsets) for block in list(self._blocks)[-max(self._gap_blocks, 1) :]]
        suspect_ms, suspect_offsets = (begun or [self._latest])[0]
        if since_ms is not None and since_ms < suspect_ms:
            marks = [mark for mark in self._marks if mark[0] <= since_ms]
            suspect_ms, suspect_offsets = min(since_ms, suspect_ms), (marks[-1:] or [self._marks[0]])[0][1]
        self.alarm = Alarm(reason, suspect_ms, dict(suspect_offsets), dict(offsets))


def _error_rms(labels: np.ndarray, logits: np.ndarray) -> float:
    """Root of the mean over rows of the squared prediction errors of all heads; never near 0."""
    errors = np.where(is_valid_label(labels), 1 / (1 + np.exp(-np.clip(logits, -30, 30))) - (labels > 0.5), 0.0)
    return max(float(np.sqrt((errors**2).sum(1).mean())) if len(errors) else 0.0, _LEAST_ERROR)
