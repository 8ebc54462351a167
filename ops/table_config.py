"""What an embedding table is: shape, optimizer and initializer, declared without TensorFlow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sgd:
    """w -= learning_rate * g."""

    learning_rate: float = 0.01


@dataclass(frozen=True)
class Adagrad:
    """a += g^2; w -= learning_rate * g / sqrt(a)."""

    learning_rate: float = 0.05
    initial_accumulator_value: float = 0.1


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction by the entry's own number of updates."""

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Ftrl:
    """FTRL-proximal with L1 and L2 strengths."""

    learning_rate: float = 0.05
    initial_accumulator_value: float = 0.1
    beta: float = 0.0
    l1: float = 0.0
    l2: float = 0.0


Optimizer = Sgd | Adagrad | Adam | Ftrl


@dataclass(frozen=True)
class Zeros:
    """Every new weight is 0."""


@dataclass(frozen=True)
class Constant:
    """Every new weight is `value`."""

    value: float = 0.0


@dataclass(frozen=True)
class RandomUniform:
    """New weights are uniform in [minval, maxval), a function of (seed, table, id) alone."""

    minval: float = -0.05
    maxval: float = 0.05


Initializer = Zeros | Constant | RandomUniform


@dataclass(frozen=True)
class TableConfig:
    """One table: `dim` float32 weights an entry, plus the optimizer's state."""

    name: str
    dim: int
    optimizer: Optimizer = Adagrad()
    initializer: Initializer = Zeros()
    seed: int = 0


@dataclass(frozen=True)
class PooledFeature:
    """A ragged list of ids a row, looked up in `table` and pooled by `combiner` ("sum" or "mean")."""

    name: str
    table: str
    combiner: str = "sum"
