"""Checks of a train batch: its columns as a whole, and which of its rows cannot be trained."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import BlockFloors
from millrace.transforms.batch.list_columns import lengths, row_of_value, splits_of, values_and_splits
from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD, provenance_of


class BadRow(StrEnum):
    """Why a row cannot be trained; the value is the Kafka header `reason` of its dead letter."""

    NULL = "null"
    LABEL_COUNT = "label_count"
    LABEL_OUT_OF_RANGE = "label_out_of_range"
    WEIGHT_OUT_OF_RANGE = "weight_out_of_range"
    SAMPLE_RATE_OUT_OF_RANGE = "sample_rate_out_of_range"
    PROVENANCE_OUT_OF_RANGE = "provenance_out_of_range"
    BELOW_FLOOR = "below_floor"


LARGEST_VALUE = 10_000.0
"""Of a label or weight. Optimizers keep squares of gradients: a row that counts as a billion would freeze each entry
that it touches, also those that it shares with all others."""

_LAST_ROW = ROWS_PER_RECORD * MAX_COPIES - 1

DETAILS = {
    BadRow.NULL: "a needed column, or a list in one, holds null",
    BadRow.LABEL_COUNT: f"column {record_batch.LABEL}: every row needs one label per head",
    BadRow.LABEL_OUT_OF_RANGE: f"column {record_batch.LABEL}: a label is at most {LARGEST_VALUE:,.0f}",
    BadRow.WEIGHT_OUT_OF_RANGE: (
        f"column {record_batch.WEIGHT}: a weight is in 0..{LARGEST_VALUE:,.0f}; divide all weights by one number"
    ),
    BadRow.SAMPLE_RATE_OUT_OF_RANGE: f"column {record_batch.SAMPLE_RATE}: a sampling probability is in (0, 1]",
    BadRow.PROVENANCE_OUT_OF_RANGE: f"a source row is in 0..{_LAST_ROW}, source partition and offset are not below 0",
    BadRow.BELOW_FLOOR: "the source offset is below that from which on the block's own floors allow rows",
}
"""What is wrong with such rows, for people."""


def check_train_columns(batch: pa.RecordBatch, features: Sequence[str]) -> None:
    """Raises ValueError naming a needed column that is missing, there twice or of another type."""
    fields = [*record_batch.METADATA_FIELDS, *(record_batch.fid_field(name) for name in features)]
    for field in fields:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            names = ", ".join(batch.schema.names) or "no columns"
            raise ValueError(f"column {field.name}: missing; the batch has {names}")
        found = batch.schema.field(index).type
        if found != field.type:
            raise ValueError(f"column {field.name}: expected {field.type}, found {found}")


def bad_rows(
    batch: pa.RecordBatch, features: Sequence[str], heads: int | None, floors: BlockFloors | None = None
) -> list[tuple[BadRow, np.ndarray]]:
    """[(reason, bool [rows])] of the reasons for which a row cannot be trained; a row has one, the first.

    A label that says nothing about its head, such as INVALID_LABEL or NaN, is no fault; see `is_valid_label`.

    Args:
      batch: passed `check_train_columns`, and its buffers are valid.
      features: the fid columns that are needed.
      heads: number of labels that each row must have; None: any.
      floors: of the block, so that rows which they exclude are found.
    """
    nulls = _nulls(batch, features)
    if nulls is not None:  # they have no values to look at: the other rows are checked alone
        others = bad_rows(batch.filter(pa.array(~nulls)), features, heads, floors)
        return [(BadRow.NULL, nulls), *_spread(others, ~nulls)]
    labels = batch.column(record_batch.LABEL)
    weights = record_batch.numpy_column(batch, record_batch.WEIGHT)
    rates = record_batch.numpy_column(batch, record_batch.SAMPLE_RATE)
    partition, offset, row = provenance_of(batch)
    checks = [
        (BadRow.LABEL_COUNT, lengths(labels) != heads if heads is not None else None),
        (BadRow.LABEL_OUT_OF_RANGE, _too_large(labels)),
        (BadRow.WEIGHT_OUT_OF_RANGE, ~((weights >= 0) & (weights <= LARGEST_VALUE))),
        (BadRow.SAMPLE_RATE_OUT_OF_RANGE, ~((rates > 0) & (rates <= 1))),
        (BadRow.PROVENANCE_OUT_OF_RANGE, (partition < 0) | (offset < 0) | (row < 0) | (row > _LAST_ROW)),
        (BadRow.BELOW_FLOOR, _below_floor(partition, offset, floors)),
    ]
    found: list[tuple[BadRow, np.ndarray]] = []
    for reason, rows in checks:
        if rows is None or not rows.any():
            continue
        new = rows & ~np.logical_or.reduce([before for _, before in found]) if found else rows
        if new.any():
            found.append((reason, new))
    return found


def validate_train_batch(
    batch: pa.RecordBatch, features: Sequence[str] | None = None, heads: int | None = None
) -> None:
    """Raises ValueError, naming the column, unless `batch` is a train batch of which every row can be trained.

    Args:
      features: sparse features that must be there; default: those that are there.
      heads: number of labels that each row must have; default: any.
    """
    features = features if features is not None else record_batch.fid_columns(batch.schema)
    check_train_columns(batch, features)
    for name in _needed(features):
        nulls = _nulls_in(batch.column(name))
        if nulls is not None:
            raise ValueError(f"column {name}: null in {int(nulls.sum())} of {batch.num_rows} rows")
    for reason, rows in bad_rows(batch, features, heads):
        raise ValueError(f"{int(rows.sum())} of {batch.num_rows} rows: {DETAILS[reason]}")


_METADATA = tuple(field.name for field in record_batch.METADATA_FIELDS)


def _needed(features: Sequence[str]) -> list[str]:
    return [*_METADATA, *features]


def _spread(found: list[tuple[BadRow, np.ndarray]], rows: np.ndarray) -> list[tuple[BadRow, np.ndarray]]:
    """`found` in the rows that are true in `rows`, as rows of the whole."""
    spread = []
    for reason, part in found:
        whole = np.zeros(len(rows), bool)
        whole[rows] = part
        spread.append((reason, whole))
    return spread


def _nulls(batch: pa.RecordBatch, features: Sequence[str]) -> np.ndarray | None:
    """bool [rows]: rows with a null, or with a list that has one, in a needed column; None when there are none."""
    found = [rows for name in _needed(features) if (rows := _nulls_in(batch.column(name))) is not None]
    return np.logical_or.reduce(found) if found else None


def _nulls_in(column: pa.Array) -> np.ndarray | None:
    """bool [rows]: null, or a list with a null; None when no row is."""
    nested = isinstance(column, pa.ListArray) and column.values.null_count > 0
    if not column.null_count and not nested:
        return None
    found = column.is_null().to_numpy(zero_copy_only=False).copy()
    if nested:
        rows = row_of_value(splits_of(lengths(column)))
        found[rows[column.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
    return found if found.any() else None


def _too_large(labels: pa.ListArray) -> np.ndarray | None:
    """bool [rows] of a column without nulls: a label is above LARGEST_VALUE; None when none is."""
    values, splits = values_and_splits(labels)
    too_large = values > LARGEST_VALUE
    if not too_large.any():
        return None
    found = np.zeros(len(labels), bool)
    found[row_of_value(splits)[too_large]] = True
    return found


def _below_floor(partition: np.ndarray, offset: np.ndarray, floors: BlockFloors | None) -> np.ndarray | None:
    """bool [rows]: the offset is below the lowest floor that the block names for the row's source partition."""
    if floors is None:
        return None
    lowest = dict[int, int]()
    for _, source, floor in floors.floors:
        lowest[source] = min(floor, lowest.get(source, floor))
    found = np.zeros(len(offset), bool)
    for source, floor in lowest.items():
        found |= (partition == source) & (offset < floor)
    return found
