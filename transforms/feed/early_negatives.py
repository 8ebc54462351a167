"""Training on rows that leave as negatives before their action can have come: fake-negative weighting.

With `FeedConfig.early_negatives` every row comes once as a negative and, if its action comes, once more as a positive.
Of what a model sees of a row whose true rate is p, the share of positives is p / (1 + p): it would learn too low rates.
Importance weights put that right (Ktena et al., "Addressing delayed feedback for continuous training with neural
networks in CTR prediction", RecSys 2019): the loss of a positive counts 1 + p, that of a negative (1 - p)(1 + p); p is
the model's own prediction, taken as a constant. Where the loss is least, the prediction is the true rate.
"""

import numpy as np

from millrace.transforms.batch.record_batch import INVALID_LABEL


def fake_negative_weights(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Weights of the loss of each label.

    Args:
      labels: 1, 0, or `INVALID_LABEL` where a row says nothing; float [...].
      probabilities: what the model predicts, in [0, 1], corrected for down-sampling; float [...], no gradient flows.

    Returns: float [...]; 0 where a row says nothing.
    """
    weights = np.where(labels > 0, 1.0 + probabilities, (1.0 - probabilities) * (1.0 + probabilities))
    return np.where(labels == INVALID_LABEL, 0.0, weights)


def corrected_labels(labels: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    """Labels of rows that leave as early negatives: a row that comes again says only for which heads it is positive.

    What it is not positive for it said when it came first, as a negative of every head.

    Args:
      labels: float32 [rows, heads].
      corrections: bool [rows], true where a row has its action.
    """
    silent = corrections[:, np.newaxis] & (labels <= 0)
    return np.where(silent, np.float32(INVALID_LABEL), labels)
