"""The column `__LABEL__`: how labels are made, read, set and appended.

It is list<float> [rows]; rows may have unequal numbers of labels, and a null or an empty list is no label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.action_column import has_action
from millrace.transforms.batch.list_columns import (
    list_array,
    nulls_of,
    values_and_splits,
)

_LABELS = pa.list_(pa.float32())


class TaskLabel(NamedTuple):
    """How a task labels a row by its actions.

    Attributes:
      positive: actions that make the label 1.
      negative: actions that make it negative; if empty, every row that is not positive is negative.
      sample_rate: share of the negatives that get the label, in [0, 1]; the others get INVALID_LABEL.
    """

    positive: Sequence[int]
    negative: Sequence[int] = ()
    sample_rate: float = 1.0


def label_lists(labels: np.ndarray) -> pa.ListArray:
    """list<float32> [rows] of a float32 array [rows, heads]."""
    rows, heads = labels.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(heads)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels.reshape(-1), pa.float32()))


def label_matrix(labels: pa.ListArray) -> np.ndarray:
    """float32 [rows, heads] of a `__LABEL__` column; ValueError when the rows have unequal numbers of labels."""
    counts = pc.list_value_length(labels).to_numpy(zero_copy_only=False)
    if len(counts) and (counts != counts[0]).any():
        raise ValueError(f"rows have {counts.min()} to {counts.max()} labels")
    heads = int(counts[0]) if len(counts) else 0
    return labels.flatten().to_numpy(zero_copy_only=False).reshape(len(counts), heads)


def label_column(batch: pa.RecordBatch) -> pa.ListArray:
    """`__LABEL__` of a batch, list<float> [rows]; all null when the batch has no such column."""
    column = record_batch.column_of(batch, record_batch.LABEL)
    return pa.nulls(batch.num_rows, _LABELS) if column is None else column


def with_labels(batch: pa.RecordBatch, labels: pa.ListArray) -> pa.RecordBatch:
    """`batch` with `labels` as its `__LABEL__`."""
    return record_batch.with_column(batch, pa.field(record_batch.LABEL, labels.type), labels)


def with_label_values(labels: pa.ListArray, values: np.ndarray) -> pa.ListArray:
    """`labels` with other values, [n] as `values_and_splits` gives them; lengths and nulls of the rows stay."""
    _, splits = values_and_splits(labels)
    return list_array(values, splits, pa.float32(), nulls_of(labels))


def label_at(labels: pa.ListArray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(label `index` of each row, float32 [rows], INVALID_LABEL where the row has fewer; bool [rows]: it has one)."""
    values, splits = values_and_splits(labels)
    has = np.diff(splits) > index
    found = np.full(len(labels), record_batch.INVALID_LABEL, np.float32)
    found[has] = values[splits[:-1][has] + index]
    return found, has


def set_label_at(labels: pa.ListArray, index: int, rows: np.ndarray, value: np.ndarray | float) -> pa.ListArray:
    """`labels` with label `index` set to `value` where `rows`, bool [rows], is true; these rows must have it."""
    if not rows.any():
        return labels
    values, splits = values_and_splits(labels)
    changed = values.copy()
    changed[splits[:-1][rows] + index] = value
    return list_array(changed, splits, pa.float32(), nulls_of(labels))


def append_labels(labels: pa.ListArray, added: np.ndarray) -> pa.ListArray:
    """`labels` with those of `added`, float32 [rows, k], appended to each row."""
    values, splits = values_and_splits(labels)
    if not len(values):
        return label_lists(added)
    rows, count = added.shape
    grown = splits + count * np.arange(rows + 1)
    merged = np.empty(len(values) + added.size, np.float32)
    before = np.ones(len(merged), bool)
    for index in range(count):
        places = grown[1:] - count + index
        merged[places], before[places] = added[:, index], False
    merged[before] = values
    return list_array(merged, grown, pa.float32())


def one_label(values: np.ndarray, positions: pa.Array, count: int) -> pa.ListArray:
    """list<float32> [rows] of `count` labels each, at most one of them set and the others INVALID_LABEL.

    Args:
      values: float32 [rows], the labels to set.
      positions: integers [rows], the place of the label within its row; a null sets none.
    """
    labels = np.full((len(values), count), record_batch.INVALID_LABEL, np.float32)
    set_rows = np.flatnonzero(positions.is_valid().to_numpy(zero_copy_only=False))
    labels[set_rows, positions.drop_null().to_numpy()] = values[set_rows]
    return label_lists(labels)


def task_label(actions: pa.ListArray, task: TaskLabel, negative_value: float, draws: np.ndarray) -> np.ndarray:
    """The label of a task, float32 [rows]: 1 for a positive, `negative_value` for a negative, else INVALID_LABEL.

    Args:
      actions: list<int32> [rows]
      draws: float64 [rows] in [0, 1); a negative gets its label where the draw is below `task.sample_rate`.
    """
    positive = has_action(actions, task.positive)
    negative = draws < task.sample_rate
    if task.negative:
        negative &= has_action(actions, task.negative)
    labels = np.where(negative, np.float32(negative_value), np.float32(record_batch.INVALID_LABEL))
    return np.where(positive, np.float32(1), labels)
