"""Checks of a train batch: its columns as a whole, and which of its rows cannot be trained."""

from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import BlockFloors
from millrace.transforms.batch.list_columns import lengths, row_of_value, splits_of
from millrace.transforms.batch.provenance import MAX_COPIES, ROWS_PER_RECORD, provenance_of


class BadRow(StrEnum):
    """Why a row cannot be trained; the value is the Kafka header `reason` of its dead letter."""

    NULL = "null"
    LABEL_COUNT = "label_count"
    LABEL_INFINITE = "label_infinite"
    WEIGHT_OUT_OF_RANGE = "weight_out_of_range"
    SAMPLE_RATE_OUT_OF_RANGE = "sample_rate_out_of_range"
    PROVENANCE_OUT_OF_RANGE = "provenance_out_of_range"
    BELOW_FLOOR = "below_floor"


_LAST_ROW = ROWS_PER_RECORD * MAX_COPIES - 1

DETAILS = {
    BadRow.NULL: "a needed column, or a list in one, holds null",
    BadRow.LABEL_COUNT: f"column {record_batch.LABEL}: every row needs one label per head",
    BadRow.LABEL_INFINITE: f"column {record_batch.LABEL}: plus infinity",
    BadRow.WEIGHT_OUT_OF_RANGE: f"column {record_batch.WEIGHT}: a weight is finite and not below 0",
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
    checks: list[tuple[BadRow, Callable[[], np.ndarray]]] = [
        (BadRow.NULL, lambda: np.logical_or.reduce([_nulls(batch.column(name)) for name in _needed(features)])),
        (BadRow.LABEL_COUNT, lambda: _wrong_count(batch.column(record_batch.LABEL), heads)),
        (BadRow.LABEL_INFINITE, lambda: _infinite(batch.column(record_batch.LABEL))),
        (
            BadRow.WEIGHT_OUT_OF_RANGE,
            lambda: ~_in_range(batch, record_batch.WEIGHT, lambda w: (w >= 0) & np.isfinite(w)),
        ),
        (
            BadRow.SAMPLE_RATE_OUT_OF_RANGE,
            lambda: ~_in_range(batch, record_batch.SAMPLE_RATE, lambda r: (r > 0) & (r <= 1)),
        ),
        (BadRow.PROVENANCE_OUT_OF_RANGE, lambda: _wrong_provenance(batch)),
        (BadRow.BELOW_FLOOR, lambda: _below_floor(batch, floors)),
    ]
    found, bad = [], np.zeros(batch.num_rows, bool)
    for reason, check in checks:
        new = check() & ~bad
        if new.any():
            found.append((reason, new))
            bad |= new
        if reason is BadRow.NULL and bad.any():  # nulls have no value to look at: the others are checked alone
            return found + _spread(bad_rows(batch.filter(pa.array(~bad)), features, heads, floors), ~bad)
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
        nulls = int(_nulls(batch.column(name)).sum())
        if nulls:
            raise ValueError(f"column {name}: null in {nulls} of {batch.num_rows} rows")
    for reason, rows in bad_rows(batch, features, heads):
        raise ValueError(f"{int(rows.sum())} of {batch.num_rows} rows: {DETAILS[reason]}")


def _needed(features: Sequence[str]) -> list[str]:
    return [*(field.name for field in record_batch.METADATA_FIELDS), *features]


def _spread(found: list[tuple[BadRow, np.ndarray]], rows: np.ndarray) -> list[tuple[BadRow, np.ndarray]]:
    """`found` in the rows that are true in `rows`, as rows of the whole."""
    spread = []
    for reason, part in found:
        whole = np.zeros(len(rows), bool)
        whole[rows] = part
        spread.append((reason, whole))
    return spread


def _nulls(column: pa.Array) -> np.ndarray:
    """bool [rows]: null, or a list with a null."""
    found = np.zeros(len(column), bool)
    if column.null_count:
        found |= column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_list(column.type):
        values = column.flatten()
        if values.null_count:
            rows = row_of_value(splits_of(lengths(column)))
            found[rows[values.is_null().to_numpy(zero_copy_only=False)]] = True
    return found


def _wrong_count(labels: pa.ListArray, heads: int | None) -> np.ndarray:
    return np.zeros(len(labels), bool) if heads is None else lengths(labels) != heads


def _infinite(labels: pa.ListArray) -> np.ndarray:
    found = np.zeros(len(labels), bool)
    infinite = np.isposinf(labels.flatten().to_numpy(zero_copy_only=False))
    if infinite.any():
        found[row_of_value(splits_of(lengths(labels)))[infinite]] = True
    return found


def _in_range(batch: pa.RecordBatch, name: str, test: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return test(record_batch.numpy_column(batch, name))


def _wrong_provenance(batch: pa.RecordBatch) -> np.ndarray:
    partition, offset, row = provenance_of(batch)
    return (partition < 0) | (offset < 0) | (row < 0) | (row >= ROWS_PER_RECORD * MAX_COPIES)


def _below_floor(batch: pa.RecordBatch, floors: BlockFloors | None) -> np.ndarray:
    """Rows whose offset is below the lowest floor that the block names for their source partition."""
    partition, offset, _ = provenance_of(batch)
    found = np.zeros(len(offset), bool)
    lowest = dict[int, int]()
    for _, source, floor in floors.floors if floors is not None else ():
        lowest[source] = min(floor, lowest.get(source, floor))
    for source, floor in lowest.items():
        found |= (partition == source) & (offset < floor)
    return found
