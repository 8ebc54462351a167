"""tf.Example records to canonical rows and back, against a row-wise reference."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_bsl.coders import example_coder

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.arrays import ArraySpec, DenseFeature, to_arrays
from millrace.transforms.batch.fid import fid_v2, hash_strings
from millrace.transforms.codecs.tf_example import TfExampleOptions, decode_tf_examples, encode_tf_examples, log2_bucket
from tests.conformance.covers import covers
from tests.reference.file_batches import canonical_batch, events_block
from tests.reference.tf_example import reference_row

OPTIONS = TfExampleOptions({"feature0": 1, "feature1": 2, "price": 3}, ["age", "name"], "click", "importance")


def examples(rows: list[dict[str, list[Any]]]) -> list[bytes]:
    """Each row as a serialized tf.Example; the type of a feature is that of its first value."""
    encoded: list[bytes] = []
    for row in rows:
        columns = [pa.array([values], pa.list_(_type(values))) for values in row.values()]
        batch = pa.RecordBatch.from_arrays(columns, names=list(row))
        encoded += example_coder.RecordBatchToExamples(batch) if row else [b""]
    return encoded


def _type(values: list[Any]) -> pa.DataType:
    kind = type(values[0]) if values else float
    return {int: pa.int64(), float: pa.float32(), bytes: pa.binary()}[kind]


def decode(rows: list[dict[str, list[Any]]], options: TfExampleOptions = OPTIONS) -> tuple[list[dict], list[dict]]:
    good, dead = decode_tf_examples(events_block(examples(rows)), options)
    return good.to_pylist(), dead.to_pylist()


@covers("data:v34")
def test_floats_fall_into_buckets_of_their_size() -> None:
    assert log2_bucket(np.array([0, 0.5, 1, -1, 3, -7.5, 1e6])).tolist() == [0, 0, 1, 1, 2, 3, 19]


def test_not_a_number_and_infinity_have_buckets_too() -> None:
    assert log2_bucket(np.array([np.nan, np.inf, -np.inf])).tolist() == [0, 128, 128]


@covers("data:v34")
def test_integers_become_fids_of_their_slot() -> None:
    rows, dead = decode([{"feature0": [number % 2], "feature1": [number]} for number in range(5)])
    assert dead == []
    assert [row["feature0"] for row in rows] == [[int(fid_v2(1, number % 2))] for number in range(5)]
    assert [row["feature1"] for row in rows] == [[int(fid_v2(2, number))] for number in range(5)]


@covers("data:v34")
def test_what_is_not_listed_is_zero_or_empty_for_who_reads_the_row_as_arrays() -> None:
    rows, _ = decode_tf_examples(events_block(examples([{"feature0": [1], "age": [7], "other": [3]}])), OPTIONS)
    dense = DenseFeature("missing_dense"), DenseFeature("instance_weight")
    parsed: Any = to_arrays(rows, ArraySpec(sparse=("feature0", "feature1", "other"), dense=dense))
    assert [(values.tolist(), splits.tolist()) for values, splits in (parsed["feature0"], parsed["feature1"])] == [
        ([int(fid_v2(1, 1))], [0, 1]),
        ([], [0, 0]),
    ]
    assert [array.tolist() for array in parsed["other"]] == [[], [0, 0]]
    assert (parsed["missing_dense"].tolist(), parsed["instance_weight"].tolist()) == ([[0.0]], [[1.0]])


def test_what_is_not_there_is_null_and_the_weight_is_one_and_what_is_not_listed_is_dropped() -> None:
    rows, _ = decode([{"feature0": [1], "other": [3]}])
    (row,) = rows
    assert row["feature1"] is None and row["price"] is None and row["__LABEL__"] is None
    assert row["__WEIGHT__"] == 1.0
    assert "other" not in row and "age" not in row


def test_sparse_floats_are_bucketed_and_sparse_bytes_hashed() -> None:
    rows, _ = decode([{"price": [3.0, -7.5]}, {"feature0": [b"a", b""]}])
    assert rows[0]["price"] == fid_v2(3, np.array([2, 3])).tolist()
    assert rows[1]["feature0"] == fid_v2(1, hash_strings(pa.array([b"a", b""]))).tolist()


def test_another_bucketing_can_be_given() -> None:
    options = TfExampleOptions({"price": 3}, bucket=lambda values: np.floor(values / 10).astype(np.int64))
    assert decode([{"price": [25.0]}], options)[0][0]["price"] == [int(fid_v2(3, 2))]


@pytest.mark.parametrize(("values", "label"), [([1.0, 0.5], [1.0, 0.5]), ([1, 0], [1.0, 0.0])])
def test_labels_are_floats_or_integers(values: list[Any], label: list[float]) -> None:
    assert decode([{"click": values}])[0][0]["__LABEL__"] == label


@pytest.mark.parametrize(("values", "weight"), [([0.25], 0.25), ([0.5, 0.5], 1.0), ([], 1.0), ([3], 1.0)])
def test_a_weight_is_exactly_one_float(values: list[Any], weight: float) -> None:
    assert decode([{"importance": values}])[0][0]["__WEIGHT__"] == weight


def test_dense_features_are_copied() -> None:
    rows, _ = decode([{"age": [1.5, 2.5], "name": [b"x"]}, {"name": []}])
    assert [row["age"] for row in rows] == [[1.5, 2.5], None]
    assert rows[0]["name"] == [b"x"]


def test_a_bad_record_is_one_dead_letter_and_its_neighbours_stay() -> None:
    values: list[bytes | None] = [*examples([{"feature1": [number]} for number in range(20)])]
    values[3], values[11], values[12] = b"\xff\xff", None, b"garbage"
    rows, dead = decode_tf_examples(events_block(values), OPTIONS)
    kept = [number for number in range(20) if number not in (3, 11, 12)]
    assert rows.column("__SOURCE_OFFSET__").to_pylist() == kept
    assert rows.column("feature1").to_pylist() == [[int(fid_v2(2, number))] for number in kept]
    assert [(row["offset"], row["reason"]) for row in dead.to_pylist()] == [
        (3, "malformed_frame"),
        (11, "empty_value"),
        (12, "malformed_frame"),
    ]


def test_a_dense_feature_that_changes_its_type_is_refused_by_name() -> None:
    rows, dead = decode([{"age": [1.5]}, {"age": [2]}, {"age": [2.5]}])
    assert [row["age"] for row in rows] == [[1.5], [2.5]]
    assert [(row["reason"], row["offset"]) for row in dead] == [("wrong_type", 1)]
    assert "age is list<item: int64>" in dead[0]["detail"]


def test_bytes_are_no_label() -> None:
    rows, dead = decode([{"click": [b"yes"]}])
    assert rows == [] and [row["reason"] for row in dead] == ["wrong_type"]


def test_no_records_give_the_columns_and_no_rows() -> None:
    rows, dead = decode_tf_examples(events_block([]), OPTIONS)
    assert rows.num_rows == dead.num_rows == 0
    assert rows.schema.names[:3] == ["feature0", "feature1", "price"]


_FEATURE = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.floats(width=32, allow_nan=False), max_size=3),
    st.lists(st.binary(max_size=4), max_size=3),
)
_ROWS = st.lists(st.dictionaries(st.sampled_from(["feature0", "price", "importance", "x"]), _FEATURE), max_size=6)


@given(_ROWS)
@settings(max_examples=60, deadline=None)
def test_rows_equal_those_of_the_reference(rows: list[dict[str, list[Any]]]) -> None:
    found, dead = decode(rows)
    assert dead == []
    expected = [reference_row(row, {"feature0": 1, "price": 3}, "importance") for row in rows]
    assert [{name: row[name] for name in ("feature0", "price", "__WEIGHT__")} for row in found] == expected


def test_encoded_rows_decode_to_themselves() -> None:
    batch = canonical_batch(20).drop_columns(["nested"])
    names = [name for name in record_batch.feature_columns(batch.schema) if name != "slot_1"]
    options = TfExampleOptions({"slot_1": 1}, names, "label", "weight")
    block = events_block(encode_tf_examples(batch, options).to_pylist())
    rows, dead = decode_tf_examples(block, options)
    assert dead.num_rows == 0
    for name in ("slot_1", "v1", "context.hour", "ue", "name", "__LABEL__"):
        assert rows.column(name).to_pylist() == batch.column(name).to_pylist(), name


def test_nested_lists_cannot_be_encoded() -> None:
    with pytest.raises(UserError, match="nested"):
        encode_tf_examples(canonical_batch(3), OPTIONS)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sparse_features": {"a": 0}}, "out of range"),
        ({"sparse_features": {"a": 32768}}, "out of range"),
        ({"sparse_features": {"a": 1, "b": 1}}, "has the slot 1 of a"),
        ({"sparse_features": {"a": 1}, "dense_features": ["a"]}, "two purposes"),
        ({"sparse_features": {"a": 1}, "label": "a"}, "two purposes"),
        ({"sparse_features": {}, "label": "a", "instance_weight": "a"}, "two purposes"),
    ],
)
def test_wrong_options_are_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        TfExampleOptions(**settings)
