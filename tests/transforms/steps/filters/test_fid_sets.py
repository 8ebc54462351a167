"""Rows with some of a few fids: found in all columns, in slices, and not where a null hides them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.steps.filters.fid_sets import fid_bits

LISTS = pa.list_(pa.int64())
FIDS = st.integers(-2, 5)
CELLS = st.none() | st.lists(FIDS, max_size=40)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=12), st.lists(FIDS, unique=True, max_size=8), st.integers(0, 5))
def test_bits_tell_which_fids_a_row_has(
    rows: list[tuple[list[int] | None, list[int] | None]], wanted: list[int], start: int
) -> None:
    columns = [pa.array([row[index] for row in rows], LISTS) for index in (0, 1)]
    batch = pa.RecordBatch.from_arrays(columns, names=["a", "b"]).slice(start)
    expected = [
        sum(1 << k for k, fid in enumerate(wanted) if fid in [*(row[0] or []), *(row[1] or [])]) for row in rows[start:]
    ]
    assert fid_bits(batch, np.array(wanted, np.int64)).tolist() == expected


def test_what_a_null_row_hides_is_not_found() -> None:
    offsets = pa.array([0, 1, 2], pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array([7, 7]), mask=pa.array([True, False]))
    assert fid_bits(pa.record_batch({"a": column}), np.array([7])).tolist() == [0, 1]
    assert fid_bits(pa.record_batch({"a": pa.array([[None, 1]], LISTS)}), np.array([0, 1])).tolist() == [2]


def test_a_batch_without_columns_has_none() -> None:
    assert fid_bits(pa.record_batch({"a": pa.array([], LISTS)}), np.array([7])).tolist() == []


@pytest.mark.parametrize("type", [pa.int64(), pa.list_(pa.int32()), pa.list_(LISTS)])
def test_columns_of_other_types_are_an_error(type: pa.DataType) -> None:
    with pytest.raises(ValueError, match="1 fids in columns of"):
        fid_bits(pa.record_batch({"a": pa.nulls(1, type)}), np.array([7]))


def test_more_fids_than_bits_are_an_error() -> None:
    with pytest.raises(ValueError, match="9 fids"):
        fid_bits(pa.record_batch({"a": pa.nulls(1, LISTS)}), np.arange(9))
