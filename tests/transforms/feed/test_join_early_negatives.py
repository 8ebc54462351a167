"""Early negatives: what a row's labels say when it comes again with its action."""

import numpy as np

from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.feed.early_negatives import corrected_labels
from millrace.transforms.feed.join import join_bounded
from millrace.transforms.feed.train_rows import rows_to_train_batch
from tests.transforms.feed.join_rows import actions, config, impressions


def test_a_correction_is_silent_on_the_heads_for_which_it_is_not_positive() -> None:
    feed = config(early_negatives=True)
    joined = join_bounded(impressions(("r", 1, 0), ("r", 2, 0)), actions(("r", 2, "like", 10)), feed)
    batch, _ = rows_to_train_batch(joined.rows, feed)
    assert batch.column("__LABEL__").to_pylist() == [[0.0, 0.0], [0.0, 0.0], [INVALID_LABEL, 1.0]]


def test_no_rows_stay_no_rows() -> None:
    assert corrected_labels(np.zeros((0, 2), np.float32), np.zeros(0, bool)).shape == (0, 2)
