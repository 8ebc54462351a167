"""Batches become ragged and dense arrays; the same as the row-wise reference makes of the rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.arrays import ArraySpec, DenseFeature, LineIdFeature, to_arrays
from millrace.transforms.batch.fid import fid_v1, fid_v2
from tests.conformance.covers import covers
from tests.reference import parse_reference as reference

_FIDS = pa.list_(pa.int64())


def _field(name: str, type: pa.DataType = _FIDS, metadata: dict[bytes, bytes] | None = None) -> pa.Field:
    return pa.field(name, type, metadata=metadata)


def _batch(columns: list[tuple[pa.Field, list[Any]]]) -> pa.RecordBatch:
    fields = [field for field, _ in columns]
    arrays = [pa.array(values, field.type) for field, values in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _vector_batch() -> pa.RecordBatch:
    v1 = [(_field(f"fc_slot_{i}", metadata=record_batch.FID_V1_METADATA), [[int(fid_v1(i, i))]]) for i in range(10)]
    return _batch(
        [
            *v1,
            (record_batch.fid_field("feature"), [[int(fid_v2(100, i)) for i in range(10)]]),
            (_field("ue", pa.list_(pa.float32())), [[i * 1e-5 for i in range(16)]]),
            (_field("int64_feature"), [[100]]),
            (_field("string_feature", pa.list_(pa.binary())), [[b"test_string"]]),
            (_field(record_batch.LABEL, pa.list_(pa.float32())), [[1.1, 2.2, 3.3]]),
            (_field(record_batch.UID, pa.int64()), [110]),
            (_field(record_batch.SAMPLE_RATE, pa.float32()), [0.5]),
            (_field("__ACTIONS__", pa.list_(pa.int32())), [[0, 100]]),
        ]
    )


def _lists(ragged: Any) -> list[list[int]]:
    values, splits = ragged
    assert (values.dtype, splits.dtype) == (np.int64, np.int64)
    return [values[first:last].tolist() for first, last in zip(splits[:-1], splits[1:], strict=True)]


@covers("data:v33")
def test_a_row_becomes_what_the_spec_asks_for() -> None:
    """Fids are v2, whether or not another feature is; who wants v1 decodes them as they are (test_record_codec.py)."""
    spec = ArraySpec(
        sparse=("slot_1", "slot_10"),
        dense=(
            DenseFeature("ue", 16),
            DenseFeature("int64_feature", 1, "int64"),
            DenseFeature("string_feature", 1, "string"),
            DenseFeature("missing_float", 8),
            DenseFeature("missing_int64", 10, "int64"),
            DenseFeature("missing_string", 2, "string"),
            DenseFeature("label", 3),
        ),
        extra=(LineIdFeature("uid"), LineIdFeature("sample_rate"), LineIdFeature("actions", 2)),
    )
    parsed = to_arrays(_vector_batch(), spec)
    assert _lists(parsed["slot_1"]) == [[int(fid_v2(1, 1))]]
    assert _lists(parsed["slot_10"]) == [[]]
    dense = {name: array for name, array in parsed.items() if isinstance(array, np.ndarray)}
    np.testing.assert_array_equal(dense["ue"], np.array([[i * 1e-5 for i in range(16)]], np.float32))
    np.testing.assert_array_equal(dense["label"], np.array([[1.1, 2.2, 3.3]], np.float32))
    expected = {
        "int64_feature": [[100]],
        "string_feature": [[b"test_string"]],
        "missing_float": [[0.0] * 8],
        "missing_int64": [[0] * 10],
        "missing_string": [[b"", b""]],
        "uid": [[110]],
        "sample_rate": [[0.5]],
        "actions": [[0, 100]],
    }
    assert {name: dense[name].tolist() for name in expected} == expected
    assert {name: array.dtype for name, array in dense.items()} == {
        "ue": np.float32, "int64_feature": np.int64, "string_feature": object, "missing_float": np.float32,
        "missing_int64": np.int64, "missing_string": object, "label": np.float32, "uid": np.int64,
        "sample_rate": np.float32, "actions": np.int64,
    }  # fmt: skip


@covers("data:v33")
def test_the_sparse_features_of_one_row_can_come_as_one_ragged() -> None:
    parsed = to_arrays(_vector_batch(), ArraySpec(sparse=("slot_0", "fc_slot_1", "feature"), concat="fids"))
    assert list(parsed) == ["fids"]
    values, splits = parsed["fids"]
    assert splits.tolist() == [0, 1, 2, 12]
    assert values.tolist() == [0, int(fid_v2(1, 1)), *(int(fid_v2(100, i)) for i in range(10))]
    with pytest.raises(ValueError, match="a batch of one row; this one has 0"):
        to_arrays(_vector_batch().slice(1), ArraySpec(sparse=("slot_0",), concat="fids"))


def test_missing_labels_are_invalid_and_weights_that_are_not_positive_are_one() -> None:
    batch = _batch(
        [
            (_field(record_batch.LABEL, pa.list_(pa.float32())), [[1.0], None, [0.0, 1.0, 1.0], []]),
            (_field(record_batch.WEIGHT, pa.float32()), [2.0, None, -1.0, float("nan")]),
        ]
    )
    parsed: Any = to_arrays(batch, ArraySpec(dense=(DenseFeature("label", 2), DenseFeature("instance_weight"))))
    invalid = record_batch.INVALID_LABEL
    assert parsed["label"].tolist() == [[1.0, invalid], [invalid, invalid], [0.0, 1.0], [invalid, invalid]]
    assert parsed["instance_weight"].tolist() == [[2.0], [1.0], [1.0], [1.0]]
    nothing: Any = to_arrays(batch.select([]), ArraySpec(dense=(DenseFeature("label", 2),)))
    assert nothing["label"].shape == (batch.select([]).num_rows, 2)


def test_a_feature_named_label_goes_before_the_labels_of_the_row() -> None:
    batch = _batch(
        [
            (_field("label", pa.list_(pa.float32())), [[1.0]]),
            (_field(record_batch.LABEL, pa.list_(pa.float32())), [[0.0]]),
        ]
    )
    parsed: Any = to_arrays(batch, ArraySpec(dense=(DenseFeature("label"),)))
    assert parsed["label"].tolist() == [[1.0]]


def test_fields_of_the_line_id_have_the_defaults_of_the_proto() -> None:
    batch = _batch([(_field("__IS_DRAW__", pa.bool_()), [True, None]), (_field("__DID__", pa.string()), ["x", None])])
    names = ("is_draw", "did", "sample_rate", "chnids")
    parsed: Any = to_arrays(batch, ArraySpec(extra=tuple(LineIdFeature(name) for name in names)))
    assert {name: parsed[name].tolist() for name in names} == {
        "is_draw": [[1], [0]], "did": [[b"x"], [b""]], "sample_rate": [[1.0], [1.0]], "chnids": [[0], [0]]
    }  # fmt: skip


@st.composite
def _columns(draw: st.DrawFn) -> tuple[pa.RecordBatch, list[reference.Row]]:
    """A batch, maybe a slice, and its rows."""
    rows, optional = draw(st.integers(0, 5)), lambda strategy: st.none() | strategy
    start = draw(st.integers(0, rows))
    fids = st.lists(st.integers(0, (1 << 63) - 1), max_size=4)
    floats = st.floats(width=32, allow_nan=False)
    kinds: list[tuple[pa.Field, st.SearchStrategy[Any]]] = [
        (record_batch.fid_field("fids"), fids),
        (_field("nested", pa.list_(_FIDS), record_batch.FID_METADATA), st.lists(fids, max_size=3)),
        (_field("floats", pa.list_(pa.float32())), st.lists(optional(floats), max_size=4)),
        (_field("doubles", pa.list_(pa.float64())), st.lists(floats, max_size=4)),
        (_field("float", pa.float32()), floats),
        (_field("ints", pa.list_(pa.int32())), st.lists(st.integers(-9, 9), max_size=4)),
        (_field("texts", pa.list_(pa.string())), st.lists(optional(st.text(max_size=3)), max_size=4)),
        (_field("bytes", pa.list_(pa.binary())), st.lists(st.binary(max_size=3), max_size=4)),
        (_field(record_batch.WEIGHT, pa.float32()), floats),
    ]
    columns = [(field, draw(st.lists(optional(strategy), min_size=rows, max_size=rows))) for field, strategy in kinds]
    batch = _batch(columns).slice(start)
    return batch, batch.to_pylist()


@settings(deadline=None, max_examples=200)
@given(case=_columns(), shape=st.integers(1, 5))
def test_a_batch_is_parsed_as_the_reference_does_it(
    case: tuple[pa.RecordBatch, list[reference.Row]], shape: int
) -> None:
    batch, rows = case
    dense = {"floats": "float32", "doubles": "float32", "float": "float32", "ints": "int64", "gone": "int64",
             "texts": "string", "bytes": "string"}  # fmt: skip
    defaults: dict[str, Any] = {"float32": 0.0, "int64": 0, "string": b""}
    spec = ArraySpec(
        sparse=("fids", "nested", "lost"),
        dense=(*(DenseFeature(name, shape, dtype) for name, dtype in dense.items()), DenseFeature("instance_weight")),
    )
    parsed: Any = to_arrays(batch, spec)
    for name in spec.sparse:
        assert _lists(parsed[name]) == reference.sparse(rows, name)
    for name, dtype in dense.items():
        expected = reference.dense(rows, name, shape, defaults[dtype])
        encoded = [[value.encode() if isinstance(value, str) else value for value in row] for row in expected]
        assert parsed[name].shape == (len(rows), shape)
        assert parsed[name].tolist() == encoded
    assert parsed["instance_weight"].tolist() == reference.weight(rows)


def test_a_default_takes_the_place_of_what_is_missing() -> None:
    batch = _batch([(_field("age", pa.int64()), [7, None])])
    parsed: Any = to_arrays(batch, ArraySpec(dense=(DenseFeature("age", 2, "int64", default=-1),)))
    assert parsed["age"].tolist() == [[7, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ArraySpec(sparse=("ints",)), "column ints: holds list<.*int64> and no fids"),
        (ArraySpec(dense=(DenseFeature("ints"),)), "column ints: holds list<.*int64>, not float32"),
        (ArraySpec(dense=(DenseFeature("nested"),)), "column nested: holds .*, not float32"),
        (ArraySpec(extra=(LineIdFeature("actions"),)), "column __ACTIONS__: holds list<.*string>, not list<.*int32>"),
    ],
)
def test_a_column_of_another_type_is_named(spec: ArraySpec, message: str) -> None:
    batch = _batch(
        [
            (_field("ints"), [[1]]),
            (_field("nested", pa.list_(pa.list_(pa.float32()))), [[[1.0]]]),
            (_field("__ACTIONS__", pa.list_(pa.string())), [["click"]]),
        ]
    )
    with pytest.raises(ValueError, match=message):
        to_arrays(batch, spec)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"dense": (DenseFeature("a", 0),)}, "dense.a.shape=0: not positive"),
        ({"dense": (DenseFeature("a", 1, "float64"),)}, "dense.a.dtype=float64: unknown"),
        ({"dense": (DenseFeature("a", 1, "int64", b""),)}, "dense.a.default=b'': no int64"),
        ({"dense": (DenseFeature("a"), DenseFeature("a"))}, "names=a: given twice"),
        ({"sparse": ("a",), "dense": (DenseFeature("a"),)}, "names=a: given twice"),
        ({"sparse": ("a", "a"), "concat": "fids"}, "sparse=a: given twice"),
        ({"extra": (LineIdFeature("nobody"),)}, "extra=nobody: a line id has no such field"),
        ({"extra": (LineIdFeature("uid", 2),)}, "extra.uid.shape=2: the field has one value"),
    ],
)
def test_a_wrong_entry_of_a_spec_is_named(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ArraySpec(**entries)
