"""Columns of lists: the row of each value."""

import pyarrow as pa

from millrace.transforms.batch.list_columns import lengths, row_of_value, splits_of
from tests.conformance.covers import covers


@covers("data:v36")
def test_every_value_knows_its_row() -> None:
    few = pa.array([[], [1], [2, 3]], pa.list_(pa.int64()))
    assert row_of_value(splits_of(lengths(few))).tolist() == [1, 2, 2]
    ragged = pa.ListArray.from_arrays(pa.array([0, 4, 4, 7, 8, 8], pa.int32()), pa.array(range(8)))
    assert row_of_value(splits_of(lengths(ragged))).tolist() == [0, 0, 0, 0, 2, 2, 2, 3]
