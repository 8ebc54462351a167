"""The last step of every feed: rows as a recipe gives them to train batches, without nulls."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import fid, record_batch
from millrace.transforms.batch.list_columns import lengths, list_array, splits_of, values_and_splits
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.steps.step import Counts

_SCALAR_DEFAULTS = {
    record_batch.WEIGHT: 1.0,
    record_batch.SAMPLE_RATE: 1.0,
    record_batch.UID: 0,
    record_batch.ITEM_ID: 0,
    record_batch.REQ_ID: "",
    record_batch.REQ_TIME: 0,
}


def to_train_batch(
    rows: pa.RecordBatch, features: Sequence[str], heads: int, counts: Counts, audit: bool = False
) -> pa.RecordBatch:
    """The batch of `record_batch.train_schema` that a trainer takes.

    A feature that a row lacks becomes an empty list. Labels that a row lacks become INVALID_LABEL, and labels beyond
    `heads` are cut off. Any other field that is not set gets its default; the default of the event time is the request
    time.

    Args:
      rows: with provenance; their fid columns are `list<int64>` of kind `fid`.
      features: sparse features of the batch, in order, without `__AUDIT__`.
      heads: number of labels per row.
      counts: counters `labels_missing` and `labels_cut` grow by the numbers of such rows.
      audit: whether to add `__AUDIT__`, made of the rows' provenance.

    Raises: ValueError naming a feature that holds anything but fids, or a provenance column that is missing.
    """
    columns = [_fids(rows, name) for name in features]
    names = list(features)
    if audit:
        names.append(record_batch.AUDIT)
        fids = fid.audit_fid(*provenance_of(rows))
        columns.append(list_array(fids, np.arange(rows.num_rows + 1)))
    metadata = {field.name: _metadata(rows, field) for field in record_batch.METADATA_FIELDS}
    metadata[record_batch.LABEL] = _labels(rows, heads, counts)
    columns += [metadata[field.name] for field in record_batch.METADATA_FIELDS]
    return pa.RecordBatch.from_arrays(columns, schema=record_batch.train_schema(names))


def _fids(rows: pa.RecordBatch, name: str) -> pa.ListArray:
    index = rows.schema.get_field_index(name)
    if index < 0:
        return _empty_lists(rows.num_rows, pa.int64())
    field, column = rows.schema.field(index), rows.column(index)
    if not record_batch.is_fid_field(field):
        raise ValueError(f"feature {name}: {field.type} of no fids v2, which a trainer needs; convert or drop it")
    if pa.types.is_list(field.type.value_type):
        column = _flat(column)
    return _without_nulls(column)


def _flat(column: pa.ListArray) -> pa.ListArray:
    """list<list<int64>> as list<int64>."""
    inner, splits = pc.list_flatten(column), splits_of(lengths(column))
    within = splits_of(lengths(inner))
    return list_array(pc.list_flatten(inner), within[splits])


def _without_nulls(column: pa.ListArray) -> pa.ListArray:
    return list_array(column.flatten(), splits_of(lengths(column))) if column.null_count else column


def _empty_lists(rows: int, type: pa.DataType) -> pa.ListArray:
    return list_array(pa.array([], type), np.zeros(rows + 1, np.int64))


def _metadata(rows: pa.RecordBatch, field: pa.Field) -> pa.Array:
    column = record_batch.column_of(rows, field.name)
    if field.name == record_batch.EVENT_TIME_MS:
        return _event_times(rows, column)
    if pa.types.is_list(field.type):
        if column is None:
            return _empty_lists(rows.num_rows, field.type.value_type)
        return _without_nulls(column).cast(field.type)
    default = _SCALAR_DEFAULTS.get(field.name)
    if column is None:
        if default is None:
            raise ValueError(f"the rows have no {field.name}: sources give it")
        return pa.repeat(pa.scalar(default, field.type), rows.num_rows)
    return (pc.fill_null(column, default) if column.null_count else column).cast(field.type)


def _event_times(rows: pa.RecordBatch, column: pa.Array | None) -> pa.Array:
    seconds = _metadata(rows, pa.field(record_batch.REQ_TIME, pa.int64()))
    requested = pc.multiply(seconds, 1000)
    return requested if column is None else pc.coalesce(column, requested)


def _labels(rows: pa.RecordBatch, heads: int, counts: Counts) -> pa.ListArray:
    column = record_batch.column_of(rows, record_batch.LABEL)
    if column is None:
        column = _empty_lists(rows.num_rows, pa.float32())
    found = lengths(column)
    missing, cut = int((found < heads).sum()), int((found > heads).sum())
    if not missing and not cut:
        return _without_nulls(column)
    counts["labels_missing"] += missing
    counts["labels_cut"] += cut
    values, splits = values_and_splits(column)
    labels = np.full((rows.num_rows, heads), record_batch.INVALID_LABEL, np.float32)
    row = np.repeat(np.arange(rows.num_rows), found)
    position = np.arange(len(values)) - splits[row]
    fits = position < heads
    labels[row[fits], position[fits]] = values[fits]
    return list_array(labels.reshape(-1), np.arange(rows.num_rows + 1) * heads)
