"""Batches of another size."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.rebatch import rebatch


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 9))
def test_rows_stay_in_order_and_all_batches_but_the_last_are_full(sizes: list[int], size: int) -> None:
    rows = pa.record_batch({"n": pa.array(range(sum(sizes)), pa.int64())})
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = list(rebatch((rows.slice(*each) for each in zip(starts, sizes, strict=True)), size))
    assert [batch.num_rows for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < batch.num_rows <= size for batch in batches)
    assert record_batch.concat(batches, rows.schema).equals(rows)


def test_a_column_that_a_batch_lacks_is_null() -> None:
    (batch,) = rebatch([pa.record_batch({"a": [1]}), pa.record_batch({"b": [2]})], 5)
    assert batch.to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="size 0"):
        list(rebatch([], 0))
