"""Learning rates as functions of the global step."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

from millrace.ops.rule_checks import check_count, check_flag, check_number

# A number, or a function of the global step, such as a PolynomialDecay or a Keras LearningRateSchedule.
LearningRate = float | Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class PolynomialDecay:
    """`(initial - end) * (1 - step / decay_steps) ** power + end`, and `end` from `decay_steps` on.

    With `cycle`, decay_steps grows to its first multiple that is not below the step, so the rate goes up again. From a
    low rate to a high one, it is a warm-up.

    Attributes:
      initial_learning_rate: rate at step 0.
      decay_steps: steps until `end_learning_rate`, at least 1.
      end_learning_rate: rate at the end.
      power: of the polynomial; 1 is a straight line.
      cycle: start again after `decay_steps`.
    """

    initial_learning_rate: float
    decay_steps: int
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def __post_init__(self) -> None:
        for name in ("initial_learning_rate", "end_learning_rate", "power"):
            check_number(self, name)
        check_count(self, "decay_steps", 1)
        check_flag(self, "cycle")

    def __call__(self, step: Any) -> Any:
        """The rate at `step`: a float for a Python number, else a float32 tensor; works in a tf.function."""
        if isinstance(step, numbers.Real):
            return self._rate(float(step) / self.decay_steps, min, max, math.ceil)
        import tensorflow as tf

        rounds = tf.cast(step, tf.float64) / self.decay_steps
        return tf.cast(self._rate(rounds, tf.minimum, tf.maximum, tf.math.ceil), tf.float32)

    def _rate(self, rounds: Any, minimum: Any, maximum: Any, ceil: Any) -> Any:
        done = rounds / maximum(ceil(rounds), 1.0) if self.cycle else minimum(rounds, 1.0)
        change = self.initial_learning_rate - self.end_learning_rate
        return change * (1.0 - done) ** self.power + self.end_learning_rate


def learning_rate_of(optimizer: Any, override: LearningRate | None = None) -> LearningRate:
    """The learning rate of a segment: `override` if given, else the optimizer's.

    An optimizer with `warmup_steps` has a straight line from 0 to its `learning_rate`; one without a `learning_rate`,
    and no optimizer, have 0.
    """
    if override is not None:
        return override
    rate: LearningRate = getattr(optimizer, "learning_rate", 0.0)
    warmup_steps = getattr(optimizer, "warmup_steps", 0)
    return PolynomialDecay(0.0, warmup_steps, rate) if warmup_steps and not callable(rate) else rate
