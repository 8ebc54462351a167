"""Compressors: what a training table shows and learns, and what a serving table stores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Bf16,
    Compressor,
    Constant,
    Fp16,
    Fp32,
    Int8,
    OneBit,
    PooledFeature,
    RandomUniform,
    Segment,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store
from tests.reference import compressors

_STEP = 5 / 128  # of Int8(5)


def _training(compressor: Compressor) -> EmbeddingStore:
    return open_store(TableConfig("t", 1, Sgd(1.0), Zeros(), compressor=compressor))


def _serving(compressor: Compressor, dim: int = 1) -> EmbeddingStore:
    return open_store(TableConfig("t", dim, None, Zeros(), compressor=compressor, serving=True))


def _shown(store: EmbeddingStore, weights: list[float], step: int = 0) -> list[float]:
    """What comes back of weights that are assigned to as many ids."""
    ids = range(len(weights))
    store.assign("t", ids, [[weight] for weight in weights])
    return store.lookup("t", ids, global_step=step).numpy()[:, 0].tolist()


def _weights(store: EmbeddingStore, ids: list[int]) -> np.ndarray:
    """Weights as the optimizer knows them."""
    return store.lookup_entries("t", ids)[0].values[:, 0]


def _learned(compressor: Compressor, weight: float, gradient: float, step: int) -> float:
    """The gradient that reaches a weight."""
    store = _training(compressor)
    store.assign("t", [1], [[weight]])
    store.apply_gradients("t", [1], [[gradient]], global_step=step)
    return weight - float(_weights(store, [1])[0])


# A NaN is no weight here: assigning one is refused, see test_misuse.
@covers("emb:Q1")
@pytest.mark.parametrize("open_table", [_training, _serving])
def test_int8_rounds_to_steps_and_cuts_what_is_beyond(open_table: Any) -> None:
    shown = _shown(open_table(Int8(5.0)), [100.0, 0.0, 3.5, -100.0])
    assert shown == [4.9609375, 0, 3.515625, -5]


@covers("emb:Q2")
@pytest.mark.parametrize("open_table", [_training, _serving])
def test_int8_rounds_to_the_nearest_step(open_table: Any) -> None:
    shown = _shown(open_table(Int8(5.0)), [1.4 * _STEP, 1.6 * _STEP, -1.4 * _STEP, -1.6 * _STEP])
    assert shown == [_STEP, 2 * _STEP, -_STEP, -2 * _STEP]


@covers("emb:Q3")
def test_int8_of_range_1_ends_a_step_below_1() -> None:
    assert _shown(_serving(Int8()), [1.0, 0.5, -1.0]) == [0.9921875, 0.5, -1.0]


def test_int8_trains_weights_that_it_does_not_show() -> None:
    store = _training(Int8(5.0))
    store.assign("t", [1], [[0.0]])
    for shown in (0.0, _STEP, _STEP, _STEP, 2 * _STEP):
        store.apply_gradients("t", [1], [[-0.3 * _STEP]])
        assert float(store.lookup("t", [1])[0, 0]) == shown
    np.testing.assert_allclose(_weights(store, [1]), [1.5 * _STEP], rtol=1e-5)


@covers("emb:Q4")
def test_fp16_keeps_three_digits() -> None:
    weights = [0.1, 0.2, 10000.0]
    np.testing.assert_allclose(_shown(_serving(Fp16()), weights), weights, atol=1e-4)


@pytest.mark.parametrize("compressor", [Fp32(), Fp16(), Bf16()])
def test_a_training_table_shows_full_weights_unless_it_trains_quantised(compressor: Compressor) -> None:
    assert _shown(_training(compressor), [0.1, 1e30]) == [float(np.float32(0.1)), float(np.float32(1e30))]


@covers("emb:Q5")
@pytest.mark.parametrize("packed", [False, True])
def test_one_bit_keeps_the_sign(packed: bool) -> None:
    store = _serving(OneBit(amplitude=1.0, packed=packed))
    assert _shown(store, [100.0, 0.1, 1e-5, 0.0, -1e-5, -0.1, -100.0]) == [1, 1, 1, -1, -1, -1, -1]


@covers("emb:Q6")
def test_one_bit_shows_a_hyperbolic_tangent_in_training() -> None:
    np.testing.assert_allclose(_shown(_training(OneBit()), [1.0, 2.0]), [0.07615941, 0.09640275], rtol=1e-6)


@covers("emb:Q7")
@pytest.mark.parametrize(("gradient", "step", "expected"), [(1.0, 0, 0.00706508), (2.0, 999, 0.01413016)])
def test_one_bit_multiplies_the_gradient_by_the_derivative(gradient: float, step: int, expected: float) -> None:
    assert _learned(OneBit(step_size=1000), 2.0, gradient, step) == pytest.approx(expected, rel=1e-4)


@covers("emb:Q8")
def test_one_bit_grows_steeper_with_the_steps() -> None:
    rule = OneBit(step_size=1000)
    assert _learned(rule, 2.0, 100.0, 1000) == pytest.approx(0.0054426, rel=1e-3)
    assert _learned(rule, 2.0, 200.0, 1001) == pytest.approx(0.0108852, rel=1e-3)
    assert _shown(_training(rule), [2.0], step=1001)[0] == pytest.approx(0.09998888, rel=1e-6)


@covers("emb:Q9")
def test_the_scale_of_one_bit_is_that_of_the_last_multiple_of_its_step_size() -> None:
    rule = OneBit(step_size=100, amplitude=1.0)
    assert _learned(rule, 1.0, 1.0, 100) == pytest.approx(0.35840667, rel=1e-5)
    for step, scale in ((99, 1.0), (100, 1.2247449), (199, 1.2247449), (200, 1.4142136)):
        assert _shown(_training(rule), [1.0], step)[0] == pytest.approx(np.tanh(scale), rel=1e-6)


# Of a row of four numbers the original takes the first three; here it is refused, as no caller means to lose a number.
@covers("emb:Q10")
def test_segments_are_compressed_each_in_its_own_way() -> None:
    segments = Segment(1, None, Zeros(), Fp16()), Segment(2, None, Zeros(), Fp16())
    store = open_store(TableConfig("t", segments=segments, serving=True))
    store.assign("t", [1], [[0.5, 1.5, 2.5]])
    assert store.lookup("t", [1]).numpy().tolist() == [[0.5, 1.5, 2.5]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 't' has dim 3, not 4"):
        store.assign("t", [1], [[0.5, 1.5, 2.5, 3.5]])


def test_pooled_and_fused_lookups_show_what_a_lookup_shows() -> None:
    store = _training(OneBit())
    shown = _shown(store, [1.0, 2.0], step=400)
    (pooled,) = store.pooled_lookup([PooledFeature("f", "t")], [[0, 1]], [[0, 1, 2]], global_step=400)
    assert pooled.numpy()[:, 0].tolist() == shown
    assert store.fused_lookup(["t"], [0, 1], [2], global_step=400).embeddings.numpy().tolist() == shown


def test_a_first_vector_is_shown_as_an_entry_would_show_it() -> None:
    for serving, rule in ((False, Int8()), (False, OneBit()), (True, Fp16()), (True, Bf16()), (True, Int8())):
        optimizer = None if serving else Sgd()
        store = open_store(TableConfig("t", 3, optimizer, RandomUniform(), compressor=rule, serving=serving))
        first = store.lookup("t", [1], missing="first_vector").numpy()
        created = store.lookup("t", [1], missing="create").numpy()
        np.testing.assert_array_equal(created, first)
        np.testing.assert_array_equal(store.lookup("t", [1]), first)


_RULES = [Fp32(), Fp16(), Bf16(), Int8(0.5), OneBit(amplitude=0.3), OneBit(packed=True)]


@settings(max_examples=30, deadline=None)
@given(rule=st.sampled_from(_RULES), dim=st.integers(1, 20), seed=st.integers(0, 1 << 30))
def test_a_serving_table_reads_as_the_codes_of_what_was_written(rule: Compressor, dim: int, seed: int) -> None:
    def stored(rows: np.ndarray) -> np.ndarray:
        return np.stack([compressors.decode(rule, compressors.encode(rule, row), dim) for row in rows])

    rows = np.random.default_rng(seed).normal(size=(8, dim)).astype(np.float32)
    store = _serving(rule, dim)
    store.assign("t", range(8), rows)
    np.testing.assert_array_equal(store.lookup("t", range(8)), stored(rows))
    store.assign_add("t", range(8), rows[::-1])
    np.testing.assert_array_equal(store.lookup("t", range(8)), stored(stored(rows) + rows[::-1]))


@pytest.mark.parametrize("rule", _RULES)
def test_an_export_holds_codes_and_is_no_larger_than_they_are(rule: Compressor, tmp_path: Path) -> None:
    table = TableConfig("t", 64, Sgd(), RandomUniform(-1.0, 1.0), compressor=rule)
    training = open_store(table)
    training.lookup("t", range(1000), missing="create")
    (file,) = training.save(tmp_path, with_state=False)
    serving = open_store(table.for_serving())
    serving.restore(tmp_path)
    weights = training.lookup_entries("t", range(1000))[0].values
    codes = [compressors.encode(rule, row) for row in weights]
    expected = np.stack([compressors.decode(rule, code, 64) for code in codes])
    np.testing.assert_array_equal(serving.lookup("t", range(1000)), expected)
    assert Path(file).stat().st_size < 1000 * (len(codes[0]) + 12) + 1000


def test_a_serving_table_takes_no_gradients_and_an_added_value_starts_from_the_first_vector() -> None:
    store = open_store(TableConfig("t", 1, None, Constant(0.5), compressor=Fp16(), serving=True))
    store.assign_add("t", [1], [[1.0]])
    assert store.lookup("t", [1]).numpy().tolist() == [[1.5]]
    with pytest.raises(ValueError, match="takes no gradients"):
        store.apply_gradients("t", [1], [[1.0]])
