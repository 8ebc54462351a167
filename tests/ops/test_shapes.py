"""Shapes inside a tf.function: known as far as the arguments tell, and wrong ones fail while it is traced."""

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import PooledFeature, TableConfig
from tests.fakes.stores import open_store

_IDS = tf.TensorSpec([None], tf.int64)
_FLOATS = tf.TensorSpec([None], tf.float32)
_SIZES = tf.TensorSpec([None], tf.int32)
_MATRIX = tf.TensorSpec([None, 4], tf.float32)
_TWO_ROWS = tf.TensorSpec([2, 4], tf.float32)
_ANY = tf.TensorSpec(None, tf.int64)
_SUM = PooledFeature("f", "t")
_FIRST_3 = PooledFeature("f", "t", "first_n", max_length=3)

Call = Callable[..., Any]


@pytest.fixture
def store() -> EmbeddingStore:
    return open_store(TableConfig("t", 4), TableConfig("u", 2))


def _trace(call: Call, store: EmbeddingStore, *specs: tf.TensorSpec) -> Any:
    """Static shapes of what the call returns."""
    graph = tf.function(lambda *tensors: call(store, *tensors), autograph=False)
    outputs = graph.get_concrete_function(*specs).structured_outputs
    return tf.nest.map_structure(
        lambda tensor: tensor.shape.as_list() if tensor.shape.rank is not None else None, outputs
    )


@pytest.mark.parametrize(
    ("call", "specs", "shapes"),
    [
        (lambda store, ids: store.lookup("t", ids), [_IDS], [None, 4]),
        (lambda store, ids: store.lookup("t", ids), [tf.TensorSpec([7], tf.int64)], [7, 4]),
        (lambda store, ids: store.lookup("t", ids), [_ANY], [None, 4]),
        (lambda store, ids: store.contains("t", ids), [_IDS], [None]),
        (lambda store, ids: store.reinitialize("t", ids), [_IDS], [None]),
        (lambda store, ids: store.erase("t", ids), [_IDS], []),
        (lambda store, time: store.evict(time), [tf.TensorSpec([], tf.int64)], [None]),
        (lambda store, ids, splits: store.pooled_lookup([_SUM], [ids], [splits]), [_IDS, _IDS], [[None, 4]]),
        (
            lambda store, ids, splits: store.pooled_lookup([_SUM, _FIRST_3], [ids] * 2, [splits] * 2),
            [_IDS, tf.TensorSpec([9], tf.int64)],
            [[8, 4], [8, 3, 4]],
        ),
        (
            lambda store, ids, sizes: list(store.fused_lookup(["t", "u"], ids, sizes, num_shards=3)),
            [_IDS, _SIZES],
            [[None], [3], [7], [7]],
        ),
    ],
)
def test_static_shapes_are_known(store: EmbeddingStore, call: Call, specs: list[tf.TensorSpec], shapes: Any) -> None:
    assert _trace(call, store, *specs) == shapes


@pytest.mark.parametrize(
    ("call", "specs"),
    [
        (lambda store, ids: store.lookup("t", ids), [tf.TensorSpec([None, None], tf.int64)]),
        (lambda store, ids: store.contains("t", ids), [tf.TensorSpec([], tf.int64)]),
        (lambda store, ids: store.erase("t", ids), [tf.TensorSpec([3, 1], tf.int64)]),
        (lambda store, ids: store.reinitialize("t", ids), [tf.TensorSpec([3, 1], tf.int64)]),
        (lambda store, ids, step: store.lookup("t", ids, global_step=step), [_IDS, _IDS]),
        (lambda store, time: store.evict(time), [_IDS]),
        (lambda store, ids, time: store.reinitialize("t", ids, time), [_IDS, _IDS]),
        (lambda store, ids, rows: store.assign("t", ids, rows), [_IDS, _FLOATS]),
        (lambda store, ids, rows: store.assign("t", ids, rows), [tf.TensorSpec([3], tf.int64), _TWO_ROWS]),
        (lambda store, ids, rows: store.apply_gradients("t", ids, rows), [_IDS, _FLOATS]),
        (lambda store, ids, rows: store.apply_gradients("t", ids, rows), [tf.TensorSpec([3], tf.int64), _TWO_ROWS]),
        (
            lambda store, ids, rows, read: store.apply_gradients("t", ids, rows, read_values=read),
            [_IDS, _MATRIX, _FLOATS],
        ),
        (
            lambda store, ids, splits: store.pooled_lookup([_SUM], [ids], [splits]),
            [_IDS, tf.TensorSpec([], tf.int64)],
        ),
        (
            lambda store, ids, splits: store.pooled_lookup([_SUM], [ids], [splits]),
            [tf.TensorSpec([1, 2], tf.int64), _IDS],
        ),
        (
            lambda store, ids, splits, rows: store.apply_pooled_gradients([_SUM], [ids], [splits], [rows]),
            [_IDS, tf.TensorSpec([4], tf.int64), _TWO_ROWS],
        ),
        (
            lambda store, ids, splits, rows: store.apply_pooled_gradients([_FIRST_3], [ids], [splits], [rows]),
            [_IDS, _IDS, _MATRIX],
        ),
        (
            lambda store, ids, sizes: store.fused_lookup(["t", "u"], ids, sizes, num_shards=3),
            [_IDS, tf.TensorSpec([5], tf.int32)],
        ),
        (
            lambda store, ids, sizes, rows: store.fused_apply_gradients(["t"], ids, sizes, rows),
            [_IDS, _SIZES, _MATRIX],
        ),
    ],
)
def test_a_wrong_shape_fails_while_it_is_traced(store: EmbeddingStore, call: Call, specs: list[tf.TensorSpec]) -> None:
    with pytest.raises(ValueError, match="[Ss]hape must be|[Dd]imension|[Ss]hapes must be equal rank"):
        _trace(call, store, *specs)
