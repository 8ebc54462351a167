"""Segments of an entry through the op: optimizers, their rates and state, delay compensation, stochastic rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adadelta,
    Adagrad,
    Adam,
    BatchSoftmax,
    Constant,
    Ftrl,
    PolynomialDecay,
    RandomUniform,
    Segment,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store


def _store(*segments: Segment) -> EmbeddingStore:
    return open_store(TableConfig("t", segments=segments))


def _steps(store: EmbeddingStore, gradient: list[float], count: int) -> list[Any]:
    """Weights of an id after each of `count` steps."""
    weights = []
    for _ in range(count):
        store.apply_gradients("t", [1], [gradient])
        weights.append(store.lookup("t", [1]).numpy()[0].tolist())
    return weights


def _close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@covers("emb:O1")
def test_sgd_steps_along_the_gradient() -> None:
    _close(_steps(_store(Segment(1, Sgd(0.1), Zeros())), [1.0], 1), [[-0.1]])


@covers("emb:O2")
def test_each_segment_has_its_own_learning_rate() -> None:
    segments = Segment(1, Sgd(1.0), Zeros()), Segment(2, Sgd(5.0), Zeros(), learning_rate=2.0)
    _close(_steps(_store(*segments), [1.0, 2.0, 3.0], 1), [[-1, -4, -6]])


def test_a_segment_takes_its_rate_at_the_global_step_or_none_at_all() -> None:
    store = _store(
        Segment(1, Sgd(PolynomialDecay(1.0, 10, 0.0)), Zeros()),
        Segment(1, Sgd(1.0, warmup_steps=10), Zeros()),
        Segment(1, None, Constant(3.0)),
    )
    store.apply_gradients("t", [1], np.ones((1, 3)), global_step=3)
    _close(store.lookup("t", [1]), [[-0.7, -0.3, 3.0]])


@covers("emb:O3")
def test_adagrad_divides_by_the_root_of_its_norm() -> None:
    segment = Segment(2, Adagrad(0.1, initial_accumulator_value=1.0), Zeros())
    _close(_steps(_store(segment), [1.0, 2.0], 1), [[-0.07071067, -0.08944272]])


@covers("emb:O5")
def test_adagrad_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    segment = Segment(1, Adagrad(1.0), Zeros())
    store = _store(segment)
    _close(_steps(store, [1.0], 1), [[-0.95346254]])
    store.save(tmp_path)
    restored = _store(segment)
    restored.restore(tmp_path)
    _close(_steps(restored, [1.0], 1), [[-1.643528]])


@covers("emb:O8")
def test_adam_counts_the_steps_of_each_id() -> None:
    weights = _steps(_store(Segment(2, Adam(0.01), Zeros())), [10.0, 1.0], 3)
    _close(weights, [[-0.00990099, -0.00909091], [-0.01983060, -0.01842895], [-0.0297729, -0.0278805]])


@covers("emb:O17")
def test_ftrl_keeps_its_norm_and_z() -> None:
    store = _store(Segment(2, Ftrl(0.01), Zeros()))
    _close(_steps(store, [10.0, 1.0], 1), [[-0.009995, -0.00953463]])
    _close(store.lookup_entries("t", [1])[0].values[0, 2:], [100.1, 1.1, 10, 1])
    _close(_steps(store, [10.0, 1.0], 1), [[-0.0170643, -0.0164353]])


@covers("emb:O25")
@pytest.mark.parametrize("interval", [5, 10])
def test_batch_softmax_finds_how_often_an_id_comes(interval: int) -> None:
    store = _store(Segment(1, BatchSoftmax(0.1), Zeros()))
    store.apply_gradients("t", [2], [[1.0]], global_step=1)
    _close(store.lookup("t", [2]), [[0.1]])
    for step in range(0, 1000, interval):
        store.apply_gradients("t", [1], [[0.0]], global_step=step)
    np.testing.assert_allclose(1 / store.lookup("t", [1]).numpy(), [[1 / interval]], atol=0.01)


@covers("emb:O26")
def test_stochastic_rounding_goes_up_as_often_as_a_weight_is_nearer_to_it() -> None:
    store = _store(Segment(1, Sgd(1.0), Zeros(), stochastic_rounding=True), Segment(1, Sgd(1.0), Zeros()))
    ids = np.arange(20_000)
    store.apply_gradients("t", ids, np.full((len(ids), 2), -1.0003))
    rounded, exact = store.lookup("t", ids).numpy().T
    assert set(rounded.tolist()) == {1.0, 1.0009765625}
    assert abs(np.mean(rounded > 1) - 0.30725) < 0.015
    assert set(exact.tolist()) == {float(np.float32(1.0003))}
    store.apply_gradients("t", ids, np.zeros((len(ids), 2)), global_step=1)
    np.testing.assert_array_equal(store.lookup("t", ids)[:, 0], rounded)


# The vector gives the weights that a gradient was taken at; here they come with the gradients.
@covers("emb:O24")
def test_a_late_gradient_is_compensated_by_how_far_the_weight_has_moved() -> None:
    store = _store(Segment(2, Adadelta(0.01), Zeros(), delay_compensation=0.1))
    for read_value, expected in ((0.1, [-0.0031603, -0.00301233]), (0.0, [-0.0065548, -0.00611400])):
        store.apply_gradients("t", [1], [[10.0, 1.0]], read_values=[[read_value] * 2])
        _close(store.lookup("t", [1]), [expected])


def test_without_read_values_nothing_is_compensated() -> None:
    store = _store(Segment(1, Sgd(1.0), Constant(2.0), delay_compensation=0.5))
    store.apply_gradients("t", [1, 2], [[1.0], [1.0]])
    store.apply_gradients("t", [3, 4], [[1.0], [1.0]], read_values=[[1.0], [2.0]])
    _close(store.lookup("t", [1, 2, 3, 4]), [[1], [1], [2 - 1.5], [1]])


def test_a_segment_draws_the_first_weights_of_its_own_dims() -> None:
    whole = open_store(TableConfig("t", 5, Sgd(), RandomUniform(), seed=9))
    halves = open_store(
        TableConfig("t", segments=(Segment(2, Sgd(), RandomUniform()), Segment(3, None, RandomUniform())), seed=9)
    )
    ids = np.arange(50)
    expected = whole.lookup("t", ids, missing="create")
    np.testing.assert_array_equal(halves.lookup("t", ids, missing="create"), expected)
