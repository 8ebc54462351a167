"""Learning rates as functions of the global step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.learning_rate import PolynomialDecay, learning_rate_of
from millrace.ops.sparse_optimizer import Adagrad, MovingAverage, Sgd
from tests.conformance.covers import covers

_STEPS = [0, 1, 2, 10, 20]
_RATES = [0.01, 0.02, 0.03, 0.11, 0.11]


@covers("emb:L8")
def test_a_decay_from_low_to_high_is_a_straight_line_and_then_its_end() -> None:
    decay = PolynomialDecay(0.01, 10, 0.11)
    assert [decay(step) for step in _STEPS] == pytest.approx(_RATES, abs=1e-9)


@covers("emb:L8")
def test_warm_up_steps_ramp_from_zero_to_the_learning_rate() -> None:
    ramp = learning_rate_of(Adagrad(0.001, warmup_steps=10))
    assert ramp == PolynomialDecay(0.0, 10, 0.001)
    assert ramp(0) == 0
    assert ramp(5) == pytest.approx(0.0005)
    assert ramp(10) == ramp(1000) == pytest.approx(0.001)


def test_a_tensor_gives_a_float32_tensor_in_and_outside_a_function() -> None:
    decay = PolynomialDecay(0.01, 10, 0.11)
    traced = tf.function(decay, input_signature=[tf.TensorSpec([], tf.int64)])
    for call in (decay, traced):
        rates = [call(tf.constant(step, tf.int64)) for step in _STEPS]
        assert {rate.dtype for rate in rates} == {tf.float32}
        np.testing.assert_allclose(rates, _RATES, rtol=1e-6)
    np.testing.assert_allclose(decay(tf.Variable(2, dtype=tf.int64)), 0.03, rtol=1e-6)


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("cycle", [False, True])
def test_it_agrees_with_keras(power: float, cycle: bool) -> None:
    ours = PolynomialDecay(0.1, 7, 0.01, power, cycle)
    theirs = keras.optimizers.schedules.PolynomialDecay(0.1, 7, 0.01, power, cycle)
    for step in (0, 1, 6, 7, 8, 13, 14, 15, 100):
        np.testing.assert_allclose(ours(step), theirs(step), rtol=2e-5)
        np.testing.assert_allclose(ours(tf.constant(step)), theirs(step), rtol=2e-5)


def test_steps_beyond_float32_still_count() -> None:
    decay = PolynomialDecay(1.0, 1 << 26, 0.0)
    step = (1 << 26) - 1
    assert decay(step) == 2.0**-26
    assert float(decay(tf.constant(step, tf.int64))) == 2.0**-26


def test_equal_values_are_equal_rates() -> None:
    assert PolynomialDecay(0.1, 10) == PolynomialDecay(0.1, 10, 0.0001, 1.0, False)
    assert PolynomialDecay(0.1, 10) != PolynomialDecay(0.1, 11)
    assert len({PolynomialDecay(0.1, 10), PolynomialDecay(0.1, 10)}) == 1


def test_the_rate_of_a_segment_is_the_override_or_the_optimizers_own() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    assert learning_rate_of(Sgd(0.5)) == 0.5
    assert learning_rate_of(Sgd(schedule)) is schedule
    assert learning_rate_of(Adagrad(0.001, warmup_steps=10), 0.25) == 0.25
    assert learning_rate_of(Adagrad(0.001), schedule) is schedule
    assert learning_rate_of(Adagrad(0.001), 0.0) == 0.0


def test_an_optimizer_without_a_learning_rate_has_zero() -> None:
    assert learning_rate_of(MovingAverage()) == 0.0
    assert learning_rate_of(None) == 0.0


def test_bad_numbers_are_refused() -> None:
    for make, problem in [
        (lambda: PolynomialDecay(-0.1, 10), "initial_learning_rate must be finite and not negative, not -0.1"),
        (lambda: PolynomialDecay(0.1, 0), "decay_steps must be an integer of at least 1, not 0"),
        (lambda: PolynomialDecay(0.1, 1.5), "decay_steps must be an integer"),  # type: ignore[arg-type]
        (lambda: PolynomialDecay(0.1, 10, float("nan")), "end_learning_rate must be finite"),
        (lambda: PolynomialDecay(0.1, 10, cycle=1), "cycle must be True or False, not 1"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(ValueError, match=problem):
            make()
