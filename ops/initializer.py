"""First weights of new entries."""

import dataclasses
import math
from typing import ClassVar

from millrace.ops.rule_checks import check, check_number


@dataclasses.dataclass(frozen=True)
class Zeros:
    """New entries are zeros."""

    kind: ClassVar[str] = "zeros"


@dataclasses.dataclass(frozen=True)
class Ones:
    """New entries are ones."""

    kind: ClassVar[str] = "ones"


@dataclasses.dataclass(frozen=True)
class Constant:
    """New entries hold `value` in every dimension."""

    kind: ClassVar[str] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "value", low=-math.inf)


@dataclasses.dataclass(frozen=True)
class RandomUniform:
    """New entries are uniform in [minval, maxval), a pure function of (seed, table name, id, dimension)."""

    kind: ClassVar[str] = "random_uniform"
    minval: float = -0.05
    maxval: float = 0.05

    def __post_init__(self) -> None:
        for name in ("minval", "maxval"):
            check_number(self, name, low=-math.inf)
        check(self, self.minval <= self.maxval, "minval and maxval must be a range, minval not above maxval")


def batch_softmax_initializer(first_interval: float) -> Constant:
    """First weight of BatchSoftmax: the global steps between two updates of an id, as long as nothing is known of it.

    Raises:
      ValueError: below 1; two updates are at least one step apart.
    """
    if not first_interval >= 1:
        raise ValueError(f"batch_softmax_initializer: first_interval must be at least 1, not {first_interval!r}")
    return Constant(first_interval)


Initializer = Zeros | Ones | Constant | RandomUniform

INITIALIZERS: dict[str, type[Initializer]] = {rule.kind: rule for rule in (Zeros, Ones, Constant, RandomUniform)}
