"""Slots, slices and columns: what a model looks up, declared up front and without TensorFlow.

For example one bias and one vector per movie, of the twenty movies that a user watched last:

    movie = FeatureSlot("movie", has_bias=True)
    vector = movie.add_feature_slice(32)
    watched = FeatureColumn(movie, "watched", FirstN(20))
    (table,) = feature_tables([movie])          # table.config goes to an EmbeddingStore
    slices = split_slices("watched", combined, table.unmerged_slice_dims)
    slices[watched.key(vector)]                 # [batch, 20, 32]
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from millrace.ops.learning_rate import learning_rate_of
from millrace.ops.table_config import (
    NEVER_DAYS,
    Adagrad,
    Compressor,
    Fp16,
    Fp32,
    Ftrl,
    Initializer,
    LearningRate,
    Occurrence,
    Optimizer,
    PooledFeature,
    RandomUniform,
    Segment,
    TableConfig,
    Zeros,
)


@dataclass(frozen=True)
class ReduceSum:
    """Sum of the embeddings of a row's ids, [batch, dim]; zeros for a row without ids."""


@dataclass(frozen=True)
class ReduceMean:
    """Mean of the embeddings of a row's ids, [batch, dim]; zeros for a row without ids."""


@dataclass(frozen=True)
class FirstN:
    """The embeddings of a row's first `n` ids in order, [batch, n, dim]; zeros fill up a row with fewer ids."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"FirstN needs at least 1, not {self.n}")


Combiner = ReduceSum | ReduceMean | FirstN


@dataclass(frozen=True, eq=False)
class FeatureSlice:
    """Dimensions [start, end) of a slot's embeddings, with an optimizer and other rules of their own."""

    slot: "FeatureSlot" = dataclasses.field(repr=False)
    start: int
    end: int
    segment: Segment = dataclasses.field(repr=False)


@dataclass(eq=False)
class FeatureSlot:
    """One space of ids, which becomes one table. The slices of an entry lie one after the other.

    Args:
      name: of the table; `str(slot_id)` by default.
      slot_id: upper 15 bits of the ids.
      has_bias: whether the first slice has one dimension and is called `bias`.
      initializer, optimizer, compressor, learning_rate: of slices that are added without their own.
      bias_initializer, bias_optimizer, bias_compressor, bias_learning_rate: of the bias; without a learning rate it
        takes that of its optimizer, never that of the other slices.
      occurrence_threshold: how often an id is seen before it gets an entry the next time; 0: it gets one at once.
      expire_days: entries that were not updated for so many days are removed.

    Attributes:
      slices: in the order of their dimensions; `add_feature_slice` appends to them.

    Raises:
      ValueError: neither name nor slot_id is given.
    """

    name: str = ""
    slot_id: int | None = None
    has_bias: bool = False
    initializer: Initializer = RandomUniform(-0.05, 0.05)
    optimizer: Optimizer = Adagrad(0.001, initial_accumulator_value=1.0)
    compressor: Compressor = Fp16()
    learning_rate: LearningRate | None = None
    bias_initializer: Initializer = Zeros()
    bias_optimizer: Optimizer = Ftrl(initial_accumulator_value=1e-6, beta=1.0)
    bias_compressor: Compressor = Fp32()
    bias_learning_rate: LearningRate | None = None
    occurrence_threshold: int = 0
    expire_days: float = NEVER_DAYS
    slices: list[FeatureSlice] = dataclasses.field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.name and self.slot_id is None:
            raise ValueError("a feature slot needs a name or a slot_id")
        self.name = self.name or str(self.slot_id)
        if self.has_bias:
            self._append(
                Segment(
                    1,
                    optimizer=self.bias_optimizer,
                    initializer=self.bias_initializer,
                    compressor=self.bias_compressor,
                    learning_rate=self.bias_learning_rate,
                )
            )

    @property
    def bias(self) -> FeatureSlice:
        """The bias slice. Raises ValueError when the slot has none."""
        if not self.has_bias:
            raise ValueError(f"slot {self.name!r} has no bias; declare it with has_bias=True")
        return self.slices[0]

    def add_feature_slice(
        self,
        dim: int,
        initializer: Initializer | None = None,
        optimizer: Optimizer | None = None,
        compressor: Compressor | None = None,
        learning_rate: LearningRate | None = None,
    ) -> FeatureSlice:
        """Appends a slice of `dim` floats; a rule that is not given is that of the slot."""
        return self._append(
            Segment(
                dim,
                optimizer=self.optimizer if optimizer is None else optimizer,
                initializer=self.initializer if initializer is None else initializer,
                compressor=self.compressor if compressor is None else compressor,
                learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            )
        )

    def _append(self, segment: Segment) -> FeatureSlice:
        start = self.slices[-1].end if self.slices else 0
        added = FeatureSlice(self, start, start + segment.dim, segment)
        self.slices.append(added)
        return added


@dataclass(frozen=True)
class FeatureColumn:
    """An input feature whose ids are those of `slot`; columns of one slot share its embeddings."""

    slot: FeatureSlot
    feature_name: str
    combiner: Combiner = ReduceSum()

    def key(self, feature_slice: FeatureSlice) -> str:
        """Name of the slice of this feature in what `split_slices` returns.

        Raises:
          ValueError: the slice is of another slot.
        """
        if feature_slice.slot is not self.slot:
            raise ValueError(
                f"feature {self.feature_name!r} reads slot {self.slot.name!r}, not {feature_slice.slot.name!r}; "
                f"its slices are {', '.join(f'{each.start}:{each.end}' for each in self.slot.slices) or 'none yet'}"
            )
        return _key(self.feature_name, feature_slice.start, feature_slice.end)

    def pooled(self) -> PooledFeature:
        """The feature as `EmbeddingStore.pooled_lookup` takes it."""
        match self.combiner:
            case FirstN(n):
                return PooledFeature(self.feature_name, self.slot.name, "first_n", max_length=n)
            case ReduceMean():
                return PooledFeature(self.feature_name, self.slot.name, "mean")
            case ReduceSum():
                return PooledFeature(self.feature_name, self.slot.name, "sum")


@dataclass(frozen=True)
class FeatureTable:
    """The table of one slot.

    Attributes:
      config: what an EmbeddingStore is opened with; one of its segments may hold several neighbouring slices.
      unmerged_slice_dims: dims of the slices as they were declared.
    """

    config: TableConfig
    unmerged_slice_dims: tuple[int, ...]


def feature_tables(slots: Sequence[FeatureSlot]) -> tuple[FeatureTable, ...]:
    """The table of each slot; neighbouring slices with equal rules and learning rates become one segment.

    Raises:
      ValueError: two slots have one name, or a slot has no slice.
    """
    names = [slot.name for slot in slots]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"feature slots must have different names, {', '.join(repeated)} is there twice in {names}")
    for slot in slots:
        if not slot.slices:
            raise ValueError(f"feature slot {slot.name!r} has no slice; call add_feature_slice or set has_bias")
    return tuple(FeatureTable(_table_config(slot), tuple(each.segment.dim for each in slot.slices)) for slot in slots)


def split_slices(feature: str, embeddings: Any, dims: Sequence[int]) -> dict[str, Any]:
    """Cuts the last axis of a feature's combined embeddings: {"<feature>:<start>_<end>": [..., dim]}.

    Args:
      embeddings: tensor or array [..., sum(dims)].
      dims: `unmerged_slice_dims` of the feature's table.

    Raises:
      ValueError: the last axis has another length than `sum(dims)`.
    """
    if embeddings.shape[-1] != sum(dims):
        raise ValueError(f"feature {feature!r} has {embeddings.shape[-1]} dimensions, its slices {list(dims)}")
    slices, start = {}, 0
    for dim in dims:
        slices[_key(feature, start, start + dim)] = embeddings[..., start : start + dim]
        start += dim
    return slices


def _table_config(slot: FeatureSlot) -> TableConfig:
    return TableConfig(
        slot.name,
        segments=_merged([each.segment for each in slot.slices]),
        occurrence=Occurrence(threshold=slot.occurrence_threshold) if slot.occurrence_threshold else None,
        expire_days=slot.expire_days,
    )


def _merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    merged: list[Segment] = []
    for segment in segments:
        if merged and _rules(merged[-1]) == _rules(segment):
            merged[-1] = dataclasses.replace(merged[-1], dim=merged[-1].dim + segment.dim)
        else:
            merged.append(segment)
    return tuple(merged)


def _rules(segment: Segment) -> tuple[Segment, LearningRate]:
    """What two segments must have in common to be merged: all but the dim, and the learning rate that is in force."""
    rate = learning_rate_of(segment.optimizer, segment.learning_rate)
    return dataclasses.replace(segment, dim=1, learning_rate=None), rate


def _key(feature: str, start: int, end: int) -> str:
    return f"{feature}:{start}_{end}"
