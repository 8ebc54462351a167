"""Early negatives: rows that leave the join as negatives before their action can have come.

With `FeedConfig.early_negatives` every row comes once as a negative and, if its action comes, once more as a positive.
Of the rows that a model sees of an impression with the true rate p, the share of positives is p / (1 + p), so that it
would learn rates that are too low. Importance weights correct that (Ktena et al., "Addressing delayed feedback for
continuous training with neural networks in CTR prediction", RecSys 2019): the loss of a positive counts 1 + p, that of
a negative (1 - p)(1 + p), where p is the model's own prediction, taken as a constant. The loss is then least where the
prediction is the true rate. `millrace.training.task.heads.early_negative_weights` gives these weights to the trainer.
"""

import numpy as np

from millrace.transforms.batch.record_batch import INVALID_LABEL


def corrected_labels(labels: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    """Labels of rows that leave as early negatives: a row that comes again keeps only its positive labels.

    As an early negative it was a negative of every head, so its other labels become INVALID_LABEL.

    Args:
      labels: float32 [rows, heads].
      corrections: bool [rows], true where a row comes again, with its action.
    """
    silent = corrections[:, np.newaxis] & (labels <= 0)
    return np.where(silent, np.float32(INVALID_LABEL), labels)
