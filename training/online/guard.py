"""Judges a model while it is trained: raises an alarm when what it learns does not fit what it knew a moment ago."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from millrace.training.task import Guard
from millrace.training.task.guard import BLOCK_ROWS
from millrace.transforms.batch.record_batch import is_valid_label

_LEAST_RATE = 1e-12  # as in the loss: heads.correct_logits
_CLIP = 3.0  # standard deviations of one observation at most: one session of a strange user is no alarm
_LEAST_SPREAD = 1e-3  # a past without any spread would make everything strange
_SPREAD_BLOCKS = 16  # rows of a session follow each other: the spread of means of so many blocks has this in it
_STRONG_GRADIENTS, _OF_GRADIENTS = 4, 8
_SHARE_ROWS = 1_024
_RENEW_BLOCKS = 8  # 512 rows: the past hardly changes in so many, and its spread costs some 0.1 ms
_WORDS = {
    "loss rises": "log loss is higher than its own probabilities explain: wrong labels or ids",
    "calibration rises": "predictions are higher than labels: positives are missing",
    "calibration falls": "predictions are lower than labels: negatives are missing, or labels are wrong",
}


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
    figures: dict[str, float]
    begun_ms: int
    offsets: dict[int, int]


_NONE = _Block({}, 0, {})


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
        self._standards: dict[str, tuple[float, float]] = {}
        self._sums: dict[str, float] = {}
        self._judged_since = 0  # count of blocks when there were standards first
        self._count = 0
        self._pending: dict[str, list[np.ndarray]] = {}
        self._pending_rows = 0
        self._block_begun: tuple[int, dict[int, int]] | None = None
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
        judged = self._count - self._judged_since if self._standards else 0
        return self.alarm is None and (not self._guard.enabled or judged >= self._gap_blocks)

    def past(self) -> dict[str, Any]:
        """What no alarm can question any more, as JSON; `remember` takes it, in another process too."""
        blocks = list(self._blocks)[: max(0, len(self._blocks) - self._gap_blocks)]
        figures = {name: [round(block.figures[name], 5) for block in blocks] for name in (blocks or [_NONE])[0].figures}
        return {
            "figures": figures,
            "gradients": [float(f"{each:.4g}") for each in self._gradients],
            "gradient_rows": self._gradient_rows,
        }

    def remember(self, past: Mapping[str, Any], now_ms: int, offsets: Mapping[int, int]) -> None:
        """Goes on from what `past` returned, if it is of these heads; `now_ms` and `offsets` are those of the start."""
        figures: Mapping[str, list[float]] = past.get("figures", {})
        if {name.partition("/")[2] for name in figures} != set(self._heads):
            return
        for values in zip(*figures.values(), strict=True):
            self._blocks.append(_Block(dict(zip(figures, values, strict=True)), now_ms, dict(offsets)))
        self._gradients.extend(past.get("gradients", ()))
        self._gradient_rows = past.get("gradient_rows", len(self._gradients) * BLOCK_ROWS)
        if len(self._blocks) >= self._least_blocks:
            self._renew_standards(list(self._blocks))

    @property
    def trusted_ms(self) -> int:
        """Unix milliseconds; an alarm that is raised now questions nothing from before. 0 while nothing is judged."""
        gap = max(self._gap_blocks, 1)
        return self._blocks[-gap].begun_ms if len(self._blocks) >= gap else 0

    def add(
        self,
        labels: np.ndarray,
        logits: np.ndarray,
        sample_rates: np.ndarray,
        finite: np.ndarray,
        gradient_rms: np.ndarray,
        now_ms: int,
        offsets: Mapping[int, int],
    ) -> None:
        """Takes one batch.

        Args:
          labels, logits: float32 [rows, heads], the latter from before the batch was learned.
          sample_rates: float32 [rows].
          finite: bool [rows], which of them were learned.
          gradient_rms: float32 [updates], see `Learned`.
          now_ms: Unix milliseconds.
          offsets: {partition of the train topic: next offset} before the batch.
        """
        if not self._guard.enabled or self.alarm is not None:
            return
        self.rows += len(labels)
        self._latest = now_ms, dict(offsets)
        self._add_finite(finite, offsets)
        self._add_gradients(gradient_rms, len(labels), offsets)
        corrected = logits.astype(np.float64) - np.log(np.clip(sample_rates, _LEAST_RATE, 1.0))[:, np.newaxis]
        figures = _figures(labels, corrected, self._heads)
        start = 0
        while start < len(labels) and self.alarm is None:
            if self._block_begun is None:
                self._block_begun = now_ms, dict(offsets)
            taken = min(BLOCK_ROWS - self._pending_rows, len(labels) - start)
            for name, values in figures.items():
                self._pending.setdefault(name, []).append(values[start : start + taken])
            self._pending_rows += taken
            start += taken
            if self._pending_rows == BLOCK_ROWS:
                self._close_block(offsets)

    def _close_block(self, offsets: Mapping[int, int]) -> None:
        assert self._block_begun is not None
        means = {name: _mean(np.concatenate(parts)) for name, parts in self._pending.items()}
        self._pending, self._pending_rows = {}, 0
        begun, self._block_begun = self._block_begun, None
        past = list(self._blocks)[: max(0, len(self._blocks) - self._gap_blocks)]
        if self._count % _RENEW_BLOCKS == 0 and len(past) >= self._least_blocks:
            self._renew_standards(past)
        self._blocks.append(_Block(means, *begun))
        self._count += 1
        for name, (mean, spread) in self._standards.items():
            z = (means[name] - mean) / spread
            self._accumulate(f"{name} rises", z)
            if name.startswith("calibration"):
                self._accumulate(f"{name} falls", -z)
        name, highest = max(self._sums.items(), key=lambda item: item[1], default=("", 0.0))
        if highest > self._guard.threshold:
            self._raise(_words(name), offsets)

    def _renew_standards(self, past: list[_Block]) -> None:
        """Mean and standard deviation of each figure in the past."""
        if not self._standards:
            self._judged_since = self._count
        names = past[0].figures
        self._standards = {name: _standard(np.array([each.figures[name] for each in past])) for name in names}

    def _accumulate(self, name: str, z: float) -> None:
        self._sums[name] = max(0.0, self._sums.get(name, 0.0) + min(z, _CLIP) - self._guard.slack)

    def _add_gradients(self, rms: np.ndarray, rows: int, offsets: Mapping[int, int]) -> None:
        """Compares each update with the past; `rows` is of all of them."""
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

    def _raise(self, reason: str, offsets: Mapping[int, int]) -> None:
        """Raises an alarm. All that the gap holds may be wrong: weak poison is found late, and a sum tells no time."""
        begun = [(block.begun_ms, block.offsets) for block in list(self._blocks)[-max(self._gap_blocks, 1) :]]
        suspect_ms, suspect_offsets = (begun or [self._latest])[0]
        self.alarm = Alarm(reason, suspect_ms, dict(suspect_offsets), dict(offsets))


def _figures(labels: np.ndarray, logits: np.ndarray, heads: tuple[str, ...]) -> dict[str, np.ndarray]:
    """{figure/head: float64 [rows]}, NaN where the label is invalid."""
    known = is_valid_label(labels)
    positive = labels > 0.5
    probabilities = 1 / (1 + np.exp(-logits))
    # Cross entropy less its expectation under the model's own probabilities: (p - y) x.
    error = np.where(known, probabilities - positive, np.nan)
    figures = {}
    for i, head in enumerate(heads):
        figures[f"loss/{head}"] = error[:, i] * logits[:, i]
        figures[f"calibration/{head}"] = error[:, i]
    return figures


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are known; 0.0, what a calibrated model has, without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _standard(past: np.ndarray) -> tuple[float, float]:
    """(mean, standard deviation) of one block, the latter with what neighbouring blocks have in common."""
    sums = np.convolve(past, np.ones(_SPREAD_BLOCKS), "valid")
    return float(past.mean()), max(float(past.std()), float(sums.std()) / _SPREAD_BLOCKS**0.5, _LEAST_SPREAD)


def _words(name: str) -> str:
    figure, _, rest = name.partition("/")
    head, _, direction = rest.rpartition(" ")
    return f"{_WORDS[f'{figure} {direction}']} (head {head})"
