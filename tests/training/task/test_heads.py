"""The weights that correct for early negatives, on impressions whose true rates are known."""

import numpy as np
import pytest
import tensorflow as tf

from millrace.training.task import Head
from millrace.training.task.heads import early_negative_weights, total_loss
from millrace.transforms.batch.label_column import label_matrix
from millrace.transforms.batch.record_batch import INVALID_LABEL, is_valid_label
from millrace.transforms.feed.config import LabelRule
from millrace.transforms.feed.join import join_bounded
from millrace.transforms.feed.train_rows import rows_to_train_batch
from tests.transforms.feed.join_rows import actions, config, impressions

_RATES = np.array([0.03, 0.1, 0.35, 0.6])
_IMPRESSIONS = 12_000


def _observed(early_negatives: bool) -> tuple[np.ndarray, np.ndarray]:
    """(group, label) of the rows that leave the join: item i is clicked at rate `_RATES[i]`, some time within 4 s."""
    rng = np.random.default_rng(17)
    items = rng.integers(0, len(_RATES), _IMPRESSIONS)
    clicked = rng.random(_IMPRESSIONS) < _RATES[items]
    delays = np.minimum(rng.exponential(1500.0, _IMPRESSIONS), 4000.0).astype(int)
    shown = impressions(*((f"r{i}", item, i) for i, item in enumerate(items.tolist())))
    taken = actions(*((f"r{i}", int(items[i]), "click", i + int(delays[i])) for i in np.flatnonzero(clicked).tolist()))
    feed = config(early_negatives=early_negatives)
    batch, _ = rows_to_train_batch(join_bounded(shown, taken, feed).rows, feed)
    labels = label_matrix(batch.column("__LABEL__"))[:, 0]
    return batch.column("__ITEM_ID__").to_numpy(), labels


def _weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights of one head, float32 [rows]."""
    rows = tf.constant(logits[:, np.newaxis], tf.float32), tf.constant(labels[:, np.newaxis], tf.float32)
    return early_negative_weights(*rows).numpy()[:, 0]


def _learnt(groups: np.ndarray, labels: np.ndarray, weighted: bool) -> np.ndarray:
    """Rates of a logistic regression on the group, by gradient descent; the weights follow the predictions."""
    logits = np.zeros(len(_RATES))
    valid = is_valid_label(labels)
    sizes = np.bincount(groups, minlength=len(_RATES))
    for _ in range(3000):
        predicted = 1.0 / (1.0 + np.exp(-logits[groups]))
        weights = _weights(logits[groups], labels) if weighted else valid.astype(float)
        error = np.where(valid, weights * (predicted - labels), 0.0)
        logits -= 2.0 * np.bincount(groups, error, len(_RATES)) / sizes
    return 1.0 / (1.0 + np.exp(-logits))


def _clicked_share() -> np.ndarray:
    groups, labels = _observed(early_negatives=False)
    return np.bincount(groups, labels == 1.0) / np.bincount(groups)


def test_weighted_early_negatives_teach_the_true_rates() -> None:
    learnt = _learnt(*_observed(early_negatives=True), weighted=True)
    np.testing.assert_allclose(learnt, _clicked_share(), rtol=1e-3)
    np.testing.assert_allclose(learnt, _RATES, rtol=0.15)


def test_plain_early_negatives_teach_too_low_rates() -> None:
    learnt = _learnt(*_observed(early_negatives=True), weighted=False)
    share = _clicked_share()
    np.testing.assert_allclose(learnt, share / (1 + share), rtol=1e-3)


def test_rows_that_wait_for_their_window_teach_the_same_rates() -> None:
    np.testing.assert_allclose(_learnt(*_observed(early_negatives=False), weighted=False), _clicked_share(), rtol=1e-3)


@pytest.mark.parametrize(
    ("label", "probability", "weight"),
    [(1, 0.0, 1.0), (1, 0.25, 1.25), (0, 0.0, 1.0), (0, 0.25, 0.9375), (0, 1.0, 0.0)],
)
def test_weights_are_those_of_the_paper(label: float, probability: float, weight: float) -> None:
    with np.errstate(divide="ignore"):  # a probability of 0 or 1 has an infinite logit
        logit = np.log(probability) - np.log(1 - probability)
    assert _weights(np.array([logit]), np.array([label])).tolist() == [pytest.approx(weight)]


def test_a_row_that_says_nothing_weighs_nothing() -> None:
    ones = tf.ones([1])
    labels = tf.constant([[INVALID_LABEL]])
    assert (
        float(
            total_loss(
                (Head("click", LabelRule("click", ("click",))),),
                tf.zeros([1, 1]),
                labels,
                ones,
                ones,
                early_negatives=True,
            )
        )
        == 0.0
    )


def test_no_rows_have_no_weights() -> None:
    assert _weights(np.zeros(0), np.zeros(0)).shape == (0,)
