"""Optimizers, initializers and compressors as Python sees them: defaults, bounds, messages."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from millrace.ops.compressor import COMPRESSORS, Int8, OneBit
from millrace.ops.initializer import INITIALIZERS, Constant, RandomUniform, batch_softmax_initializer
from millrace.ops.learning_rate import PolynomialDecay
from millrace.ops.sparse_optimizer import (
    OPTIMIZERS,
    Adadelta,
    Adagrad,
    Adam,
    AdaMom,
    AmsGrad,
    BatchSoftmax,
    Ftrl,
    GroupAdagrad,
    GroupFtrl,
    Momentum,
    MovingAverage,
    RmsProp,
    RmsPropV2,
    Sgd,
)

_RULES = [*OPTIMIZERS.values(), *INITIALIZERS.values(), *COMPRESSORS.values()]


def test_kinds_are_the_names_that_the_library_knows() -> None:
    assert set(OPTIMIZERS) == {
        "sgd",
        "adagrad",
        "adadelta",
        "adam",
        "amsgrad",
        "adamom",
        "momentum",
        "moving_average",
        "rmsprop",
        "rmspropv2",
        "ftrl",
        "group_ftrl",
        "group_adagrad",
        "batch_softmax",
    }
    assert set(INITIALIZERS) == {"zeros", "ones", "constant", "random_uniform"}
    assert set(COMPRESSORS) == {"fp32", "fp16", "bf16", "int8", "one_bit"}


@pytest.mark.parametrize("rule", _RULES)
def test_rules_are_values(rule: type[Any]) -> None:
    assert rule() == rule()
    assert len({rule(), rule()}) == 1
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule(), field.name, 0)


def test_epsilons_and_betas_are_those_for_live_events() -> None:
    for rule in (Adam(), AmsGrad()):
        assert (rule.beta1, rule.beta2, rule.epsilon) == (0.9, 0.99, 0.01)
    assert (Adadelta().averaging_ratio, Adadelta().epsilon) == (0.9, 0.01)
    assert (Ftrl().beta, Ftrl().initial_accumulator_value) == (0.0, 0.1)
    assert (GroupFtrl().beta, GroupFtrl().initial_accumulator_value) == (1.0, 0.0)
    assert (GroupAdagrad().beta, GroupAdagrad().initial_accumulator_value) == (0.0, 0.1)
    assert (AdaMom().learning_rate, AdaMom().ada_decay, AdaMom().mom_decay) == (5e-6, 0.9999, 0.99)
    assert BatchSoftmax().learning_rate == 0.1
    assert (OneBit().step_size, OneBit().max_scale, OneBit().amplitude) == (200, 10000.0, 0.1)


def test_all_but_the_moving_average_have_a_learning_rate_and_a_warm_up() -> None:
    for rule in OPTIMIZERS.values():
        names = {field.name for field in dataclasses.fields(rule)}
        assert ({"learning_rate", "warmup_steps"} <= names) == (rule is not MovingAverage)


def test_a_learning_rate_may_be_a_function_unless_it_warms_up() -> None:
    decay = PolynomialDecay(0.1, 10)
    assert Sgd(decay).learning_rate is decay
    with pytest.raises(ValueError, match="warmup_steps need a learning_rate that is a number"):
        Adagrad(decay, warmup_steps=5)


@pytest.mark.parametrize(
    ("rule", "fields", "problem"),
    [
        (Sgd, {"learning_rate": -1.0}, "learning_rate must be finite and not negative, not -1.0"),
        (Sgd, {"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        (Sgd, {"warmup_steps": 1.5}, "warmup_steps must be an integer of at least 0, not 1.5"),
        (Adagrad, {"initial_accumulator_value": float("inf")}, "initial_accumulator_value must be finite"),
        (Adagrad, {"decouple_weight_decay": 1}, "decouple_weight_decay must be True or False, not 1"),
        (Adadelta, {"averaging_ratio": 1.0}, "averaging_ratio must be below 1, not 1.0"),
        (Adam, {"beta1": 1.0}, "beta1 must be below 1, not 1.0"),
        (AmsGrad, {"beta2": 2}, "beta2 must be below 1, not 2"),
        (Adam, {"epsilon": float("nan")}, "epsilon must be finite and not negative, not nan"),
        (AdaMom, {"mom_decay": -0.5}, "mom_decay must be finite and not negative, not -0.5"),
        (Momentum, {"use_nesterov": None}, "use_nesterov must be True or False, not None"),
        (MovingAverage, {"momentum": 1.0}, "momentum must be below 1, not 1.0"),
        (RmsProp, {"momentum": True}, "momentum must be a number, not True"),
        (RmsPropV2, {"weight_decay_factor": -1.0}, "weight_decay_factor must be finite and not negative"),
        (GroupFtrl, {"l1_regularization_strength": -1}, "l1_regularization_strength must be finite"),
        (Constant, {"value": float("nan")}, "value must be finite"),
        (RandomUniform, {"minval": 1.0, "maxval": 0.0}, "minval not above maxval"),
        (RandomUniform, {"maxval": float("inf")}, "maxval must be finite"),
        (Int8, {"range": 0.0}, "range must be above 0, not 0.0"),
        (OneBit, {"step_size": 0}, "step_size must be an integer of at least 1, not 0"),
        (OneBit, {"amplitude": -0.1}, "amplitude must be finite and not negative, not -0.1"),
        (OneBit, {"packed": 1.0}, "packed must be True or False, not 1.0"),
    ],
)
def test_bad_fields_are_refused_by_name_and_value(rule: type[Any], fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        rule(**fields)
    assert str(refusal.value).startswith(f"{rule.__name__}(")


def test_what_has_no_algorithm_has_no_field() -> None:
    for rule, name in [
        (Adagrad, "hessian_compression_times"),
        (Adagrad, "enable_dynamic_wd"),
        (Adam, "use_beta1_warmup"),
    ]:
        with pytest.raises(TypeError, match=name):
            rule(**{name: 1})  # type: ignore[call-arg]


def test_a_batch_softmax_starts_at_an_interval_of_at_least_one_step() -> None:
    assert batch_softmax_initializer(10) == Constant(10)
    for interval in (0.5, -1.0, float("nan")):
        with pytest.raises(ValueError, match="first_interval must be at least 1"):
            batch_softmax_initializer(interval)


def test_rules_are_declared_without_tensorflow() -> None:
    program = (
        "import sys, millrace.ops.compressor, millrace.ops.initializer;"
        "import millrace.ops.learning_rate, millrace.ops.sparse_optimizer;"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
