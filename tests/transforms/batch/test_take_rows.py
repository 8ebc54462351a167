"""Rows by number: the same as pyarrow's own take."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch.take_rows import take_rows, take_rows_of
from tests.reference.filter_batches import batches


@given(st.data(), batches())
def test_rows_of_one_batch_or_two_are_those_of_pyarrow(data: st.DataObject, batch: pa.RecordBatch) -> None:
    # A dictionary column is taken by pyarrow itself.
    names = [field.name for field in batch.schema if not pa.types.is_dictionary(field.type)]
    for case in (batch, batch.select(names)):
        index = st.integers(0, max(case.num_rows - 1, 0))
        rows = np.array(data.draw(st.lists(index, max_size=20 if case.num_rows else 0)), np.int64)
        cut = data.draw(st.integers(0, case.num_rows))
        taken = take_rows_of([case.slice(0, cut), case.slice(cut)], rows)
        taken.validate(full=True)
        assert taken.schema.equals(case.schema, check_metadata=True)
        # As text: not a number is not equal to itself.
        assert str(taken.to_pylist()) == str(case.take(pa.array(rows)).to_pylist())


def test_nested_lists_of_strings_with_nulls_inside_are_taken() -> None:
    values = [[["a", None], None, []], None, [], [["longer", "b"]]]
    batch = pa.record_batch({"texts": pa.array(values, pa.list_(pa.list_(pa.string())))}).slice(1)
    assert take_rows(batch, np.array([2, 2, 0, 1])).column("texts").to_pylist() == [values[3], values[3], None, []]
    assert take_rows(batch, np.array([], np.int64)).num_rows == 0


def test_lists_are_counted_without_the_values_that_nulls_hide() -> None:
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4]), mask=pa.array([True, False])
    )
    taken = take_rows(pa.record_batch({"list": hidden}), np.array([1, 0])).column("list")
    assert taken.to_pylist() == [[3, 4], None]
    assert taken.flatten().to_pylist() == [3, 4]


def test_where_one_batch_has_nulls_and_another_has_not_the_nulls_are_its_own() -> None:
    batches = [pa.record_batch({"number": pa.array(values, pa.int64())}) for values in ([1, None], [2, 3])]
    taken = take_rows_of(batches, np.array([3, 1, 0, 2])).column("number")
    assert taken.to_pylist() == [3, None, 1, 2]
    assert taken.null_count == 1


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_out_of_range_is_an_error(row: int) -> None:
    with pytest.raises(IndexError, match="of 2 rows"):
        take_rows(pa.record_batch({"number": pa.array([1, 2])}), np.array([0, row]))
