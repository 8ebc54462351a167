"""Pooled lookups and the way back of their gradients."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Constant, PooledFeature, Segment, Sgd, TableConfig, Zeros
from tests.conformance.covers import covers
from tests.fakes.stores import open_store

SUM = PooledFeature("f", "t")
MEAN = PooledFeature("f", "t", "mean")
FIRST_2 = PooledFeature("f", "t", "first_n", max_length=2)


def _numbered(dim: int = 1) -> EmbeddingStore:
    """Ids 1 to 6 read as their number."""
    store = open_store(TableConfig("t", dim, Sgd(1.0), Zeros()))
    store.assign("t", range(1, 7), [[float(i)] * dim for i in range(1, 7)])
    return store


def _pool(store: EmbeddingStore, feature: PooledFeature, values: list[int], splits: list[int]) -> list[Any]:
    (pooled,) = store.pooled_lookup([feature], [values], [splits])
    return pooled.numpy().tolist()


def _column(store: EmbeddingStore, ids: list[int]) -> list[float]:
    return store.lookup("t", ids).numpy()[:, 0].tolist()


@covers("emb:L1")
def test_a_sum_adds_the_ids_of_each_row() -> None:
    assert _pool(_numbered(), SUM, [1, 2, 3], [0, 1, 3]) == [[1], [5]]


@covers("emb:L2")
def test_first_n_pads_short_rows_and_cuts_long_ones() -> None:
    pooled = _pool(_numbered(), FIRST_2, [1, 2, 3, 4, 5, 6], [0, 1, 3, 6])
    assert pooled == [[[1], [0]], [[2], [3]], [[4], [5]]]


@covers("emb:L7")
def test_a_mean_of_an_empty_row_is_zeros_and_gives_no_gradient() -> None:
    store = _numbered()
    splits = [0, 0, 3]
    assert _pool(store, MEAN, [1, 2, 3], splits) == [[0], [2]]
    store.apply_pooled_gradients([MEAN], [[1, 2, 3]], [splits], [[[100.0], [3.0]]])
    np.testing.assert_allclose(_column(store, [1, 2, 3]), [0, 1, 2])


def test_an_empty_batch_is_of_no_rows() -> None:
    assert _pool(_numbered(), MEAN, [], [0]) == []
    assert _pool(_numbered(), FIRST_2, [], [0, 0]) == [[[0], [0]]]


def test_unknown_ids_count_in_a_mean_and_hold_their_place_in_first_n() -> None:
    store = _numbered()
    assert _pool(store, MEAN, [9, 6], [0, 2]) == [[3]]
    assert _pool(store, FIRST_2, [9, 6], [0, 2]) == [[[0], [6]]]
    assert store.size("t") == 6


def test_first_n_gives_gradients_to_the_ids_it_shows_only() -> None:
    store = _numbered()
    gradients = [[[1.0], [10.0]], [[2.0], [20.0]]]
    store.apply_pooled_gradients([FIRST_2], [[1, 2, 1, 3]], [[0, 1, 4]], [gradients])
    assert _column(store, [1, 2, 3]) == [1 - 1 - 20, 2 - 2, 3]
    assert store.steal_touched()["t"].tolist() == [1, 2]


def test_gradients_are_summed_over_all_features_of_a_table() -> None:
    store = open_store(TableConfig("t", 1, Sgd(1.0), Zeros()))
    features = [
        PooledFeature("sum", "t"),
        PooledFeature("mean", "t", "mean"),
        PooledFeature("first", "t", "first_n", 1),
    ]
    values, splits = [[1, 1], [1, 2], [2, 1]], [[0, 2]] * 3
    store.apply_pooled_gradients(features, values, splits, [[[1.0]], [[10.0]], [[[100.0]]]])
    assert _column(store, [1, 2]) == [-7, -105]


def test_a_feature_that_the_loss_does_not_use_creates_no_ids() -> None:
    store = _numbered()
    features = [SUM, PooledFeature("unused", "t")]
    store.apply_pooled_gradients(features, [[1], [9]], [[0, 1]] * 2, [[[1.0]], None])
    store.apply_pooled_gradients(features, [[1], [9]], [[0, 1]] * 2, [None, None])
    assert _column(store, [1]) == [0]
    assert store.size("t") == 6


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    dim=st.integers(1, 33),
    combiner=st.sampled_from(["sum", "mean", "first_n"]),
    seed=st.integers(0, 1 << 30),
)
def test_a_pooled_lookup_equals_a_row_wise_one(lengths: list[int], dim: int, combiner: str, seed: int) -> None:
    splits = np.cumsum([0, *lengths])
    ids = np.random.default_rng(seed).integers(-500, 500, splits[-1])
    store = open_store(TableConfig("t", dim))
    feature = PooledFeature("f", "t", combiner, max_length=5 if combiner == "first_n" else 0)
    (pooled,) = store.pooled_lookup([feature], [ids], [splits], missing="create")
    vectors = store.lookup("t", ids).numpy()
    for row, (begin, end) in zip(pooled.numpy(), itertools.pairwise(splits), strict=True):
        if combiner == "first_n":
            expected = np.zeros((5, dim))
            expected[: end - begin] = vectors[begin:end][:5]
        else:
            divisor = max(end - begin, 1) if combiner == "mean" else 1
            expected = vectors[begin:end].sum(axis=0, dtype=np.float64) / divisor
        np.testing.assert_allclose(row, expected, atol=2e-6)


def test_a_tape_and_one_update_train_a_tf_function() -> None:
    store = open_store(
        TableConfig("m", segments=(Segment(1, Sgd(1.0), Constant(1.0)), Segment(1, Sgd(0.1), Constant(1.0)))),
        TableConfig("u", 1, Sgd(2.0), Zeros()),
    )
    features = [PooledFeature("m", "m", "mean"), PooledFeature("u", "u", "first_n", 1), PooledFeature("unused", "u")]

    @tf.function
    def step(values: list[tf.Tensor], splits: list[tf.Tensor]) -> tf.Tensor:
        pooled = store.pooled_lookup(features, values, splits, missing="create")
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            loss = 3.0 * tf.reduce_sum(pooled[0]) + tf.reduce_sum(pooled[1])
        store.apply_pooled_gradients(features, values, splits, tape.gradient(loss, pooled))
        return loss

    values = [tf.constant(ids, tf.int64) for ids in ([1, 2, 1], [5, 7], [6])]
    splits = [tf.constant(ends, tf.int64) for ends in ([0, 2, 3], [0, 2, 2], [0, 0, 1])]
    assert float(step(values, splits)) == 3.0 * 4
    np.testing.assert_allclose(store.lookup("m", [1, 2]), [[1 - 4.5, 1 - 0.45], [1 - 1.5, 1 - 0.15]], rtol=1e-6)
    assert store.lookup("u", [5, 6, 7]).numpy().tolist() == [[-2], [0], [0]]
    touched = store.steal_touched()
    assert {table: ids.tolist() for table, ids in touched.items()} == {"m": [1, 2], "u": [5]}


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ([0, 1], "must end at the number of ids, 2, not 1"),
        ([0, 3], "must end at the number of ids, 2, not 3"),
        ([1, 2], "must start at 0, not 1"),
        ([0, 2, 1, 2], "must not fall, at row 1"),
        ([], "must have at least one element"),
    ],
)
def test_bad_row_splits_name_the_feature_and_the_place(splits: list[int], problem: str) -> None:
    store = _numbered()
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"feature 'f': row_splits {problem}"):
        store.pooled_lookup([SUM], [[1, 2]], [splits])
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"feature 'f': row_splits {problem}"):
        store.apply_pooled_gradients([SUM], [[1, 2]], [splits], [np.ones((max(len(splits) - 1, 0), 1))])
    assert _column(store, [1, 2]) == [1, 2]


def test_features_ids_and_gradients_must_come_in_equal_numbers() -> None:
    store = _numbered()
    with pytest.raises(ValueError, match="1 features, 2 values, 1 row_splits"):
        store.pooled_lookup([SUM], [[1], [2]], [[0, 1]])
    with pytest.raises(ValueError, match="at least one: got 0 features"):
        store.pooled_lookup([], [], [])
    with pytest.raises(ValueError, match="got 2 gradients for 1 features"):
        store.apply_pooled_gradients([SUM], [[1]], [[0, 1]], [[[1.0]], [[1.0]]])


@pytest.mark.parametrize(("feature", "shape"), [(SUM, (2, 1)), (SUM, (1, 2)), (FIRST_2, (1, 1)), (FIRST_2, (1, 3, 1))])
def test_a_gradient_must_have_the_shape_of_its_output(feature: PooledFeature, shape: tuple[int, ...]) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"gradient of feature 'f': expected shape \[1,"):
        _numbered().apply_pooled_gradients([feature], [[1, 2]], [[0, 2]], [np.ones(shape)])


def test_the_bad_id_of_a_pooled_gradient_is_named_though_it_shares_a_row_with_a_good_one() -> None:
    store = _numbered()
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 't': the gradient of id 2 is NaN or infinite"):
        store.apply_pooled_gradients([SUM], [[1, 2, 2]], [[0, 2, 3]], [[[1.0], [np.nan]]])
    assert _column(store, [1, 2]) == [1, 2]
