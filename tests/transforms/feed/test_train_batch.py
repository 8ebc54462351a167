"""Rows of any shape become blocks that a trainer takes."""

from collections import Counter

import pyarrow as pa
import pytest

from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.feed.train_batch import to_train_batch


def _rows(**columns: pa.Array) -> pa.RecordBatch:
    batch = pa.record_batch(columns)
    return with_provenance(batch, partition=2, first_offset=40)


def test_what_a_row_lacks_gets_its_default_and_the_block_has_no_nulls() -> None:
    fids = pa.array([[7, 8], None, []], pa.list_(pa.int64()))
    rows = _rows(__REQ_TIME__=pa.array([5, None, 9]))
    rows = record_batch.with_column(rows, record_batch.fid_field("item"), fids)
    counts: Counter[str] = Counter()
    block = to_train_batch(rows, ["item", "user"], 1, counts)
    train_check.validate_train_batch(block, ["item", "user"], 1)
    assert block.column("item").to_pylist() == [[7, 8], [], []]
    assert block.column("user").to_pylist() == [[], [], []]
    assert block.column("__EVENT_TIME_MS__").to_pylist() == [5000, 0, 9000]
    assert block.column("__LABEL__").to_pylist() == [[INVALID_LABEL]] * 3
    assert block.column("__WEIGHT__").to_pylist() == [1.0, 1.0, 1.0]
    assert counts == {"labels_missing": 3, "labels_cut": 0}


def test_labels_are_padded_and_cut_to_the_heads() -> None:
    rows = _rows(__LABEL__=pa.array([[1.0], [0.0, 1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32())))
    counts: Counter[str] = Counter()
    block = to_train_batch(rows, [], 2, counts)
    expected = [[1.0, INVALID_LABEL], [0.0, 1.0], [INVALID_LABEL, INVALID_LABEL], [3.0, 4.0]]
    assert block.column("__LABEL__").to_pylist() == expected
    assert counts == {"labels_missing": 2, "labels_cut": 1}


def test_a_nested_list_of_fids_is_flattened_row_by_row() -> None:
    nested = pa.array([[[1], [2, 3]], [], None, [[], [4]]], pa.list_(pa.list_(pa.int64())))
    field = pa.field("seen", nested.type, metadata=record_batch.FID_METADATA)
    rows = record_batch.with_column(_rows(__REQ_TIME__=pa.array([1, 1, 1, 1])), field, nested)
    block = to_train_batch(rows.slice(1), ["seen"], 0, Counter())
    assert block.column("seen").to_pylist() == [[], [], [4]]


def test_the_audit_feature_follows_the_provenance_that_rows_have_now() -> None:
    rows = _rows(__REQ_TIME__=pa.array([1, 1]))
    block = to_train_batch(rows, [], 0, Counter(), audit=True)
    fids = block.column(record_batch.AUDIT).to_pylist()
    assert len({value for (value,) in fids}) == 2


def test_a_feature_of_something_else_than_fids_is_refused_by_name() -> None:
    rows = _rows(price=pa.array([[1.0]], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="feature price"):
        to_train_batch(rows, ["price"], 0, Counter())


def test_no_rows_give_an_empty_block() -> None:
    block = to_train_batch(_rows(__REQ_TIME__=pa.array([], pa.int64())), ["item"], 1, Counter())
    assert block.num_rows == 0
    assert block.schema == record_batch.train_schema(["item"])
