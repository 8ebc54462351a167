"""List columns to numpy values and row splits, and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def values_and_splits(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(values [n], int64 row splits [rows + 1] that begin at 0) of a list column of primitives.

    Only the rows of a slice are given; a null row counts as empty. Without nulls nothing is copied.
    """
    if column.null_count:
        return column.flatten().to_numpy(zero_copy_only=False), splits_of(lengths(column))
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    return values.to_numpy(zero_copy_only=False), offsets - offsets[0]


def lengths(column: pa.ListArray) -> np.ndarray:
    """int64 [rows]: values in each row; 0 for a null."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    counts = offsets[1:] - offsets[:-1]
    return counts if not column.null_count else counts * column.is_valid().to_numpy(zero_copy_only=False)


def nulls_of(column: pa.Array) -> np.ndarray | None:
    """bool [rows], true where the row is null; None when no row is."""
    return column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None


def row_of_value(splits: np.ndarray) -> np.ndarray:
    """int64 [n]: the row to which each value belongs."""
    return np.repeat(np.arange(len(splits) - 1), np.diff(splits))


def list_array(
    values: np.ndarray | pa.Array, splits: np.ndarray, type: pa.DataType | None = None, nulls: np.ndarray | None = None
) -> pa.ListArray:
    """A list column.

    Args:
      values: [n]
      splits: row splits [rows + 1] that begin at 0.
      type: of the values; default: theirs.
      nulls: bool [rows], true where the row is null; such a row has no values.
    """
    array = values if isinstance(values, pa.Array) else pa.array(values, type)
    offsets = pa.array(splits.astype(np.int32))
    if nulls is None or not nulls.any():
        return pa.ListArray.from_arrays(offsets, array)
    return pa.ListArray.from_arrays(offsets, array, mask=pa.array(nulls))


def one_each(values: np.ndarray | pa.Array, type: pa.DataType | None = None) -> pa.ListArray:
    """A list column with one value per row."""
    return list_array(values, np.arange(len(values) + 1), type)


def splits_of(counts: np.ndarray) -> np.ndarray:
    """int64 row splits [rows + 1] of rows with these lengths, [rows]."""
    splits = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=splits[1:])
    return splits


def any_in(column: pa.ListArray, wanted: pa.Array) -> np.ndarray:
    """bool [rows]: whether a row holds one of `wanted`, which is cast to the type of the column's values."""
    found = np.zeros(len(column), bool)
    if not len(wanted) or not len(column):
        return found
    hits = pc.is_in(column.flatten(), value_set=wanted.cast(column.type.value_type)).to_numpy(zero_copy_only=False)
    # Not list_parent_indices: it counts the values that a null row may hide, flatten does not.
    found[row_of_value(splits_of(lengths(column)))[hits]] = True
    return found
