"""Exact metrics against scikit-learn, and the prediction file."""

import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from millrace.training.step.metrics import (
    PredictionFile,
    Progressive,
    auc,
    calibration,
    last_third,
    log_loss,
    read_predictions,
)

pairs = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=2, max_size=60)


@given(pairs)
def test_auc_and_log_loss_agree_with_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in rows]), np.array([score / 10 for _, score in rows])
    if labels.all() or not labels.any():
        assert math.isnan(auc(labels, scores))
        return
    assert np.isclose(auc(labels, scores), roc_auc_score(labels, scores))
    assert np.isclose(log_loss(labels, scores), sklearn_log_loss(labels, scores))


def test_calibration_is_mean_prediction_over_mean_label() -> None:
    assert calibration(np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.25, 0.25])) == 0.75
    assert math.isnan(calibration(np.zeros(3), np.ones(3)))


def test_the_last_third_begins_at_two_thirds_of_the_rows() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    assert last_third(labels, np.array([9, 0, 9, 0, 0, 1])) == 1.0


def test_the_window_forgets_old_rows() -> None:
    window = Progressive(window=4)
    window.add(np.array([0, 1]), np.array([0.9, 0.1]))
    window.add(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8]))
    assert window.result()["auc"] == 1.0


def test_predictions_after_a_checkpoint_are_forgotten_at_a_restart(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "predictions.bin")
    file.add(np.array([1.0, 0.0]), np.array([0.75, 0.25]))
    at_checkpoint = file.rows_when_flushed()
    file.add(np.array([1.0]), np.array([0.5]))
    file.flush()
    again = PredictionFile(tmp_path / "predictions.bin")
    again.truncate(at_checkpoint)
    kept = read_predictions(tmp_path / "predictions.bin")
    assert (kept["score"].tolist(), kept["label"].tolist()) == ([0.75, 0.25], [1, 0])


def test_the_prediction_file_stays_bounded(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "predictions.bin", max_rows=10)
    for i in range(12):
        file.add(np.array([0.0]), np.array([float(i)]))
        file.flush()
    assert len(read_predictions(tmp_path / "predictions.bin")) <= 10
    assert read_predictions(tmp_path / "predictions.bin")["score"][-1] == 11.0
