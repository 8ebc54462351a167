"""From the columns of a block to the tensors of a step."""

import numpy as np
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.layout import TrainLayout, TrainTensors
from millrace.transforms.batch.record_batch import LABEL
from tests.fakes.train_blocks import make_batch

LAYOUT = TrainLayout.of(FeedRanking(), audit=True)
WHOLE = make_batch(FeedRanking(), 0, 30)


def assert_equal(left: TrainTensors, right: TrainTensors) -> None:
    for a, b in zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True):
        assert np.array_equal(a, b)


def test_the_arrays_of_a_slice_are_those_of_its_rows_with_splits_from_zero() -> None:
    arrays = LAYOUT.arrays(WHOLE.slice(10, 7))
    assert arrays.labels.tolist() == [[label] for row in WHOLE[LABEL].to_pylist()[10:17] for label in row]
    for name in LAYOUT.fid_columns:
        rows = WHOLE[name].to_pylist()[10:17]
        assert arrays.splits[name].tolist() == np.cumsum([0, *map(len, rows)]).tolist()
        assert arrays.values[name].tolist() == sum(rows, [])


def test_rows_of_a_batch_of_tensors_are_those_of_a_slice_of_the_block() -> None:
    tensors = tf.nest.map_structure(tf.constant, LAYOUT.arrays(WHOLE))
    assert_equal(tensors.rows(tf.constant(10), tf.constant(17)), LAYOUT.arrays(WHOLE.slice(10, 7)))
    assert_equal(tensors.rows(tf.constant(5), tf.constant(5)), LAYOUT.arrays(WHOLE.slice(5, 0)))


def test_the_specs_have_the_structure_of_the_arrays() -> None:
    specs, arrays = LAYOUT.specs, LAYOUT.arrays(WHOLE)
    tf.nest.assert_same_structure(specs, arrays)
    for spec, array in zip(tf.nest.flatten(specs), tf.nest.flatten(arrays), strict=True):
        assert spec.is_compatible_with(tf.constant(array))


def test_what_is_left_of_a_block_holds_no_other_column() -> None:
    assert LAYOUT.project(WHOLE).schema.equals(LAYOUT.schema)
    assert set(LAYOUT.schema.names) < set(WHOLE.schema.names)


def test_a_block_without_a_feature_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hour"):
        LAYOUT.check_columns(WHOLE.drop_columns(["hour"]))
