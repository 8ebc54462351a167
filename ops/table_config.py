"""What an embedding table is made of. Imports no TensorFlow, so a task that declares tables stays cheap to import."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

# A number, or a function of the global step (for example a Keras LearningRateSchedule).
LearningRate = float | Callable[[Any], Any]

_TABLE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def _check(rule: object, condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(f"{rule}: {problem}")


def _check_rule(rule: Any, below_one: tuple[str, ...] = ()) -> None:
    """Learning rate and numbers of an optimizer: finite, not negative, and below 1 where named."""
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if field.name == "learning_rate" and callable(value):
            continue
        _check(rule, isinstance(value, bool | int | float), f"{field.name} must be a number")
        _check(rule, math.isfinite(value) and value >= 0, f"{field.name} must be finite and not negative")
        _check(rule, field.name not in below_one or value < 1, f"{field.name} must be below 1")


@dataclasses.dataclass(frozen=True)
class Sgd:
    """`w -= learning_rate * gradient`. No state."""

    kind: ClassVar[str] = "sgd"
    learning_rate: LearningRate = 0.01

    def __post_init__(self) -> None:
        _check_rule(self)


@dataclasses.dataclass(frozen=True)
class Adagrad:
    """Duchi, Hazan, Singer 2011: `norm += g^2; w -= learning_rate * g / sqrt(norm)`, g + weight_decay_factor * w for g.

    State: dim floats. There is no epsilon: `initial_accumulator_value` keeps first steps small.
    """

    kind: ClassVar[str] = "adagrad"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.1
    weight_decay_factor: float = 0.0

    def __post_init__(self) -> None:
        _check_rule(self)


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

    def __post_init__(self) -> None:
        _check_rule(self, below_one=("beta1", "beta2"))


@dataclasses.dataclass(frozen=True)
class Ftrl:
    """McMahan et al. 2013, FTRL-Proximal. State: 2 * dim floats. A learning rate of 0 skips the update."""

    kind: ClassVar[str] = "ftrl"
    learning_rate: LearningRate = 0.01
    initial_accumulator_value: float = 0.1
    beta: float = 0.0
    l1_regularization_strength: float = 0.0
    l2_regularization_strength: float = 0.0

    def __post_init__(self) -> None:
        _check_rule(self)


@dataclasses.dataclass(frozen=True)
class Zeros:
    """New entries are zeros."""

    kind: ClassVar[str] = "zeros"


@dataclasses.dataclass(frozen=True)
class Constant:
    """New entries hold `value` in every dimension."""

    kind: ClassVar[str] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        _check(self, math.isfinite(self.value), "value must be finite")


@dataclasses.dataclass(frozen=True)
class RandomUniform:
    """New entries are uniform in [minval, maxval), a pure function of (seed, table name, id, dimension)."""

    kind: ClassVar[str] = "random_uniform"
    minval: float = -0.05
    maxval: float = 0.05

    def __post_init__(self) -> None:
        finite = math.isfinite(self.minval) and math.isfinite(self.maxval)
        _check(self, finite and self.minval <= self.maxval, "minval and maxval must be finite, minval not above maxval")


Optimizer = Sgd | Adagrad | Adam | Ftrl
Initializer = Zeros | Constant | RandomUniform

_OPTIMIZERS: dict[str, type[Optimizer]] = {rule.kind: rule for rule in (Sgd, Adagrad, Adam, Ftrl)}
_INITIALIZERS: dict[str, type[Initializer]] = {rule.kind: rule for rule in (Zeros, Constant, RandomUniform)}


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """One embedding table.

    Attributes:
      name: letters, digits, `_`, `-` and `.`; names its file and its deltas.
      dim: floats of one entry, at least 1.
      optimizer: update rule; None for a table that only serves: it has no optimizer state and takes no gradients.
      initializer: first vector of a new entry.
      seed: of the initializer, in [0, 2^64).
    """

    name: str
    dim: int
    optimizer: Optimizer | None = Adagrad()
    initializer: Initializer = RandomUniform()
    seed: int = 0

    def __post_init__(self) -> None:
        if not _TABLE_NAME.fullmatch(self.name):
            raise ValueError(
                f"table name {self.name!r} must be 1 to 128 letters, digits, '_', '-' or '.', not starting with '.'"
            )
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"table {self.name!r}: dim must be an integer of at least 1, not {self.dim!r}")
        if self.optimizer is not None and type(self.optimizer) not in _OPTIMIZERS.values():
            raise ValueError(
                f"table {self.name!r}: optimizer must be Sgd, Adagrad, Adam, Ftrl or None, not {self.optimizer!r}"
            )
        if type(self.initializer) not in _INITIALIZERS.values():
            raise ValueError(
                f"table {self.name!r}: initializer must be Zeros, Constant or RandomUniform, not {self.initializer!r}"
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"table {self.name!r}: seed must be in [0, 2^64), not {self.seed}")

    def for_serving(self) -> "TableConfig":
        """The same table without optimizer: less memory, and it restores any file of its name and dim."""
        return dataclasses.replace(self, optimizer=None)

    def to_text(self) -> str:
        """`key=value;...` for the ops. The learning rate is left out: it comes with every update."""
        parts = [f"name={self.name}", f"dim={self.dim}", f"seed={self.seed}"]
        for role, rule in (("optimizer", self.optimizer), ("initializer", self.initializer)):
            parts.append(f"{role}={rule.kind if rule else 'none'}")
            for field in dataclasses.fields(rule) if rule else ():
                if field.name != "learning_rate":
                    parts.append(f"{role}.{field.name}={float(getattr(rule, field.name))!r}")
        return ";".join(parts)

    @classmethod
    def from_text(cls, text: str) -> "TableConfig":
        """Inverse of to_text, with the default learning rate."""
        fields = dict(part.split("=", 1) for part in text.split(";"))

        def rule(role: str, kinds: dict[str, Any]) -> Any:
            if fields[role] == "none":
                return None
            prefix = f"{role}."
            numbers = {
                key.removeprefix(prefix): float(value) for key, value in fields.items() if key.startswith(prefix)
            }
            if "use_nesterov" in numbers:
                numbers["use_nesterov"] = bool(numbers["use_nesterov"])
            return kinds[fields[role]](**numbers)

        return cls(
            name=fields["name"],
            dim=int(fields["dim"]),
            optimizer=rule("optimizer", _OPTIMIZERS),
            initializer=rule("initializer", _INITIALIZERS),
            seed=int(fields["seed"]),
        )


@dataclasses.dataclass(frozen=True)
class PooledFeature:
    """A ragged feature whose ids are looked up in `table` and pooled a row by `combiner`, "sum" or "mean"."""

    name: str
    table: str
    combiner: str = "sum"

    def __post_init__(self) -> None:
        if self.combiner not in ("sum", "mean"):
            raise ValueError(f"feature {self.name!r}: combiner must be 'sum' or 'mean', not {self.combiner!r}")
