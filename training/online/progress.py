"""How well the model predicts rows before it learns them, for Prometheus, TensorBoard and files."""

import json
import logging
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.runtime.telemetry import gauge
from millrace.training.step.metrics import PredictionFile, Progressive
from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.position import Position
from millrace.transforms.batch.record_batch import is_valid_label

_LOG = logging.getLogger(__name__)
_AUC = gauge("progressive_auc", "predict-then-train AUC over the last rows")
_LOG_LOSS = gauge("progressive_log_loss", "predict-then-train log loss over the last rows")
_CALIBRATION = gauge("progressive_calibration", "mean prediction over mean label, last rows")
_GLOBAL_STEP = gauge("global_step", "train steps since the model was born")
_LEAST_RATE = 1e-12  # as in the loss: heads.correct_logits


class Progress:
    """Collects the predictions of the first head and reports metrics over the newest 20,000 of them.

    Writes `progress.jsonl`, `predictions.bin` and TensorBoard's `events/`. What a failing disk does not take is logged
    and lost; training goes on.

    Args:
      model_dir: folder of these files.
      prediction_rows: rows of predictions.bin that belong to the restored model; later ones are cut off.
    """

    def __init__(self, model_dir: Path, prediction_rows: int) -> None:
        self._window = Progressive()
        self.predictions = PredictionFile(model_dir / "predictions.bin")
        self.predictions.truncate(prediction_rows)
        self._path = model_dir / "progress.jsonl"
        self._summaries = tf.summary.create_file_writer(str(model_dir / "events"))

    def add(self, ticket: Ticket, logits: np.ndarray) -> None:
        """Takes the predictions of one batch, corrected to the scale of labels that the feed sampled.

        Args:
          logits: float32 [rows, heads], from before the batch was learned.
        """
        labels = ticket.labels[:, 0]
        known = is_valid_label(labels)
        corrected = logits[known, 0] - np.log(np.clip(ticket.sample_rates[known], _LEAST_RATE, 1.0))
        probabilities = 1 / (1 + np.exp(-corrected.astype(np.float64)))
        self._window.add(labels[known], probabilities)
        self.predictions.add(labels[known], probabilities)

    def report(self, global_step: int, position: Position) -> None:
        """Sets the gauges and appends one line or point to each file."""
        figures = self._window.result()
        for metric, name in ((_AUC, "auc"), (_LOG_LOSS, "log_loss"), (_CALIBRATION, "calibration")):
            metric.set(figures[name])
        _GLOBAL_STEP.set(global_step)
        self.predictions.flush()
        line = {
            "time_ms": time.time_ns() // 1_000_000,
            "global_step": global_step,
            "rows_trained": position.rows_applied,
            "rows_duplicate": position.rows_duplicate,
            "rows_too_old": position.rows_too_old,
            **{name: None if np.isnan(value) else value for name, value in figures.items()},
        }
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            with self._summaries.as_default(step=global_step):
                for name, value in figures.items():
                    tf.summary.scalar(f"progressive/{name}", value)
                tf.summary.scalar("rows_trained", position.rows_applied)
            self._summaries.flush()
        except (OSError, tf.errors.OpError) as error:
            _LOG.warning("progress is not written: %s", error)
