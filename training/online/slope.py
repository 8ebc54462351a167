"""Whether labels follow predictions as closely as the predictions say, whatever share of the labels is positive."""

import numpy as np

from millrace.transforms.batch.record_batch import is_valid_label

_LARGEST_LOGIT = 15.0  # a probability of 3e-7: beyond it one row would outweigh all others
_NEWTON_STEPS, _STEP = 8, 3.0  # the score hardly depends on the offset: what is left of its error does not matter


def slopes(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score and information of the slope b in P(label is 1) = sigmoid(a + b x) at b = 1, after a is fitted.

    Labels reach a trainer late, and negatives later than positives: when the rate of traffic changes, the share of
    positives among arriving rows changes too, though nothing is wrong. That multiplies the odds of all rows by the same
    number, and so is the offset a, fitted anew for each block. Bias that a model learns from such rows is in a too.
    The slope stays: flipped labels make it -1, shuffled ids 0. Rows of one label alone say nothing.

    Args:
      labels: float32 [blocks, rows, heads].
      logits: float64 [blocks, rows, heads], corrected for sampling.

    Returns:
      Score and information, float64 [blocks, heads] each; their quotient estimates b - 1.
    """
    known, positive = is_valid_label(labels), labels > 0.5
    x = np.clip(np.where(np.isfinite(logits), logits, 0.0), -_LARGEST_LOGIT, _LARGEST_LOGIT)
    positives = (known & positive).sum(1, keepdims=True)
    offset = np.zeros(positives.shape)
    for _ in range(_NEWTON_STEPS):
        p = known / (1 + np.exp(-x - offset))
        error, slope = positives - p.sum(1, keepdims=True), (p * (1 - p)).sum(1, keepdims=True)
        offset = np.clip(offset + np.clip(error / np.maximum(slope, 1e-6), -_STEP, _STEP), -20.0, 20.0)
    p = 1 / (1 + np.exp(-x - offset))
    weight = known * p * (1 - p)
    mixed = (positives > 0) & (positives < known.sum(1, keepdims=True))
    weight = np.where(mixed, weight, 0.0)
    total = weight.sum(1, keepdims=True)
    centered = x - (weight * x).sum(1, keepdims=True) / np.maximum(total, 1e-12)
    score = np.where(mixed & known, (positive - p) * centered, 0.0).sum(1)
    return score, (weight * centered**2).sum(1)
