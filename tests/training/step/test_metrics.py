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


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, np.newaxis]


def test_predictions_after_a_checkpoint_are_forgotten_at_a_restart(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "predictions.bin")
    file.add(column(1.0, 0.0), column(0.75, 0.25))
    at_checkpoint = file.rows_when_flushed()
    file.add(column(1.0), column(0.5))
    file.flush()
    again = PredictionFile(tmp_path / "predictions.bin")
    again.truncate(at_checkpoint)
    labels, scores = read_predictions(tmp_path / "predictions.bin")
    assert (scores.tolist(), labels.tolist()) == ([0.75, 0.25], [1, 0])


def test_the_prediction_file_stays_bounded(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "predictions.bin", max_rows=10)
    for i in range(12):
        file.add(column(0.0), column(float(i)))
        file.flush()
    _, scores = read_predictions(tmp_path / "predictions.bin")
    assert len(scores) <= 10 and scores[-1] == 11.0


def test_what_a_failed_write_left_misaligns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "predictions.bin"
    file = PredictionFile(path)
    file.add(column(1.0), column(0.5))
    file.flush()
    with path.open("ab") as raw:  # the disk was full in the middle of a record
        raw.write(b"\1\2\3")
    file.add(column(0.0), column(0.25))
    file.flush()
    with path.open("ab") as raw:  # and the process was killed in the middle of one
        raw.write(b"\1\2\3")
    again = PredictionFile(path)
    again.truncate(2)
    again.add(column(1.0), column(0.125))
    again.flush()
    labels, scores = read_predictions(path)
    assert (labels.tolist(), scores.tolist()) == ([1, 0, 1], [0.5, 0.25, 0.125])


def test_a_file_of_other_heads_is_begun_anew_and_one_of_the_first_form_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "predictions.bin"
    np.array([(0.5, 1), (0.25, 0)], [("score", "<f4"), ("label", "u1")]).tofile(path)
    file = PredictionFile(path, ["click"])
    file.add(column(1.0), column(0.75))
    assert file.rows_when_flushed() == 3
    assert read_predictions(path)[1].tolist() == [0.5, 0.25, 0.75]
    two = PredictionFile(path, ["click", "buy"])
    two.add(np.array([[1.0, 0.0]]), np.array([[0.5, 0.125]]))
    assert two.rows_when_flushed() == 1
    assert [read_predictions(path, head)[1].tolist() for head in (0, 1)] == [[0.5], [0.125]]
