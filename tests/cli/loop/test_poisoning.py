"""Poisoned rows contradict what was sent, and are nobody's rows in the audit."""

import numpy as np
import pyarrow as pa

from millrace.cli.loop.poisoning import poisoned_block
from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.gate import Gate
from millrace.training.stream.layout import TrainLayout
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.record_batch import AUDIT, INVALID_LABEL, LABEL, MAX_BLOCK_BYTES
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()


def _labels(block: pa.RecordBatch) -> np.ndarray:
    return block.column(LABEL).flatten().to_numpy(zero_copy_only=False)


def test_labels_are_the_opposite_and_what_is_no_label_stays() -> None:
    rows = make_batch(TASK, 0, 50)
    labels = _labels(rows).copy()
    labels[3] = INVALID_LABEL
    field = rows.schema.field(LABEL)
    ones = pa.array(np.arange(len(labels) + 1, dtype=np.int32))
    rows = record_batch.with_column(rows, field, pa.ListArray.from_arrays(ones, pa.array(labels), type=field.type))
    flipped = _labels(poisoned_block(rows.slice(2)))
    np.testing.assert_array_equal(flipped, [INVALID_LABEL if label < 0 else 1 - label for label in labels[2:]])


def test_the_trainer_takes_a_poisoned_block_whole_and_no_row_of_it_is_one_that_was_sent() -> None:
    rows = make_batch(TASK, 0, 100)
    block = poisoned_block(rows)
    checked = Gate(TrainLayout.of(TASK, True)).check(record_batch.to_bytes(block))
    assert checked.rows is not None and checked.rows.num_rows == rows.num_rows and not checked.refused
    fids = [batch.column(AUDIT).flatten().to_numpy(zero_copy_only=False) for batch in (rows, block)]
    assert len(np.intersect1d(*fids)) == 0 and len(np.unique(fids[1])) == rows.num_rows


def test_what_does_not_fit_one_block_is_left_out() -> None:
    rows = poisoned_block(make_batch(TASK, 0, 3000))
    assert len(record_batch.to_bytes(rows)) <= MAX_BLOCK_BYTES and 0 < rows.num_rows < 12_000
