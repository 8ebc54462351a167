"""Label columns: read, set, appended."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch.label_column import (
    append_labels,
    label_at,
    label_column,
    one_label,
    set_label_at,
    with_labels,
)
from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.feed.config import LabelRule
from millrace.transforms.feed.sampling import positive_rows
from millrace.transforms.feed.train_rows import label_rows
from tests.transforms.batch.line_id_batches import batch_of, labels

_LABELS = pa.list_(pa.float32())
_columns = st.tuples(st.lists(labels, max_size=8), st.integers(0, 3))


@given(_columns, st.integers(0, 3))
def test_a_label_is_read_by_its_index(drawn: tuple[list[Any], int], index: int) -> None:
    rows, start = drawn
    values, has = label_at(pa.array(rows, _LABELS).slice(start), index)
    assert has.tolist() == [len(row or []) > index for row in rows[start:]]
    assert values.tolist() == [row[index] if len(row or []) > index else INVALID_LABEL for row in rows[start:]]


@given(_columns, st.integers(0, 2), st.data())
def test_a_label_is_set_where_asked_and_nowhere_else(
    drawn: tuple[list[Any], int], index: int, data: st.DataObject
) -> None:
    rows, start = drawn
    column = pa.array(rows, _LABELS).slice(start)
    _, has = label_at(column, index)
    chosen = has & np.array(data.draw(st.lists(st.booleans(), min_size=len(has), max_size=len(has))), bool)
    expected = [
        [*row[:index], 9.0, *row[index + 1 :]] if yes else row
        for row, yes in zip(rows[start:], chosen.tolist(), strict=True)
    ]
    assert set_label_at(column, index, chosen, 9.0).to_pylist() == expected
    assert column.to_pylist() == rows[start:]


@given(_columns, st.integers(1, 3))
def test_labels_are_appended_row_by_row(drawn: tuple[list[Any], int], count: int) -> None:
    rows, start = drawn
    column = pa.array(rows, _LABELS).slice(start)
    added = np.arange(len(column) * count, dtype=np.float32).reshape(len(column), count)
    expected = [(row or []) + more for row, more in zip(rows[start:], added.tolist(), strict=True)]
    assert append_labels(column, added).to_pylist() == expected


def test_one_label_of_several_is_set() -> None:
    made = one_label(np.array([1, 2, 3], np.float32), pa.array([1, None, 0], pa.int32()), 2)
    assert made.to_pylist() == [[INVALID_LABEL, 1.0], [INVALID_LABEL, INVALID_LABEL], [3.0, INVALID_LABEL]]


def test_hidden_values_of_null_rows_label_nothing() -> None:
    offsets, mask = pa.array([0, 1, 2], pa.int32()), pa.array([True, False])
    seen = pa.ListArray.from_arrays(offsets, pa.array(["click", "rate"]), mask=mask)
    numbers = pa.ListArray.from_arrays(offsets, pa.array([1.0, 5.0]), mask=mask)
    rules = (LabelRule("click", ("click",)), LabelRule("good", ("rate",), 4.0))
    assert label_rows(seen, numbers, rules).to_pylist() == [[0.0, 0.0], [0.0, 1.0]]
    assert positive_rows(pa.ListArray.from_arrays(offsets, pa.array([1.0, 5.0]), mask=mask)).tolist() == [False, True]


def test_a_batch_without_labels_has_none_in_every_row() -> None:
    batch = batch_of([{}, {}], []).drop_columns(["__LABEL__"])
    assert label_column(batch).to_pylist() == [None, None]
    assert label_column(with_labels(batch, pa.array([[1.0], None], _LABELS))).to_pylist() == [[1.0], None]
