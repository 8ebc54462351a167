"""The columns that say where a row came from."""

import numpy as np
import pyarrow as pa
import pytest

from millrace.transforms.batch.provenance import ensure_provenance, provenance_of, set_provenance, with_provenance

_ROWS = pa.record_batch({"x": [1.0, 2.0]})


def test_rows_without_a_source_can_be_given_one() -> None:
    partition, offset, row = provenance_of(with_provenance(_ROWS, 3, 7))
    assert (partition.tolist(), offset.tolist(), row.tolist()) == ([3, 3], [7, 8], [0, 0])


def test_rows_that_do_not_say_where_they_come_from_are_an_error_that_names_the_column() -> None:
    for missing in ("__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__"):
        with pytest.raises(ValueError, match=f"the rows have no {missing}"):
            provenance_of(with_provenance(_ROWS).drop_columns([missing]))


def test_provenance_that_is_there_is_kept() -> None:
    rows = set_provenance(_ROWS, np.array([1, 2]), np.array([3, 4]), np.array([5, 6]))
    assert ensure_provenance(rows, 9, 9).equals(rows)
    assert ensure_provenance(_ROWS, 3, 7).equals(with_provenance(_ROWS, 3, 7))


def test_rows_of_no_other_columns_can_have_provenance() -> None:
    rows = set_provenance(pa.record_batch({}), np.array([1, 2]), np.array([3, 4]), np.array([0, 0]))
    assert rows.num_rows == 2
