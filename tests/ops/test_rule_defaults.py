"""Two steps of every update rule as it is declared without arguments: each default takes part in these numbers."""

from typing import Any

import numpy as np
import pytest

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
    Optimizer,
    RmsProp,
    RmsPropV2,
    Sgd,
)
from millrace.ops.table_config import Segment, TableConfig, Zeros
from tests.conformance.covers import covers
from tests.fakes.stores import open_store

_TWO = [[10.0, 1.0]] * 2

# Rule, gradients of the steps 1, 2 and so on, weights after each of them. Where no vector is named, the numbers are the
# formula's of the class's docstring.
_STEPS: list[Any] = [
    pytest.param(Sgd(), [[1.0]] * 2, [[-0.01], [-0.02]], id="sgd"),
    pytest.param(Adagrad(), [[1.0]] * 2, [[-0.009534626], [-0.016435281]], id="adagrad"),
    pytest.param(
        Adadelta(), _TWO, [[-0.0031607, -0.0030151], [-0.0064035, -0.0061047]], marks=covers("emb:O7"), id="adadelta"
    ),
    pytest.param(
        Adam(),
        [[10.0, 1.0]] * 3,
        [[-0.00990099, -0.00909091], [-0.01983060, -0.01842895], [-0.0297729, -0.0278805]],
        marks=covers("emb:O8"),
        id="adam",
    ),
    pytest.param(
        Adam(use_nesterov=True),
        [[10.0]] * 3,
        [[-0.0188119], [-0.0329746], [-0.0455915]],
        marks=covers("emb:O9"),
        id="adam with nesterov",
    ),
    pytest.param(
        AmsGrad(),
        [[10.0], [0.0], [0.0]],
        [[-0.0099010], [-0.0165170], [-0.0216171]],
        marks=covers("emb:O11"),
        id="amsgrad",
    ),
    pytest.param(
        Adam(),
        [[10.0], [0.0], [0.0]],
        [[-0.0099010], [-0.0165500], [-0.0217011]],
        marks=covers("emb:O11"),
        id="adam forgets",
    ),
    pytest.param(AdaMom(), [[10.0]] * 2, [[-5e-8], [-1.495e-7]], id="adamom"),
    pytest.param(
        Momentum(),
        [[10.0, 1.0]] * 3,
        [[-0.1, -0.01], [-0.29, -0.029], [-0.561, -0.0561]],
        marks=covers("emb:O12"),
        id="momentum",
    ),
    pytest.param(
        Momentum(use_nesterov=True),
        [[10.0]] * 3,
        [[-0.19], [-0.461], [-0.8049]],
        marks=covers("emb:O13"),
        id="momentum with nesterov",
    ),
    pytest.param(MovingAverage(), [[10.0]] * 2, [[1.0], [1.9]], marks=covers("emb:O14"), id="moving_average"),
    pytest.param(RmsProp(), [[10.0]] * 2, [[-0.024025], [-0.042686]], marks=covers("emb:O15"), id="rmsprop"),
    pytest.param(
        RmsPropV2(), _TWO, [[-0.0090909, -0.005], [-0.0158549, -0.0092045]], marks=covers("emb:O16"), id="rmspropv2"
    ),
    pytest.param(
        Ftrl(), _TWO, [[-0.009995, -0.00953463], [-0.0170643, -0.0164353]], marks=covers("emb:O17"), id="ftrl"
    ),
    pytest.param(GroupFtrl(), [[3.0, 4.0]] * 2, [[-0.0075, -0.008], [-0.0132223, -0.0140088]], id="group_ftrl"),
    pytest.param(
        GroupAdagrad(), [[3.0, 4.0]] * 2, [[-0.0074767, -0.0099689], [-0.0127717, -0.0170290]], id="group_adagrad"
    ),
    pytest.param(BatchSoftmax(), [[1.0]] * 2, [[0.1], [0.19]], id="batch_softmax"),
]


@pytest.mark.parametrize(("rule", "gradients", "weights"), _STEPS)
def test_a_rule_without_arguments_takes_these_steps(
    rule: Optimizer, gradients: list[list[float]], weights: list[list[float]]
) -> None:
    store = open_store(TableConfig("t", segments=(Segment(len(gradients[0]), rule, Zeros()),)))
    for step, (gradient, expected) in enumerate(zip(gradients, weights, strict=True), 1):
        store.apply_gradients("t", [1], [gradient], global_step=step)
        np.testing.assert_allclose(store.lookup("t", [1]).numpy()[0], expected, rtol=3e-5)


def test_every_rule_has_its_steps() -> None:
    assert {type(param.values[0]) for param in _STEPS} == set(OPTIMIZERS.values())
