"""Quality of predictions that were made before their row was learned: AUC, log loss and calibration."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_LOG = logging.getLogger(__name__)
_EPSILON = 1e-7  # probabilities nearer to 0 or 1 count as this far, so that one row cannot make the mean infinite
_NO_LABEL = 255  # of a head that a row says nothing about


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
    """`predictions.bin`: score float32 and label uint8 of each row and head in training order, 5 bytes per head.

    A record holds all scores of a row, then its labels; 255 is no label. `predictions.json` names the heads. When the
    file has more than `max_rows` rows its older half is removed. When the disk fails, predictions are lost and training
    goes on: the next write begins where the last whole one ended.

    Args:
      heads: names, in the order of the columns; a file of other heads is begun anew.

    Attributes:
      rows: rows of the file, without those that wait for `flush`.
    """

    def __init__(self, path: Path, heads: Sequence[str] = ("",), max_rows: int = 20_000_000) -> None:
        self.path, self._heads, self._max_rows = path, list(heads), max_rows
        self._dtype = _record(len(self._heads))
        self._pending: list[np.ndarray] = []
        same = not path.exists() or _heads_of(path) in (self._heads, None if len(self._heads) == 1 else self._heads)
        self.rows = path.stat().st_size // self._dtype.itemsize if same and path.exists() else 0
        self._named = same and _heads_of(path) is not None

    def truncate(self, rows: int) -> None:
        """Removes the rows after the first `rows`: a restarted trainer predicts these again."""
        self._pending = []
        self.rows = min(rows, self.rows)
        if self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(self.rows * self._dtype.itemsize)

    def add(self, labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None = None) -> None:
        """Takes labels and scores, [n, heads]; `flush` writes them.

        Args:
          known: bool [n, heads], which labels say something; None: all do. A row without any is left out.
        """
        known = np.ones(labels.shape, bool) if known is None else known
        block = np.empty(len(labels), self._dtype)
        block["score"], block["label"] = scores, np.where(known, labels > 0.5, _NO_LABEL)
        self._pending.append(block[known.any(axis=1)])

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
            if not self._named:
                self.path.with_suffix(".json").write_text(json.dumps({"heads": self._heads}), "utf-8")
                self._named = True
            self._write(block)
            self.rows += len(block)
            if self.rows > self._max_rows:
                self._keep_newer_half()
        except OSError as error:
            _LOG.warning("predictions of %d rows are not kept: %s", len(block), error)

    def _write(self, block: np.ndarray) -> None:
        """Writes after the last whole record, over what a write that failed may have left there."""
        self.path.touch()
        with open(self.path, "r+b") as file:
            file.seek(self.rows * self._dtype.itemsize)
            file.write(block.tobytes())
            file.truncate()

    def _keep_newer_half(self) -> None:
        kept = np.fromfile(self.path, self._dtype, self.rows)[self.rows // 2 :]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(kept.tobytes())
        temporary.replace(self.path)
        self.rows = len(kept)


def _record(heads: int) -> np.dtype:
    return np.dtype([("score", "<f4", (heads,)), ("label", "u1", (heads,))])


def _heads_of(path: Path) -> list[str] | None:
    """The heads of a file of predictions; None where nothing names them, as in files of one head before that."""
    try:
        return [str(head) for head in json.loads(path.with_suffix(".json").read_text("utf-8"))["heads"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_predictions(path: Path, head: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(labels in {0, 1}, scores), float32 [rows] each, of the rows with a label of this head, in training order.

    Both are empty when there is no file.
    """
    if not path.exists():
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    dtype = _record(len(_heads_of(path) or [""]))
    records = np.fromfile(path, dtype, path.stat().st_size // dtype.itemsize)
    known = records["label"][:, head] != _NO_LABEL
    return records["label"][known, head].astype(np.float32), records["score"][known, head]
