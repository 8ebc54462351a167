"""Filters: which rows stay, by fids, actions, labels, fields of the line id and values of features.

Each filter is a pure function from a batch to bool [rows], and a `Predicate` that calls it with its settings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import fid, line_id, list_columns, record_batch
from millrace.transforms.batch.label_column import label_column, with_labels
from millrace.transforms.steps.filters import comparisons
from millrace.transforms.steps.filters.comparisons import Comparison, Kind
from millrace.transforms.steps.filters.fid_sets import keep_by_fids, keep_by_slots
from millrace.transforms.steps.step import Counts, Predicate, Step, StepContext, keep_rows

_ALONE = StepContext()
_FEATURE_KINDS = {"int64": Kind.INT, "float": Kind.FLOAT, "double": Kind.FLOAT, "bytes": Kind.BYTES}
_UNSIGNED_FIELDS = ("uid", "item_id")


class FilterByFid(Predicate):
    """Keeps rows by their fids, slots and actions, and by the time of the request.

    A row stays when every condition that is given holds. The fids of all sparse features count. Fids are compared by
    their raw values, whether v1 or v2; the slot of a fid is read in the layout of its feature. Fids in nested lists
    count too. A row without a request time has time 0.
    """

    example = "filter_by_fid:\n  has_fids: [290956192322012601]"

    def __init__(self, config: pb.FilterByFidConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.ListFields():
            raise self.wrong("has_fids", "", "the filter has no condition", "give fids, slots, actions or req_time_min")
        for slot in config.select_slots:
            if not 0 < slot <= fid.MAX_SLOT:
                raise self.wrong("select_slots", slot, "out of range", f"choose 1..{fid.MAX_SLOT}")
        self._has, self._filter, self._select = (
            fid.from_unsigned(fids) for fids in (config.has_fids, config.filter_fids, config.select_fids)
        )

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        config = self.config
        kept = keep_by_fids(batch, self._has, self._filter, self._select)
        if config.select_slots:
            kept &= keep_by_slots(batch, config.select_slots)
        if config.has_actions:
            kept &= keep_by_actions(batch, config.has_actions)
        if config.req_time_min:
            kept &= line_id.column(batch, "req_time").to_numpy(zero_copy_only=False) >= config.req_time_min
        return kept


class FilterByAction(Predicate):
    """Keeps rows that have at least one of the actions."""

    example = "filter_by_action:\n  has_actions: [2]"

    def __init__(self, config: pb.FilterByActionConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.has_actions:
            raise self.wrong("has_actions", "", "empty", "give one action or more")

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return keep_by_actions(batch, self.config.has_actions)


class FilterByLabel(Predicate):
    """Keeps rows with a label i that is above `thresholds[i]`, or equals it unless `filter_equal` is set.

    A row with fewer labels than there are thresholds is dropped.
    """

    example = "filter_by_label:\n  thresholds: [-100, 0]"

    def __init__(self, config: pb.FilterByLabelConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.thresholds:
            raise self.wrong("thresholds", "", "empty", "give one threshold per label")

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return keep_by_labels(batch, self.config.thresholds, self.config.filter_equal)


class FilterByValue(Predicate):
    """Keeps rows by an operation on a field of the line id.

    Operations on one integer, float or string: gt ge eq lt le neq between in not-in; on a string also startswith
    endswith; on a repeated integer field: any all diff. A field that is not set has its default. A row whose repeated
    field is empty stays if `keep_empty` is set. `uid` and `item_id` are unsigned: an operand is the int64 with the same
    bits. `is_draw` counts as 0 or 1.
    """

    example = "filter_by_value:\n  field_name: read_count\n  op: in\n  int_operand: [0]"

    def __init__(self, config: pb.FilterByValueConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        field = line_id.check_field(config.field_name, self.field("field_name"))
        kind = _kind_of(field)
        self._comparison = comparisons.comparison(
            self, kind, comparisons.SET_OPS if field.repeated else kind.scalar_ops
        )

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return keep_by_field(batch, self.config.field_name, self._comparison, self.config.keep_empty)


class FilterByFeatureValue(Predicate):
    """Keeps rows by an operation on the value of a feature.

    `field_type` is int64, float, double or bytes. The operations are those of `filter_by_value`; of an int64 feature
    also any all diff, which compare the set of all values of the row. Some rows cannot be compared: those that lack the
    feature, those in which it holds another type than `field_type`, and, for an operation on one value, those with no
    or several values. They stay if `keep_empty` is set.
    """

    example = "filter_by_feature_value:\n  feature_name: price\n  field_type: float\n  op: gt\n  float_operand: [2.5]"

    def __init__(self, config: pb.FilterByFeatureValueConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.feature_name or record_batch.is_metadata_name(config.feature_name):
            raise self.wrong("feature_name", config.feature_name, "is no name of a feature", "name a feature")
        if config.field_type not in _FEATURE_KINDS:
            raise self.wrong("field_type", config.field_type, "unknown", f"choose {', '.join(_FEATURE_KINDS)}")
        kind = _FEATURE_KINDS[config.field_type]
        ops = (*kind.scalar_ops, *comparisons.SET_OPS) if kind is Kind.INT else kind.scalar_ops
        self._comparison = comparisons.comparison(self, kind, ops)

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        config = self.config
        return keep_by_feature(batch, config.feature_name, config.field_type, self._comparison, config.keep_empty)


class SpecialStrategy(Step):
    """Samples rows by their special strategies, and may set the label of those that stay.

    The first strategy of `strategies` that a row has decides. The row stays with the probability `sample_rate`, or
    always without one; `label` becomes label[0] of a row that stays. A row that has strategies, but none of the list,
    is dropped. A row without any strategy stays unless `keep_empty_strategy` is false.
    """

    counters = {
        "rows_dropped": "rows without a strategy of the list, and rows that the sampling left out",
        "rows_relabelled": "rows whose label[0] was set",
    }
    example = "special_strategy:\n  strategies: [{strategy: 2, sample_rate: 0.5, label: 1}, {strategy: 3}]"

    def __init__(self, config: pb.SpecialStrategyConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.strategies:
            raise self.wrong("strategies", "", "empty", "list one strategy or more")
        numbers = [each.strategy for each in config.strategies]
        for index, each in enumerate(config.strategies):
            if each.strategy in numbers[:index]:
                raise self.wrong(f"strategies[{index}].strategy", each.strategy, "is there twice", "list it once")
            if each.HasField("sample_rate") and not 0.0 <= each.sample_rate <= 1.0:
                raise self.wrong(f"strategies[{index}].sample_rate", each.sample_rate, "is no share", "choose 0 to 1")
            if np.isnan(each.label):
                raise self.wrong(f"strategies[{index}].label", each.label, "is no number", "give a number")
        self._numbers = np.array(numbers, np.int64)
        self._rates = np.array([_given(each, "sample_rate", 1.0) for each in config.strategies])
        self._labels = np.array([_given(each, "label", np.nan) for each in config.strategies], np.float32)
        self._keep_empty = _given(config, "keep_empty_strategy", True)

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        strategies = line_id.column(batch, "special_strategies")
        first = first_strategy(strategies, self._numbers)
        chosen = first >= 0
        kept = np.where(chosen, False, (list_columns.lengths(strategies) == 0) & self._keep_empty)
        labels = np.full(batch.num_rows, np.nan, np.float32)
        rates = self._rates[first[chosen]]
        kept[chosen] = self.draw(batch)[chosen] < rates if (rates < 1).any() else True
        labels[chosen] = self._labels[first[chosen]]
        rows = keep_rows(batch, kept, counts)
        counts["rows_relabelled"] += int(np.count_nonzero(~np.isnan(labels[kept])))
        return set_first_labels(rows, labels[kept])


def keep_by_actions(batch: pa.RecordBatch, actions: Sequence[int]) -> np.ndarray:
    """bool [rows]: whether one of `actions` is among the row's actions."""
    return comparisons.compare_sets("any", line_id.column(batch, "actions"), np.asarray(actions, np.int64))


def keep_by_labels(batch: pa.RecordBatch, thresholds: Sequence[float], filter_equal: bool = False) -> np.ndarray:
    """bool [rows]: whether a label i, as float32, is above thresholds[i], or equals it unless `filter_equal`."""
    kept = np.zeros(batch.num_rows, bool)
    values, splits = list_columns.values_and_splits(label_column(batch))
    rows = np.flatnonzero(np.diff(splits) >= len(thresholds))
    for index, threshold in enumerate(np.asarray(thresholds, np.float32)):
        labels = values[splits[rows] + index]
        kept[rows] |= labels > threshold if filter_equal else labels >= threshold
    return kept


def keep_by_field(batch: pa.RecordBatch, name: str, comparison: Comparison, keep_empty: bool = False) -> np.ndarray:
    """bool [rows]: whether `comparison` is true of the field `name` of the line id; `keep_empty` where it is empty."""
    column = line_id.column(batch, name)
    if not line_id.FIELDS[name].repeated:
        return comparison.scalars(column)
    return np.where(list_columns.lengths(column) > 0, comparison.sets(column), keep_empty)


def keep_by_feature(
    batch: pa.RecordBatch, name: str, field_type: str, comparison: Comparison, keep_empty: bool = False
) -> np.ndarray:
    """bool [rows]: whether `comparison` is true of the feature `name`.

    Args:
      field_type: int64, float, double or bytes: what the feature must hold.
      keep_empty: the result of rows in which there is nothing to compare.
    """
    kept = np.full(batch.num_rows, keep_empty)
    index = batch.schema.get_field_index(name)
    if index < 0 or not _holds(batch.schema.field(index), field_type):
        return kept
    column = batch.column(index)
    lengths = list_columns.lengths(column)
    if comparison.op in comparisons.SET_OPS:
        return np.where(lengths > 0, comparison.sets(column), kept)
    rows = np.flatnonzero(lengths == 1)
    values = (column if len(rows) == len(column) else column.take(pa.array(rows))).flatten()
    if values.null_count:
        rows = rows[values.is_valid().to_numpy(zero_copy_only=False)]
    kept[rows] = comparison.scalars(values.drop_null())
    return kept


def first_strategy(column: pa.ListArray, strategies: np.ndarray) -> np.ndarray:
    """int64 [rows]: index of the first of `strategies`, int64 and distinct, that the row has; -1 for none."""
    values, splits = list_columns.values_and_splits(column)
    positions, codes = comparisons.find_values(values, strategies)
    first = np.full(len(column), len(strategies))
    np.minimum.at(first, comparisons.rows_of(positions, splits), codes)
    return np.where(first < len(strategies), first, -1)


def set_first_labels(batch: pa.RecordBatch, labels: np.ndarray) -> pa.RecordBatch:
    """`batch` with label[0] of each row set; a row without labels gets one.

    Args:
      labels: float32 [rows]; NaN leaves the row as it is.
    """
    changed = ~np.isnan(labels)
    if not changed.any():
        return batch
    column = label_column(batch)
    values, splits = list_columns.values_and_splits(column)
    missing = changed & (np.diff(splits) == 0)
    values = np.insert(values, splits[:-1][missing], np.float32(0))
    splits = splits + np.concatenate([[0], np.cumsum(missing)])
    values[splits[:-1][changed]] = labels[changed]
    nulls = column.is_null().to_numpy(zero_copy_only=False) & ~changed
    return with_labels(batch, list_columns.list_array(values, splits, pa.float32(), nulls))


def _kind_of(field: line_id.LineIdField) -> Kind:
    type = field.type.value_type if field.repeated else field.type
    if field.name in _UNSIGNED_FIELDS:
        return Kind.UINT
    if pa.types.is_floating(type):
        return Kind.FLOAT
    return Kind.BYTES if pa.types.is_string(type) else Kind.INT


def _holds(field: pa.Field, field_type: str) -> bool:
    """Whether the column holds lists of `field_type`. Fids and raw features have a kind of their own and do not."""
    if not pa.types.is_list(field.type) or (field.metadata or {}).get(record_batch.KIND_KEY):
        return False
    type = field.type.value_type
    if pa.types.is_dictionary(type):
        type = type.value_type
    if field_type == "bytes":
        return pa.types.is_binary(type) or pa.types.is_string(type)
    return type == {"int64": pa.int64(), "float": pa.float32(), "double": pa.float64()}[field_type]


def _given(message: Any, name: str, default: Any) -> Any:
    """The setting `name`, or `default` where it is not set."""
    return getattr(message, name) if message.HasField(name) else default
