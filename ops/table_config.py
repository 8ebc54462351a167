"""What an embedding table is made of. Imports no TensorFlow, so a task that declares tables stays cheap to import."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from millrace.ops.compressor import COMPRESSORS, Bf16, Compressor, Fp16, Fp32, Int8, OneBit
from millrace.ops.initializer import INITIALIZERS, Constant, Initializer, Ones, RandomUniform, Zeros
from millrace.ops.learning_rate import LearningRate, PolynomialDecay, learning_rate_of
from millrace.ops.occurrence_filter import FILTERS, CountingFilter, Occurrence, ProbabilisticFilter, SlidingFilter
from millrace.ops.rule_checks import check_count, check_flag, check_number
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

__all__ = [
    "AdaMom",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AmsGrad",
    "BatchSoftmax",
    "Bf16",
    "Compressor",
    "Constant",
    "CountingFilter",
    "Fp16",
    "Fp32",
    "Ftrl",
    "GroupAdagrad",
    "GroupFtrl",
    "Initializer",
    "Int8",
    "LearningRate",
    "Momentum",
    "MovingAverage",
    "Occurrence",
    "OneBit",
    "Ones",
    "Optimizer",
    "PolynomialDecay",
    "PooledFeature",
    "ProbabilisticFilter",
    "RandomUniform",
    "RmsProp",
    "RmsPropV2",
    "Segment",
    "Sgd",
    "SlidingFilter",
    "TableConfig",
    "Zeros",
]

# Longer names would be abbreviated where TensorFlow tells eager kernels apart by their attributes.
_MAX_NAME = 64
_TABLE_NAME = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9_.-]{{0,{_MAX_NAME - 1}}}")
_COMBINERS = ("sum", "mean", "first_n")
_NON_FINITE = ("error", "skip", "clip")
_MAX_SLOT = 32767
NEVER_DAYS = 36500.0
# Fields of a rule that are not part of a table: they decide what comes with an update.
_NOT_IN_TABLE = ("learning_rate", "warmup_steps")


def _check_kind(owner: str, role: str, rule: object, kinds: Mapping[str, type]) -> None:
    if rule is None or type(rule) not in kinds.values():
        choices = ", ".join(kind.__name__ for kind in kinds.values())
        raise ValueError(f"{owner}: {role} must be one of {choices}, not {rule!r}")


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive dimensions of a table's entries that share their rules.

    Attributes:
      dim: floats, at least 1.
      optimizer: update rule; None for a segment that takes no steps.
      initializer: first weights of a new entry.
      compressor: how serving stores the weights, and for Int8 and OneBit what training sees of them.
      learning_rate: a number or a function of the global step, in place of the optimizer's own.
      delay_compensation: lambda of Zheng et al. 2017; needs `read_values` with the gradients. 0: none.
      stochastic_rounding: after a step, round each weight to an fp16 neighbour, up or down by its distance.
    """

    dim: int
    optimizer: Optimizer | None = Adagrad()
    initializer: Initializer = RandomUniform()
    compressor: Compressor = Fp32()
    learning_rate: LearningRate | None = None
    delay_compensation: float = 0.0
    stochastic_rounding: bool = False

    def __post_init__(self) -> None:
        check_count(self, "dim", low=1)
        if self.optimizer is not None:
            _check_kind("segment", "optimizer", self.optimizer, OPTIMIZERS)
        _check_kind("segment", "initializer", self.initializer, INITIALIZERS)
        _check_kind("segment", "compressor", self.compressor, COMPRESSORS)
        if self.learning_rate is not None and not callable(self.learning_rate):
            check_number(self, "learning_rate")
        check_number(self, "delay_compensation")
        check_flag(self, "stochastic_rounding")

    def rate(self, global_step: Any) -> Any:
        """Learning rate at a step: a number, or what a function gives for it."""
        rate = learning_rate_of(self.optimizer, self.learning_rate)
        return rate(global_step) if callable(rate) else rate


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """One embedding table.

    A table of one segment is given by `dim`, `optimizer`, `initializer` and `compressor`; several by `segments`, whose
    first one then gives these fields.

    Attributes:
      name: letters, digits, `_`, `-` and `.`; names its files and its deltas.
      dim: floats of one entry: the sum over its segments.
      optimizer: update rule; None for a table that takes no gradients.
      initializer: first vector of a new entry.
      seed: of the initializer, in [0, 2^64).
      compressor: as in Segment.
      segments: at least one.
      occurrence: how often an id has to be seen before an update creates its entry; None: once.
      expire_days: age from which `evict` removes an entry and a snapshot leaves it out, by its last write.
      slot_expire_days: the same by slot (0 to 32767); given as a mapping, kept as sorted pairs.
      non_finite: what a gradient does that is NaN or infinite once summed: "error" refuses the batch, "skip" leaves the
        id out and counts it, "clip" makes NaN 0, clips the rest to `gradient_limit`, and counts it.
      gradient_limit: summed gradients are clipped to [-gradient_limit, gradient_limit].
      serving: entries hold compressed weights, no optimizer state.
      skip_zero: serving only: assigning zeros removes an entry.
    """

    name: str
    dim: int = 0
    optimizer: Optimizer | None = Adagrad()
    initializer: Initializer = RandomUniform()
    seed: int = 0
    compressor: Compressor = Fp32()
    segments: tuple[Segment, ...] = ()
    occurrence: Occurrence | None = None
    expire_days: float = NEVER_DAYS
    slot_expire_days: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    non_finite: str = "error"
    gradient_limit: float = math.inf
    serving: bool = False
    skip_zero: bool = False

    def __post_init__(self) -> None:
        where = f"table {self.name!r}"
        if not _TABLE_NAME.fullmatch(self.name):
            raise ValueError(
                f"table name {self.name!r} must be 1 to 64 letters, digits, '_', '-' or '.', not starting with '.'"
            )
        self._set_segments(where)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"{where}: seed must be in [0, 2^64), not {self.seed}")
        if self.non_finite not in _NON_FINITE:
            raise ValueError(f"{where}: non_finite must be one of {', '.join(_NON_FINITE)}, not {self.non_finite!r}")
        if not self.gradient_limit > 0 or (self.non_finite == "clip" and math.isinf(self.gradient_limit)):
            raise ValueError(f"{where}: gradient_limit must be above 0, and finite to clip, not {self.gradient_limit}")
        if self.skip_zero and not self.serving:
            raise ValueError(f"{where}: skip_zero is for tables that serve")
        if self.occurrence is not None and not isinstance(self.occurrence, Occurrence):
            raise ValueError(f"{where}: occurrence must be an Occurrence or None, not {self.occurrence!r}")
        by_slot = dict(self.slot_expire_days)
        for slot, days in ((None, self.expire_days), *by_slot.items()):
            if slot is not None and not 0 <= slot <= _MAX_SLOT:
                raise ValueError(f"{where}: slot must be in [0, {_MAX_SLOT}], not {slot}")
            if not (math.isfinite(days) and days >= 0):
                raise ValueError(f"{where}: expire_days must be finite and not negative, not {days!r}")
        object.__setattr__(self, "slot_expire_days", tuple(sorted(by_slot.items())))

    def _set_segments(self, where: str) -> None:
        """Fills `segments` from the fields of a single one, or `dim` from the segments."""
        if not self.segments:
            if not isinstance(self.dim, int) or self.dim < 1:
                raise ValueError(f"{where}: dim must be an integer of at least 1, not {self.dim!r}")
            try:
                segment = Segment(self.dim, self.optimizer, self.initializer, self.compressor)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            object.__setattr__(self, "segments", (segment,))
            return
        object.__setattr__(self, "segments", tuple(self.segments))
        total = sum(segment.dim for segment in self.segments)
        if self.dim not in (0, total):
            raise ValueError(f"{where}: dim is {self.dim}, its segments have {total}: leave dim out")
        object.__setattr__(self, "dim", total)
        for role in ("optimizer", "initializer", "compressor"):
            object.__setattr__(self, role, getattr(self.segments[0], role))

    @property
    def trains(self) -> bool:
        """Whether it takes gradients."""
        return not self.serving and any(segment.optimizer is not None for segment in self.segments)

    def learning_rates(self, global_step: Any) -> list[Any]:
        """Learning rate of each segment at a step."""
        return [segment.rate(global_step) for segment in self.segments]

    def for_serving(self) -> "TableConfig":
        """The same table in serving form: compressed weights, no optimizer, no filter. It restores any file of it."""
        segments = tuple(dataclasses.replace(segment, optimizer=None) for segment in self.segments)
        return dataclasses.replace(self, segments=segments, occurrence=None, serving=True)

    def to_text(self) -> str:
        """`key=value;...` for the ops. Learning rates are left out: they come with every update."""
        fields: dict[str, object] = {
            "name": self.name,
            "seed": self.seed,
            "serving": int(self.serving),
            "skip_zero": int(self.skip_zero),
            "non_finite": self.non_finite,
            "gradient_limit": float(self.gradient_limit),
            "segments": len(self.segments),
        }
        for i, segment in enumerate(self.segments):
            prefix = f"segment.{i}."
            fields[f"{prefix}dim"] = segment.dim
            fields[f"{prefix}delay_compensation"] = float(segment.delay_compensation)
            fields[f"{prefix}stochastic_rounding"] = int(segment.stochastic_rounding)
            for role in ("optimizer", "initializer", "compressor"):
                fields |= _rule_fields(f"{prefix}{role}", getattr(segment, role))
        fields |= _rule_fields("filter", self.occurrence.filter if self.occurrence else None)
        fields["threshold"] = self.occurrence.threshold if self.occurrence else 0
        for slot, threshold in dict(self.occurrence.slot_thresholds if self.occurrence else ()).items():
            fields[f"threshold.{slot}"] = threshold
        fields["expire_days"] = float(self.expire_days)
        for slot, days in dict(self.slot_expire_days).items():
            fields[f"expire_days.{slot}"] = float(days)
        return ";".join(f"{key}={value}" for key, value in fields.items())

    @classmethod
    def from_text(cls, text: str) -> "TableConfig":
        """Inverse of to_text, with the default learning rates."""
        fields = dict(part.split("=", 1) for part in text.split(";"))
        segments = tuple(
            Segment(
                int(fields[f"{prefix}dim"]),
                _rule(fields, f"{prefix}optimizer", OPTIMIZERS),
                _rule(fields, f"{prefix}initializer", INITIALIZERS),
                _rule(fields, f"{prefix}compressor", COMPRESSORS),
                delay_compensation=float(fields[f"{prefix}delay_compensation"]),
                stochastic_rounding=fields[f"{prefix}stochastic_rounding"] == "1",
            )
            for prefix in (f"segment.{i}." for i in range(int(fields["segments"])))
        )
        kind = _rule(fields, "filter", FILTERS)
        thresholds = {slot: int(threshold) for slot, threshold in _by_slot(fields, "threshold").items()}
        return cls(
            fields["name"],
            segments=segments,
            seed=int(fields["seed"]),
            occurrence=Occurrence(kind, int(fields["threshold"]), thresholds) if kind else None,
            expire_days=float(fields["expire_days"]),
            slot_expire_days={slot: float(days) for slot, days in _by_slot(fields, "expire_days").items()},
            non_finite=fields["non_finite"],
            gradient_limit=float(fields["gradient_limit"]),
            serving=fields["serving"] == "1",
            skip_zero=fields["skip_zero"] == "1",
        )


def _rule_fields(role: str, rule: Any) -> dict[str, object]:
    """A rule's kind and numbers as fields of a table's text."""
    fields: dict[str, object] = {role: rule.kind if rule else "none"}
    for field in dataclasses.fields(rule) if rule else ():
        if field.name not in _NOT_IN_TABLE:
            fields[f"{role}.{field.name}"] = repr(float(getattr(rule, field.name)))
    return fields


def _rule(fields: Mapping[str, str], role: str, kinds: Mapping[str, Any]) -> Any:
    """Inverse of _rule_fields."""
    if fields[role] == "none":
        return None
    kind = kinds[fields[role]]
    numbers = {}
    for field in dataclasses.fields(kind):
        if field.name not in _NOT_IN_TABLE:
            number = float(fields[f"{role}.{field.name}"])
            numbers[field.name] = field.type(number) if isinstance(field.type, type) else number
    return kind(**numbers)


def _by_slot(fields: Mapping[str, str], role: str) -> dict[int, str]:
    return {int(key.removeprefix(f"{role}.")): value for key, value in fields.items() if key.startswith(f"{role}.")}


@dataclasses.dataclass(frozen=True)
class PooledFeature:
    """A ragged feature whose ids are looked up in `table` and pooled per row.

    Attributes:
      combiner: "sum", "mean", or "first_n": the vectors of a row's first `max_length` ids, one after the other.
      max_length: for "first_n", at least 1; else 0.
    """

    name: str
    table: str
    combiner: str = "sum"
    max_length: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= _MAX_NAME:
            raise ValueError(f"feature {self.name!r}: name must be 1 to {_MAX_NAME} characters")
        if self.combiner not in _COMBINERS:
            raise ValueError(
                f"feature {self.name!r}: combiner must be one of {', '.join(_COMBINERS)}, not {self.combiner!r}"
            )
        if (self.max_length > 0) != (self.combiner == "first_n") or self.max_length < 0:
            raise ValueError(
                f"feature {self.name!r}: max_length must be at least 1 for first_n and 0 else, not {self.max_length}"
            )
