"""Combiners in plain TensorFlow: values, and gradients that reach exactly the ids that were combined."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.training.task.combiners import combine, first_n, reduce_mean, reduce_sum, sequence_mask, square_norm
from millrace.training.task.features import (
    Combiner,
    FeatureColumn,
    FeatureSlot,
    FirstN,
    ReduceMean,
    ReduceSum,
    feature_tables,
    split_slices,
)
from tests.conformance.covers import covers

MOVIE = FeatureSlot("movie", has_bias=True)
MOVIE.add_feature_slice(3)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[EmbeddingStore]:
    name = f"test/{request.node.name}"
    yield EmbeddingStore([table.config for table in feature_tables([MOVIE])], name)
    EmbeddingStore.release(name)


def gradient(function: Callable[[tf.Tensor], tf.Tensor], embeddings: list[list[float]], upstream: Any) -> list[Any]:
    """Gradient of sum(function(embeddings) * upstream)."""
    values = tf.constant(embeddings, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = tf.reduce_sum(function(values) * tf.constant(upstream, tf.float32))
    return tf.convert_to_tensor(tape.gradient(loss, values)).numpy().tolist()


def ids(*rows: int) -> tf.Tensor:
    return tf.constant(rows, tf.int64)


def column(*values: float) -> tf.Tensor:
    return tf.constant([[value] for value in values], tf.float32)


@covers("emb:L1")
def test_a_sum_adds_the_ids_of_each_row() -> None:
    assert reduce_sum(ids(0, 1, 3), column(1, 2, 3)).numpy().tolist() == [[1], [5]]


@covers("emb:L2")
def test_first_n_pads_short_rows_and_cuts_long_ones() -> None:
    result = first_n(ids(0, 1, 3, 6), column(1, 2, 3, 4, 5, 6), 2)
    assert result.numpy().tolist() == [[[1], [0]], [[2], [3]], [[4], [5]]]
    assert result.shape[1:] == (2, 1)


@covers("emb:L3")
def test_a_sum_is_split_into_slices() -> None:
    total = reduce_sum(ids(0, 1, 1, 3), tf.constant([[1.0, 2], [2, 3], [3, 5]]))
    slices = split_slices("f", total, (1, 1))
    assert slices["f:0_1"].numpy().tolist() == [[1], [0], [5]]
    assert slices["f:1_2"].numpy().tolist() == [[2], [0], [8]]


@covers("emb:L4")
def test_first_n_is_split_on_its_last_axis() -> None:
    first = first_n(ids(0, 1, 1, 4), tf.constant([[1.0, 2], [2, 3], [3, 5], [10, 11]]), 2)
    slices = split_slices("f", first, (1, 1))
    assert slices["f:0_1"].numpy().tolist() == [[[1], [0]], [[0], [0]], [[2], [3]]]
    assert slices["f:1_2"].numpy().tolist() == [[[2], [0]], [[0], [0]], [[3], [5]]]


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@covers("emb:L6")
def test_a_mask_marks_the_positions_of_ids(dtype: tf.DType) -> None:
    mask = sequence_mask(tf.constant([0, 5, 7, 9, 13], dtype), 6)
    rows = ["".join(map(str, row)) for row in mask.numpy().tolist()]
    assert (rows, mask.dtype) == (["111110", "110000", "110000", "111100"], dtype)


def test_a_mask_cuts_rows_that_are_longer() -> None:
    assert sequence_mask(ids(0, 3, 4), 2).numpy().tolist() == [[1, 1], [1, 0]]


@covers("emb:L7")
def test_the_mean_of_an_empty_row_is_zeros_and_passes_no_gradient() -> None:
    splits = ids(0, 2, 2)
    assert reduce_mean(splits, column(1, 3)).numpy().tolist() == [[2], [0]]
    assert gradient(lambda values: reduce_mean(splits, values), [[1], [3]], [[1], [7]]) == [[0.5], [0.5]]
    assert reduce_mean(ids(0, 0), tf.zeros([0, 2])).numpy().tolist() == [[0, 0]]


def test_a_sum_hands_its_gradient_to_every_id_of_the_row() -> None:
    splits = ids(0, 1, 1, 3)
    assert gradient(lambda values: reduce_sum(splits, values), [[1], [2], [3]], [[5], [6], [7]]) == [[5], [7], [7]]


def test_first_n_gives_no_gradient_to_ids_it_left_out() -> None:
    splits = ids(0, 1, 1, 4)
    upstream = [[[1], [2]], [[3], [4]], [[5], [6]]]
    found = gradient(lambda values: first_n(splits, values, 2), [[1], [2], [3], [4]], upstream)
    assert found == [[1], [5], [6], [0]]


def test_a_square_norm_has_a_gradient_of_x_over_y_and_none_at_zero() -> None:
    splits = ids(0, 2, 3, 3)
    embeddings = [[3.0, 0.0], [4.0, 0.0], [0.0, -2.0]]
    assert square_norm(splits, tf.constant(embeddings)).numpy().tolist() == [[5, 0], [0, 2], [0, 0]]
    found = gradient(lambda values: square_norm(splits, values), embeddings, [[10, 10], [10, 10], [10, 10]])
    np.testing.assert_allclose(found, [[6, 0], [8, 0], [0, -10]], rtol=1e-6)


@pytest.mark.parametrize("combiner", [ReduceSum(), ReduceMean(), FirstN(2)])
def test_the_fused_lookup_gives_the_same(store: EmbeddingStore, combiner: Combiner) -> None:
    splits, fids = ids(0, 3, 3, 4), ids(5, 6, 7, 5)
    expected = combine(combiner, splits, store.lookup("movie", fids, missing="create"))
    (pooled,) = store.pooled_lookup([FeatureColumn(MOVIE, "shown", combiner).pooled()], [fids], [splits])
    assert pooled.shape == expected.shape
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


@pytest.mark.parametrize("combiner", [ReduceSum(), ReduceMean(), FirstN(3)])
def test_no_ids_at_all_give_zeros(combiner: Combiner) -> None:
    result = combine(combiner, ids(0, 0, 0), tf.zeros([0, 4]))
    assert result.shape == ([2, 3, 4] if combiner == FirstN(3) else [2, 4])
    assert not result.numpy().any()


@pytest.mark.parametrize("combiner", [ReduceSum(), ReduceMean(), FirstN(2)])
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_combiners_work_where_no_size_is_known(combiner: Combiner, dtype: tf.DType) -> None:
    specs = [tf.TensorSpec([None], dtype), tf.TensorSpec([None, 2], tf.float32)]
    traced = tf.function(lambda splits, values: combine(combiner, splits, values), input_signature=specs)
    splits, values = tf.constant([0, 3, 4], dtype), tf.constant([[1.0, 2], [3, 4], [5, 9], [7, 7]])
    assert np.array_equal(traced(splits, values), combine(combiner, splits, values))
    known = traced.get_concrete_function().output_shapes.as_list()
    assert known == ([None, 2, 2] if combiner == FirstN(2) else [None, 2])
