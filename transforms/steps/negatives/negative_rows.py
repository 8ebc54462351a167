"""The output rows of `generate_negatives`: copies of positive rows with the columns of other items."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.label_column import label_column, set_label_at, with_labels
from millrace.transforms.batch.list_columns import list_array, one_each, row_of_value, splits_of, values_and_splits
from millrace.transforms.batch.provenance import derived_rows, provenance_of
from millrace.transforms.batch.take_rows import take_rows, take_rows_of


class RowOrigins(NamedTuple):
    """Which row of the input each row of the output comes from; the negatives of a row are before it.

    Attributes:
      parent: int64 [out], row of the input.
      generated: bool [out], true for negatives.
      copy: int64 [out], 1, 2, ... for the negatives of a row, 0 for the row itself.
    """

    parent: np.ndarray
    generated: np.ndarray
    copy: np.ndarray

    @classmethod
    def of(cls, draw_rows: np.ndarray, keep: np.ndarray) -> "RowOrigins":
        """The origins of the rows that leave, for rows of which some have negatives.

        Args:
          draw_rows: int64 [n], ascending: the row of each negative.
          keep: bool [rows], whether the row itself is in the output.
        """
        negatives = np.bincount(draw_rows, minlength=len(keep))
        counts = negatives + keep
        starts = np.cumsum(counts) - counts
        parent = np.repeat(np.arange(len(keep)), counts)
        number = np.arange(len(parent)) - starts[parent]
        generated = number < negatives[parent]
        return cls(parent, generated, np.where(generated, number + 1, 0))


def sampled_weights(neg_num: int, recency: np.ndarray, times: np.ndarray, decay: float = 1.0) -> np.ndarray:
    """float64 [n]: weights of negatives, 1 + neg_num * recency ^ decay / times: less for items that were drawn often.

    Args:
      recency: float64 [n], (index in the pool + 1) / size of the pool.
      times: int64 [n], how often the item was drawn, this time included.
    """
    return 1.0 + neg_num * recency**decay / times


def row_weights(batch: pa.RecordBatch) -> np.ndarray:
    """float64 [rows]: the weight of each row, 1 where it has none."""
    column = record_batch.column_of(batch, record_batch.WEIGHT)
    if column is None:
        return np.ones(batch.num_rows)
    filled = column.fill_null(1.0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False).astype(np.float64)


def item_ids(batch: pa.RecordBatch) -> np.ndarray:
    """int64 [rows]: the item id of each row, 0 where it has none."""
    return line_id.column(batch, "item_id").to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def item_columns(batch: pa.RecordBatch, features: Sequence[str]) -> pa.RecordBatch:
    """The item id, null if `batch` has none, and those of `features` that it has."""
    names = [name for name in (record_batch.ITEM_ID, *features) if name in batch.schema.names]
    items = batch.select(names)
    if record_batch.ITEM_ID in names:
        return items
    field = pa.field(record_batch.ITEM_ID, line_id.FIELDS["item_id"].type)
    columns = [pa.nulls(batch.num_rows, field.type), *items.columns]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([field, *items.schema]))


def first_values(batch: pa.RecordBatch, name: str, default: np.ndarray) -> np.ndarray:
    """int64 [rows]: the first value of the column `name`, of integers or lists of them; `default` where there is none.

    Raises: ValueError when the column holds something else.
    """
    column = record_batch.column_of(batch, name)
    if column is None or pa.types.is_null(column.type):
        return default
    if pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type):
        values, splits = values_and_splits(column)
        found = np.diff(splits) > 0
        first = default.copy()
        first[found] = values[splits[:-1][found]].astype(np.int64)
        return first
    if pa.types.is_integer(column.type):
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return np.where(valid, column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), default)
    raise ValueError(f"column {name}: expected integers or lists of integers, found {column.type}")


def action_lists(batch: pa.RecordBatch) -> pa.ListArray:
    """The actions of the rows; ValueError when they are not numbers."""
    actions = line_id.column(batch, "actions")
    if not pa.types.is_integer(actions.type.value_type):
        raise ValueError(f"column {record_batch.ACTIONS}: expected lists of integers, found {actions.type}")
    return actions


def expand(
    batch: pa.RecordBatch, origins: RowOrigins, store: Sequence[pa.RecordBatch], positions: np.ndarray
) -> pa.RecordBatch:
    """The rows of the output: copies of rows of `batch`, in which negatives have the item columns of other items.

    Args:
      store: batches of items, whose rows are numbered through.
      positions: int64 [negatives], the row of `store` whose columns the i-th negative gets. A column that `batch` lacks
        is null in original rows.
    """
    rows = take_rows(batch, origins.parent)
    for field in batch.schema:
        if (field.metadata or {}).get(record_batch.KIND_KEY) == b"raw":
            column = batch.column(field.name).take(pa.array(origins.parent, mask=origins.generated))
            rows = record_batch.with_column(rows, field, column)
    source = origins.parent.copy()
    source[origins.generated] = batch.num_rows + positions
    exchanged = take_rows_of([_own_items(batch, store[0].schema), *store], source)
    for field, column in zip(exchanged.schema, exchanged.columns, strict=True):
        rows = record_batch.with_column(rows, field, column)
    return rows


def _own_items(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`, null where `batch` lacks them; where it has them, the fields are those of `batch`."""
    indices = [batch.schema.get_field_index(field.name) for field in schema]
    columns = [
        batch.column(index) if index >= 0 else pa.nulls(batch.num_rows, field.type)
        for index, field in zip(indices, schema, strict=True)
    ]
    fields = [batch.schema.field(index) if index >= 0 else field for index, field in zip(indices, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def with_label(rows: pa.RecordBatch, chosen: np.ndarray, index: int, label: float) -> pa.RecordBatch:
    """`rows` with label `index` set where `chosen`, bool [rows]; labels missing before it are INVALID_LABEL."""
    column = label_column(rows)
    values, splits = values_and_splits(column)
    before = np.diff(splits)
    if (before[chosen] > index).all():
        return with_labels(rows, set_label_at(column, index, chosen, label))
    counts = np.where(chosen, np.maximum(before, index + 1), before)
    new_splits = splits_of(counts)
    labels = np.full(new_splits[-1], record_batch.INVALID_LABEL, np.float32)
    labels[np.arange(len(values)) + (new_splits - splits)[row_of_value(splits)]] = values
    labels[new_splits[:-1][chosen] + index] = label
    nulls = column.is_null().to_numpy(zero_copy_only=False) & ~chosen
    return with_labels(rows, list_array(labels, new_splits, nulls=nulls))


def with_action(rows: pa.RecordBatch, chosen: np.ndarray, action: int) -> pa.RecordBatch:
    """`rows` with `action` as the only action where `chosen`, bool [rows], is true."""
    actions = action_lists(rows)
    only = pa.array([[action]], actions.type)
    source = np.where(chosen, rows.num_rows, np.arange(rows.num_rows))
    return line_column(rows, record_batch.ACTIONS, pa.concat_arrays([actions, only]).take(pa.array(source)))


def with_copies(rows: pa.RecordBatch, copy: np.ndarray, fanout: int) -> pa.RecordBatch:
    """`rows` with a provenance of its own for each copy, int64 [rows] in [0, fanout), and with audit ids made of it."""
    partition, offset, row = provenance_of(rows)
    derived = derived_rows(row, copy, fanout)
    rows = line_column(rows, record_batch.SOURCE_ROW, pa.array(derived))
    index = rows.schema.get_field_index(record_batch.AUDIT)
    if index < 0:
        return rows
    return rows.set_column(index, rows.schema.field(index), one_each(audit_fid(partition, offset, derived)))


def line_column(rows: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    """`rows` with the column `name` set to `values`."""
    return record_batch.with_column(rows, pa.field(name, values.type), values)
