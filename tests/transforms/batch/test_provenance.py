"""The columns that say where a row came from."""

import numpy as np
import pyarrow as pa
import pytest

from millrace.transforms.batch.provenance import (
    MAX_COPIES,
    SOURCE_BITS,
    ensure_provenance,
    provenance_of,
    set_provenance,
    source_number,
    source_partition,
    split_source_partition,
    with_provenance,
)

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


def test_provenance_of_another_integer_type_is_made_of_the_types_that_rows_have() -> None:
    rows = set_provenance(_ROWS, np.array([1, 2]), np.array([3, 4]), np.array([5, 6]))
    old = rows.set_column(1, "__SOURCE_PARTITION__", rows.column("__SOURCE_PARTITION__").cast(pa.int32()))
    assert ensure_provenance(old, 9, 9).equals(rows)


def test_a_topic_made_anew_another_topic_and_another_cluster_are_other_sources() -> None:
    numbers = {source_number(*names) for names in (("c", "id"), ("c", "id2"), ("d", "id"), ("ci", "d"))}
    assert len(numbers) == 4
    assert all(0 < number < 1 << SOURCE_BITS for number in numbers)


def test_a_source_partition_tells_both_and_leaves_room_for_copies_and_doubles() -> None:
    largest = (1 << SOURCE_BITS) - 1
    partitions = np.array([0, 7, 65535], np.int32)
    numbers = source_partition(largest, partitions)
    source, back = split_source_partition(numbers)
    assert source.tolist() == [largest] * 3 and back.tolist() == [0, 7, 65535]
    assert (numbers.astype(np.float64).astype(np.int64) == numbers).all()
    assert ((numbers * MAX_COPIES) // MAX_COPIES == numbers).all()
    assert source_partition(0, 3) == 3
