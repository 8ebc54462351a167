"""Update rules of a segment's weights.

In the formulas w is a weight, g its gradient plus `weight_decay_factor * w`, and rate the learning rate of the segment
at this step. An id counts only its own updates. Defaults are those for live events, not those of the papers: Adam's
epsilon of 0.01 and the `+ 1` of RmsProp are meant.
"""

import dataclasses
from typing import ClassVar

from millrace.ops.learning_rate import LearningRate
from millrace.ops.rule_checks import check_optimizer


@dataclasses.dataclass(frozen=True)
class Sgd:
    """`w -= rate * gradient`. No state."""

    kind: ClassVar[str] = "sgd"
    learning_rate: LearningRate = 0.01
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True)
class Adagrad:
    """Duchi, Hazan, Singer 2011: `norm += g^2; w -= rate * g / sqrt(norm)`.

    State: dim floats. There is no epsilon: `initial_accumulator_value` limits the first updates. The rate is 0.01 as
    for the other rules: the first n steps of an id move a weight by about 2 * rate * sqrt(n), and with 0.001 an id seen
    a hundred times, as most live ids are, would hardly leave its first vector. With
    `decouple_weight_decay` (Loshchilov, Hutter 2019) g is the bare gradient, and w loses
    `rate * weight_decay_factor * w` besides.
    """

    kind: ClassVar[str] = "adagrad"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.1
    weight_decay_factor: float = 0.0
    decouple_weight_decay: bool = False
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True)
class Adadelta:
    """Zeiler 2012, with a rate: `w -= rate * g * rms(updates) / rms(gradients)`.

    State: 2 * dim floats, running means of squares that keep `averaging_ratio` of the old.
    """

    kind: ClassVar[str] = "adadelta"
    learning_rate: LearningRate = 0.01
    averaging_ratio: float = 0.9
    epsilon: float = 0.01
    weight_decay_factor: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("averaging_ratio",))


@dataclasses.dataclass(frozen=True)
class Adam:
    """Kingma, Ba 2015 (Nesterov: Dozat 2016), epsilon outside the root.

    State: 2 * dim + 2 floats: each id counts its own steps.
    """

    kind: ClassVar[str] = "adam"
    learning_rate: LearningRate = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 0.01
    weight_decay_factor: float = 0.0
    use_nesterov: bool = False
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("beta1", "beta2"))


@dataclasses.dataclass(frozen=True)
class AmsGrad:
    """Reddi, Kale, Kumar 2018: Adam that divides by the root of the largest second moment so far.

    State: 3 * dim + 2 floats.
    """

    kind: ClassVar[str] = "amsgrad"
    learning_rate: LearningRate = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 0.01
    weight_decay_factor: float = 0.0
    use_nesterov: bool = False
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("beta1", "beta2"))


@dataclasses.dataclass(frozen=True)
class AdaMom:
    """Adam's running mean of gradients over the root of Adagrad's mean square, both decayed; epsilon inside the root.

    State: 2 * dim + 1 floats.
    """

    kind: ClassVar[str] = "adamom"
    learning_rate: LearningRate = 5e-6
    mom_decay: float = 0.99
    ada_decay: float = 0.9999
    epsilon: float = 1e-6
    weight_decay_factor: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("mom_decay", "ada_decay"))


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Polyak 1964: `v = momentum * v - rate * g; w += v`; Nesterov's form after Sutskever et al. 2013.

    State: dim floats.
    """

    kind: ClassVar[str] = "momentum"
    learning_rate: LearningRate = 0.01
    momentum: float = 0.9
    weight_decay_factor: float = 0.0
    use_nesterov: bool = False
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("momentum",))


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """`w = momentum * w + (1 - momentum) * value`, where what comes as gradient is an observed value.

    No state and no learning rate.
    """

    kind: ClassVar[str] = "moving_average"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("momentum",))


@dataclasses.dataclass(frozen=True)
class RmsProp:
    """After Tieleman, Hinton 2012: `n = momentum * n + (1 - momentum) * g^2; w -= rate * g / (sqrt(n) + 1)`.

    State: dim floats.
    """

    kind: ClassVar[str] = "rmsprop"
    learning_rate: LearningRate = 0.01
    momentum: float = 0.9
    weight_decay_factor: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("momentum",))


@dataclasses.dataclass(frozen=True)
class RmsPropV2:
    """RmsProp over a decayed sum: `n = momentum * n + g^2`. State: dim floats."""

    kind: ClassVar[str] = "rmspropv2"
    learning_rate: LearningRate = 0.01
    momentum: float = 0.9
    weight_decay_factor: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self, fractions=("momentum",))


@dataclasses.dataclass(frozen=True)
class Ftrl:
    """McMahan et al. 2013, FTRL-Proximal. State: 2 * dim floats. A learning rate of 0 skips the update."""

    kind: ClassVar[str] = "ftrl"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.1
    beta: float = 0.0
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True)
class GroupFtrl:
    """Ni et al. 2019: FTRL whose l1 holds against the length of the segment's z, so all of its weights are 0 or none.

    State: 2 * dim floats. A learning rate of 0 skips the update.
    """

    kind: ClassVar[str] = "group_ftrl"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.0
    beta: float = 1.0
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True)
class GroupAdagrad:
    """Adagrad with one accumulator for the segment, of the largest g^2, then the group lasso's proximal step of l2.

    `e = rate / (beta + sqrt(sum)); w -= e * g`, then the length of w shrinks by `e * l2_regularization_strength`, to 0
    at most. State: 1 float. A learning rate of 0 skips the update.
    """

    kind: ClassVar[str] = "group_adagrad"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.1
    beta: float = 0.0
    l2_regularization_strength: float = 0.0
    weight_decay_factor: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True)
class BatchSoftmax:
    """Yi et al. 2019: w is a running mean of the global steps between an id's updates, 1 / w its frequency.

    `w += rate * (global_step - last_step - w)`; the gradient is not used. Dim 1 only. State: an int64 in 2 floats. An
    update with a negative global step does nothing.
    """

    kind: ClassVar[str] = "batch_softmax"
    learning_rate: LearningRate = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_optimizer(self)


Optimizer = (
    Sgd
    | Adagrad
    | Adadelta
    | Adam
    | AmsGrad
    | AdaMom
    | Momentum
    | MovingAverage
    | RmsProp
    | RmsPropV2
    | Ftrl
    | GroupFtrl
    | GroupAdagrad
    | BatchSoftmax
)

OPTIMIZERS: dict[str, type[Optimizer]] = {
    rule.kind: rule
    for rule in (
        Sgd,
        Adagrad,
        Adadelta,
        Adam,
        AmsGrad,
        AdaMom,
        Momentum,
        MovingAverage,
        RmsProp,
        RmsPropV2,
        Ftrl,
        GroupFtrl,
        GroupAdagrad,
        BatchSoftmax,
    )
}
