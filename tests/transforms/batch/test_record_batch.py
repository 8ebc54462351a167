"""Schema, IPC bytes, splitting and validation of train batches."""

import numpy as np
import pyarrow as pa
import pytest
from apache_beam import coders
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.beam import coder as beam_coder


def _train_batch(rows: int = 3) -> pa.RecordBatch:
    values: dict[str, object] = {
        "user": [[1]] * rows,
        "__LABEL__": [[1.0]] * rows,
        "__WEIGHT__": [1.0] * rows,
        "__SAMPLE_RATE__": [1.0] * rows,
        "__UID__": list(range(rows)),
        "__ITEM_ID__": list(range(rows)),
        "__REQ_ID__": [f"r-{i}" for i in range(rows)],
        "__REQ_TIME__": [1] * rows,
        "__EVENT_TIME_MS__": [1] * rows,
        "__ACTIONS__": [["click"]] * rows,
        "__SOURCE_PARTITION__": [0] * rows,
        "__SOURCE_OFFSET__": list(range(rows)),
        "__SOURCE_ROW__": [0] * rows,
    }
    return pa.RecordBatch.from_pydict(values, schema=record_batch.train_schema(["user"]))


def test_a_slice_encodes_small() -> None:
    batch = pa.record_batch({"x": np.arange(1_000_000), "l": pa.array([[1]] * 1_000_000)}).slice(500_000, 10)
    assert len(record_batch.to_bytes(batch)) < 1000
    assert record_batch.from_bytes(record_batch.to_bytes(batch)).equals(batch)


def test_beam_uses_the_ipc_coder() -> None:
    coder = coders.registry.get_coder(pa.RecordBatch)
    assert isinstance(coder, beam_coder.RecordBatchCoder)
    batch = _train_batch()
    assert coder.decode(coder.encode(batch)).equals(batch, check_metadata=True)
    assert len(coder.encode(_train_batch(10_000).slice(5, 2))) < 10_000


@pytest.mark.parametrize("data", [b"", b"garbage", record_batch.to_bytes(_train_batch())[:-300]])
def test_bytes_that_are_no_stream_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an Arrow IPC stream"):
        record_batch.from_bytes(data)


def test_a_stream_of_several_batches_is_read_as_one() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _train_batch().schema) as writer:
        writer.write_batch(_train_batch(2))
        writer.write_batch(_train_batch(3))
    assert record_batch.from_bytes(sink.getvalue()).num_rows == 5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(4000, 20_000))
def test_blocks_hold_all_rows_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    batch = pa.record_batch({"text": pa.array(["x" * size for size in sizes]), "n": np.arange(len(sizes))})
    blocks = record_batch.split_to_bytes(batch, limit)
    assert all(len(data) <= limit for _, data in blocks)
    assert record_batch.concat([record_batch.from_bytes(data) for _, data in blocks]).equals(batch)


def test_a_row_above_the_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="one row takes"):
        record_batch.split_to_bytes(pa.record_batch({"text": ["x" * 5000]}), 3000)


def test_no_rows_make_no_blocks() -> None:
    assert record_batch.split_to_bytes(_train_batch(0)) == []


def test_a_canonical_batch_is_valid() -> None:
    train_check.validate_train_batch(_train_batch(), ["user"], heads=1)
    train_check.validate_train_batch(_train_batch(0), ["user"], heads=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.drop_columns(["__UID__"]), "column __UID__: missing"),
        (lambda batch: _replace(batch, "__UID__", pa.array(["a"] * 3)), "column __UID__: expected int64, found string"),
        (
            lambda batch: _replace(batch, "__WEIGHT__", pa.nulls(3, pa.float32())),
            "column __WEIGHT__: null in 3 of 3 rows",
        ),
        (
            lambda batch: _replace(batch, "__SAMPLE_RATE__", pa.array([0.0, 1.0, 1.0], pa.float32())),
            "column __SAMPLE_RATE__",
        ),
        (lambda batch: _replace(batch, "__LABEL__", pa.array([[], [1.0], [1.0]], pa.list_(pa.float32()))), "__LABEL__"),
    ],
)
def test_a_wrong_batch_is_refused_by_column(change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_check.validate_train_batch(change(_train_batch()), ["user"], heads=1)  # type: ignore[operator]


def _replace(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, column)


def test_a_slice_of_empty_lists_is_as_small_as_it_looks() -> None:
    names = pa.array([["click"]] * 10_000 + [[]] * 3 + [None], pa.list_(pa.string()))
    nested = pa.array([[["a"], []]] * 10_000 + [[]] * 3 + [None], pa.list_(pa.list_(pa.string())))
    batch = pa.record_batch({"names": names, "nested": nested})
    rows = batch.slice(10_000)
    data = record_batch.to_bytes(rows)
    assert len(data) < 1500
    assert record_batch.from_bytes(data).to_pylist() == rows.to_pylist()


def test_a_label_says_something_unless_it_is_invalid_or_no_number() -> None:
    invalid = record_batch.INVALID_LABEL
    labels = np.array([0.0, 1.0, -7200.0, invalid, invalid + 7200.0, -np.inf, np.nan], np.float32)
    assert record_batch.is_valid_label(labels).tolist() == [True, True, True, False, False, False, False]
