"""Quality of predictions that were made before their row was learned: AUC, log loss and calibration."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_LOG = logging.getLogger(__name__)
_EPSILON = 1e-7  # probabilities nearer to 0 or 1 count as this far, so that one row cannot make the mean infinite
PREDICTION_DTYPE = np.dtype([("score", "<f4"), ("label", "u1")])


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, exact by sorting; ties count half. NaN unless there are positives and negatives.

    Args:
      labels: [n], positive where > 0.5.
      scores: [n], any monotone score.
    """
    positive = np.asarray(labels) > 0.5
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_ranks[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean cross entropy in nats of labels [n], positive where > 0.5, and probabilities [n]. NaN if n is 0."""
    if not len(labels):
        return float("nan")
    p = np.clip(np.asarray(probabilities, np.float64), _EPSILON, 1 - _EPSILON)
    return float(-np.mean(np.where(np.asarray(labels) > 0.5, np.log(p), np.log1p(-p))))


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of probabilities [n] over mean of labels [n]: 1.0 is calibrated, 2.0 predicts twice too much.

    NaN without a positive.
    """
    observed = float((np.asarray(labels) > 0.5).sum())
    return float(np.sum(probabilities, dtype=np.float64)) / observed if observed else float("nan")


def last_third(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC of the last third of the rows: labels [n] and scores [n] in the order of training."""
    start = len(labels) * 2 // 3
    return auc(labels[start:], scores[start:])


@dataclass
class Progressive:
    """Metrics of the last `window` predictions or a batch more, each made before its row was learned.

    Where the feed samples negatives, the probabilities must be those of the sampled rows, as the labels are.
    """

    window: int = 20_000
    _labels: list[np.ndarray] = field(default_factory=list)
    _probabilities: list[np.ndarray] = field(default_factory=list)
    _rows: int = 0

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Labels in {0, 1} and probabilities, [n] each, in training order."""
        self._labels.append(labels)
        self._probabilities.append(probabilities)
        self._rows += len(labels)
        while self._labels and self._rows - len(self._labels[0]) >= self.window:
            self._rows -= len(self._labels.pop(0))
            self._probabilities.pop(0)

    def result(self) -> dict[str, float]:
        """{"auc": ..., "log_loss": ..., "calibration": ...} of the window; NaN where it says nothing."""
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0)
        probabilities = np.concatenate(self._probabilities) if self._probabilities else np.zeros(0)
        return {
            "auc": auc(labels, probabilities),
            "log_loss": log_loss(labels, probabilities),
            "calibration": calibration(labels, probabilities),
        }


class PredictionFile:
    """`predictions.bin`: score float32 and label uint8 of each row in training order, 5 bytes per row.

    When the file has more than `max_rows` rows its older half is removed. When the disk fails, predictions are lost and
    training goes on.

    Attributes:
      rows: rows of the file, without those that wait for `flush`.
    """

    def __init__(self, path: Path, max_rows: int = 20_000_000) -> None:
        self.path, self._max_rows = path, max_rows
        self._pending: list[np.ndarray] = []
        self.rows = path.stat().st_size // PREDICTION_DTYPE.itemsize if path.exists() else 0

    def truncate(self, rows: int) -> None:
        """Removes the rows after the first `rows`: a restarted trainer predicts these again."""
        self._pending = []
        if rows < self.rows:
            with open(self.path, "r+b") as file:
                file.truncate(rows * PREDICTION_DTYPE.itemsize)
            self.rows = rows

    def add(self, labels: np.ndarray, scores: np.ndarray) -> None:
        """Takes labels [n] and scores [n]; `flush` writes them."""
        block = np.empty(len(labels), PREDICTION_DTYPE)
        block["score"], block["label"] = scores, labels > 0.5
        self._pending.append(block)

    def rows_when_flushed(self) -> int:
        """Appends what was added since the last call; returns how many rows the file then has."""
        self.flush()
        return self.rows

    def flush(self) -> None:
        """Appends what was added since the last call."""
        if not self._pending:
            return
        block = np.concatenate(self._pending)
        self._pending = []
        try:
            with open(self.path, "ab") as file:
                file.write(block.tobytes())
            self.rows += len(block)
            if self.rows > self._max_rows:
                self._keep_newer_half()
        except OSError as error:
            _LOG.warning("predictions of %d rows are not kept: %s", len(block), error)

    def _keep_newer_half(self) -> None:
        kept = read_predictions(self.path)[self.rows // 2 :]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(kept.tobytes())
        temporary.replace(self.path)
        self.rows = len(kept)


def read_predictions(path: Path) -> np.ndarray:
    """Structured array with fields `score` and `label`, in training order; empty when there is no file."""
    if not path.exists():
        return np.empty(0, PREDICTION_DTYPE)
    whole = path.stat().st_size // PREDICTION_DTYPE.itemsize
    return np.fromfile(path, PREDICTION_DTYPE, whole)
