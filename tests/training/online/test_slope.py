"""The slope of labels on predictions: it does not depend on the share of positives, and poison changes it."""

import numpy as np

from millrace.training.online.slope import slopes
from millrace.transforms.batch.record_batch import INVALID_LABEL

BLOCKS, ROWS = 2_000, 64


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.1, (BLOCKS, ROWS, 1))
    return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32), logits


def excess(labels: np.ndarray, logits: np.ndarray) -> float:
    score, information = slopes(labels, logits)
    return float(score.sum() / information.sum())


def test_the_slope_stays_where_three_of_four_negatives_are_missing() -> None:
    labels, logits = draw(1)
    missing = (labels < 0.5) & (np.random.default_rng(2).random(labels.shape) < 0.75)
    thinned = np.where(missing, np.float32(INVALID_LABEL), labels)
    assert abs(excess(labels, logits)) < 0.05 and abs(excess(thinned, logits)) < 0.05


def test_flipped_labels_and_shuffled_predictions_change_the_slope() -> None:
    labels, logits = draw(3)
    assert excess(1 - labels, logits) < -1 and excess(labels, np.roll(logits, 7, axis=1)) < -0.7


def test_rows_of_one_label_and_rows_without_labels_say_nothing() -> None:
    _, logits = draw(4)
    for value in (0.0, 1.0, INVALID_LABEL):
        score, information = slopes(np.full(logits.shape, value, np.float32), logits)
        assert not score.any() and not information.any()


def test_predictions_that_are_infinite_leave_figures_finite() -> None:
    labels, logits = draw(5)
    logits[:, ::3] = np.inf
    logits[:, 1::3] = 1e30
    assert all(np.isfinite(each).all() for each in slopes(labels, logits))
