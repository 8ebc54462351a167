"""Codes in which serving tables store a segment's weights.

Int8 and OneBit also change training: a lookup returns the weights as serving would decode them (Int8) or a smooth
function close to that (OneBit); the optimizer updates the full weights.
"""

import dataclasses
from typing import ClassVar

from millrace.ops.rule_checks import check_count, check_flag, check_positive


@dataclasses.dataclass(frozen=True)
class Fp32:
    """4 bytes per dimension, no loss."""

    kind: ClassVar[str] = "fp32"


@dataclasses.dataclass(frozen=True)
class Fp16:
    """2 bytes per dimension: IEEE half, rounded to nearest even. Weights of 65520 and more become infinite."""

    kind: ClassVar[str] = "fp16"


@dataclasses.dataclass(frozen=True)
class Bf16:
    """2 bytes per dimension: the upper half of a float32, rounded to nearest even: float32's range, 3 decimal
    digits."""

    kind: ClassVar[str] = "bf16"


@dataclasses.dataclass(frozen=True)
class Int8:
    """1 byte per dimension: 256 steps of `range / 128` from `-range` on. Weights outside are clipped to the ends.

    Training sees the rounded weights; gradients pass straight through.
    """

    kind: ClassVar[str] = "int8"
    range: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "range")


@dataclasses.dataclass(frozen=True)
class OneBit:
    """The sign of a weight times `amplitude`: 1 byte per dimension, or 1 bit if `packed`. 0 counts as negative.

    Training sees `amplitude * tanh(scale * w)`, whose derivative multiplies the gradient, with
    `scale = min(init_scale * sqrt(1 + 0.005 * step), max_scale)` at the last multiple of `step_size` up to the global
    step (HashNet: Cao et al. 2017).
    """

    kind: ClassVar[str] = "one_bit"
    step_size: int = 200
    init_scale: float = 1.0
    max_scale: float = 10000.0
    amplitude: float = 0.1
    packed: bool = False

    def __post_init__(self) -> None:
        check_count(self, "step_size", 1)
        for name in ("init_scale", "max_scale", "amplitude"):
            check_positive(self, name)
        check_flag(self, "packed")


Compressor = Fp32 | Fp16 | Bf16 | Int8 | OneBit

COMPRESSORS: dict[str, type[Compressor]] = {rule.kind: rule for rule in (Fp32, Fp16, Bf16, Int8, OneBit)}
