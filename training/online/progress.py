"""How well the model predicts rows before it learns them, for Prometheus, TensorBoard and files."""

import errno
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.runtime.telemetry import gauge
from millrace.training.step.metrics import PredictionFile, Progressive
from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.position import Position
from millrace.transforms.batch.record_batch import is_valid_label

_LOG = logging.getLogger(__name__)
_GAUGES = {
    "auc": gauge("progressive_auc", "predict-then-train AUC over the last rows", ("head",)),
    "log_loss": gauge("progressive_log_loss", "predict-then-train log loss over the last rows", ("head",)),
    "calibration": gauge("progressive_calibration", "mean prediction over mean label, last rows", ("head",)),
}
_PROVENANCE_BYTES = gauge("provenance_bytes", "memory of the record of which source rows were applied")
_GLOBAL_STEP = gauge("global_step", "train steps since the model was born")
_LEAST_RATE = 1e-12  # as in the loss: heads.correct_logits


class Progress:
    """Collects the predictions of all heads and reports metrics over the newest 20,000 of each.

    Writes `progress.jsonl`, `predictions.bin` and TensorBoard's `events/`. What a failing disk does not take is logged
    and lost; training goes on.

    Args:
      model_dir: folder of these files.
      prediction_rows: rows of predictions.bin that belong to the restored model; later ones are cut off.
      heads: names, in the order of the labels.
    """

    def __init__(self, model_dir: Path, prediction_rows: int, heads: Sequence[str]) -> None:
        self._windows = {head: Progressive() for head in heads}
        self.predictions = PredictionFile(model_dir / "predictions.bin", heads)
        self.predictions.truncate(prediction_rows)
        self._path = model_dir / "progress.jsonl"
        self._summaries = tf.summary.create_file_writer(str(model_dir / "events"))

    def add(self, ticket: Ticket, logits: np.ndarray) -> None:
        """Takes the predictions of one batch, corrected to the scale of labels that the feed sampled.

        Args:
          logits: float32 [rows, heads], from before the batch was learned.
        """
        known = is_valid_label(ticket.labels)
        corrected = logits - np.log(np.clip(ticket.sample_rates, _LEAST_RATE, 1.0))[:, np.newaxis]
        probabilities = 1 / (1 + np.exp(-corrected.astype(np.float64)))
        for index, window in enumerate(self._windows.values()):
            rows = known[:, index]
            window.add(ticket.labels[rows, index], probabilities[rows, index])
        self.predictions.add(ticket.labels, probabilities, known)

    def quality(self, rows: int) -> dict[str, float]:
        """What an export says of the model: `rows` that it has learned; auc, log_loss and calibration of its first head
        where they are known."""
        first = next(iter(self._windows.values()))
        figures = {"rows": float(rows), **first.result()}
        return {name: float(value) for name, value in figures.items() if not np.isnan(value)}

    def report(self, global_step: int, position: Position) -> None:
        """Sets the gauges and appends one line or point to each file."""
        figures = {head: window.result() for head, window in self._windows.items()}
        for head, of_head in figures.items():
            for name, value in of_head.items():
                _GAUGES[name].labels(head).set(value)
        _PROVENANCE_BYTES.set(position.seen.nbytes)
        _GLOBAL_STEP.set(global_step)
        self.predictions.flush()
        line = {
            "time_ms": time.time_ns() // 1_000_000,
            "global_step": global_step,
            "rows_trained": position.rows_applied,
            "rows_duplicate": position.rows_duplicate,
            "rows_too_old": position.rows_too_old,
            **_without_nan(next(iter(figures.values()))),  # of the first head
            "heads": {head: _without_nan(of_head) for head, of_head in figures.items()},
        }
        try:
            _append(self._path, f"{json.dumps(line)}\n".encode())
            with self._summaries.as_default(step=global_step):
                for head, of_head in figures.items():
                    for name, value in of_head.items():
                        tf.summary.scalar(f"progressive/{name}/{head}", value)
                tf.summary.scalar("rows_trained", position.rows_applied)
            self._summaries.flush()
        except (OSError, tf.errors.OpError) as error:
            _LOG.warning("progress is not written: %s", error)


def _append(path: Path, line: bytes) -> None:
    """Appends a line, whole or not at all: of one that a full disk cuts short nothing stays."""
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        written = file.write(line)
        if written < len(line):
            file.truncate(end)
            raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes were written", str(path))


def _without_nan(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in figures.items()}
