"""Digests of rows tell apart what differs, and nothing else."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch.row_digest import row_digests, value_digests

_VALUES = st.lists(st.none() | st.lists(st.lists(st.integers(-2, 2), max_size=3), max_size=3), max_size=8)


@given(_VALUES)
def test_digests_are_equal_where_values_are(values: list[Any]) -> None:
    digests = value_digests(pa.array(values, pa.list_(pa.list_(pa.int64())))).tolist()
    assert len(digests) == len(values)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert (digests[i] == digests[j]) == (a == b)


@given(st.lists(st.none() | st.text(max_size=3), max_size=8), st.integers(0, 3))
def test_a_slice_has_the_digests_of_its_rows(texts: list[str | None], first: int) -> None:
    column = pa.array(texts, pa.string())
    first = min(first, len(texts))
    np.testing.assert_array_equal(value_digests(column.slice(first)), value_digests(column)[first:])


def test_layout_does_not_matter() -> None:
    narrow, wide = pa.array([[1, 2], None], pa.list_(pa.int32())), pa.array([[1, 2], None], pa.large_list(pa.int64()))
    np.testing.assert_array_equal(value_digests(narrow), value_digests(wide))
    text = pa.array(["a", "b", "a"])
    for same in (text.cast(pa.binary()), text.dictionary_encode(), text.cast(pa.large_string())):
        np.testing.assert_array_equal(value_digests(same), value_digests(text))
    single = pa.array([0.5, None], pa.float32())
    np.testing.assert_array_equal(value_digests(single), value_digests(single.cast(pa.float64())))


def test_a_null_is_no_column_and_the_order_of_columns_does_not_count() -> None:
    batch = pa.record_batch({"x": pa.array([1, None]), "y": pa.array(["a", "b"]), "z": pa.nulls(2)})
    digests = row_digests(batch, ["x", "y", "z"])
    np.testing.assert_array_equal(digests, row_digests(batch, ["y", "x"]))
    assert digests[1] == row_digests(batch, ["y"])[1]
    assert digests[0] != row_digests(batch, ["y"])[0]


def test_the_name_of_a_column_counts() -> None:
    a, b = (pa.record_batch({name: pa.array([1])}) for name in "ab")
    assert row_digests(a, ["a"]) != row_digests(b, ["b"])


def test_structs_have_digests_too() -> None:
    column = pa.array([{"a": 1}, {"a": 2}, None, {"a": 1}])
    digests = value_digests(column).tolist()
    assert digests[0] == digests[3] and len(set(digests)) == 3


def test_empty_columns_have_none() -> None:
    for type in (pa.int64(), pa.string(), pa.list_(pa.float32()), pa.null()):
        assert value_digests(pa.array([], type)).tolist() == []
