"""Tables of any origin as canonical batches: types, row metadata, what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import ensure_provenance
from millrace.transforms.codecs.tables import check_columns, mark_canonical, read_kinds, to_canonical
from tests.reference.file_batches import canonical_batch


def one(values: list[Any], type: pa.DataType, name: str = "f", kind: str | None = None, **field: Any) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_arrays([pa.array(values, type)], schema=pa.schema([pa.field(name, type, **field)]))
    return to_canonical(batch, None if kind is None else {name: kind})


@pytest.mark.parametrize(
    ("type", "values", "expected", "made"),
    [
        (pa.int32(), [1, None], pa.int64(), [[1], None]),
        (pa.int8(), [-1], pa.int64(), [[-1]]),
        (pa.uint64(), [2**64 - 1], pa.int64(), [[-1]]),
        (pa.float16(), [0.5], pa.float32(), [[0.5]]),
        (pa.float32(), [0.5], pa.float32(), [[0.5]]),
        (pa.float64(), [0.5], pa.float64(), [[0.5]]),
        (pa.string(), ["a", None], pa.binary(), [[b"a"], None]),
        (pa.large_binary(), [b"a"], pa.binary(), [[b"a"]]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b"], pa.binary(), [[b"a"], [b"b"]]),
        (pa.list_(pa.int32()), [[1, 2], [], None], pa.int64(), [[1, 2], [], None]),
        (pa.large_list(pa.float32()), [[1.0], []], pa.float32(), [[1.0], []]),
        (pa.list_(pa.int64(), 2), [[1, 2], [3, 4]], pa.int64(), [[1, 2], [3, 4]]),
        (pa.list_(pa.int64()), [[1, None, 3], [None], None], pa.int64(), [[1, 3], [], None]),
        (pa.list_(pa.list_(pa.int32())), [[[1], []], None], pa.list_(pa.int64()), [[[1], []], None]),
    ],
)
def test_columns_become_lists_of_the_canonical_types(
    type: pa.DataType, values: list[Any], expected: pa.DataType, made: list[Any]
) -> None:
    batch = one(values, type)
    assert batch.column(0).type == pa.list_(expected)
    assert batch.column(0).to_pylist() == made


@pytest.mark.parametrize("kind", ["fid_v1", "fid_v2"])
def test_fids_are_what_the_caller_or_the_file_calls_so(kind: str) -> None:
    is_kind = record_batch.is_fid_field if kind == "fid_v2" else record_batch.is_fid_v1_field
    assert is_kind(one([[1]], pa.list_(pa.int64()), kind=kind).schema.field(0))
    metadata = record_batch.FID_METADATA if kind == "fid_v2" else record_batch.FID_V1_METADATA
    assert is_kind(one([[1]], pa.list_(pa.int64()), metadata=metadata).schema.field(0))
    assert not is_kind(one([[1]], pa.list_(pa.int64())).schema.field(0))


def test_a_column_is_numbered_after_its_place() -> None:
    batch = to_canonical(pa.RecordBatch.from_pydict({"a": [1], "b": [2]}))
    assert batch.schema.field("b").metadata[record_batch.ID_KEY] == b"10001"


def test_doubles_can_be_read_as_floats() -> None:
    assert one([0.5], pa.float64(), kind="float").column(0).type == pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("type", "values"), [(pa.float64(), [1.0]), (pa.int32(), [1]), (pa.list_(pa.float32()), [[1.0]])]
)
def test_labels_become_lists_of_floats(type: pa.DataType, values: list[Any]) -> None:
    batch = one(values, type, "__LABEL__")
    assert batch.column(0).type == pa.list_(pa.float32())
    assert batch.column(0).to_pylist() == [[1.0]]


@pytest.mark.parametrize(
    ("name", "type", "values", "made"),
    [
        ("__REQ_TIME__", pa.int32(), [5, None], pa.array([5, None], pa.int64())),
        ("__UID__", pa.uint64(), [2**64 - 1], pa.array([-1], pa.int64())),
        ("__SAMPLE_RATE__", pa.float64(), [0.5], pa.array([0.5], pa.float32())),
        ("__IS_DRAW__", pa.bool_(), [True], pa.array([True])),
        ("__DEVICE_TYPE__", pa.string(), ["ios"], pa.array(["ios"])),
        ("__ACTIONS__", pa.list_(pa.int64()), [[1, 2]], pa.array([[1, 2]], pa.list_(pa.int32()))),
        ("__ACTIONS__", pa.list_(pa.string()), [["click"]], pa.array([["click"]])),
        ("__WEIGHT__", pa.float64(), [0.5], pa.array([0.5], pa.float32())),
    ],
)
def test_columns_named_after_row_metadata_get_its_type(
    name: str, type: pa.DataType, values: list[Any], made: pa.Array
) -> None:
    assert one(values, type, name).column(0).equals(made)


@pytest.mark.parametrize(
    ("name", "type", "values"),
    [
        ("__REQ_TIME__", pa.string(), ["5"]),
        ("__REQ_TIME__", pa.list_(pa.int64()), [[5]]),
        ("__UID__", pa.float64(), [5.0]),
        ("__ACTIONS__", pa.int32(), [5]),
        ("__LABEL__", pa.string(), ["1"]),
        ("f", pa.bool_(), [True]),
        ("f", pa.struct([("a", pa.int64())]), [{"a": 1}]),
        ("f", pa.timestamp("ms"), [5]),
    ],
)
def test_a_column_of_a_type_that_does_not_fit_is_refused_by_name(
    name: str, type: pa.DataType, values: list[Any]
) -> None:
    with pytest.raises(UserError, match=f"column {name}"):
        one(values, type, name)


def test_names_that_only_look_like_metadata_are_features() -> None:
    assert one([1], pa.int64(), "__OTHER__").column(0).to_pylist() == [[1]]


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_batches_that_millrace_wrote_stay_as_they_are(rows: int) -> None:
    batch = canonical_batch(rows)
    assert to_canonical(mark_canonical(batch)).equals(batch, check_metadata=True)


def test_slices_are_converted_as_whole_batches_are() -> None:
    columns = {"a": pa.array([1, 2, 3, 4]), "b": pa.array([[1, None], [2], None, []], pa.list_(pa.int32()))}
    batch = pa.RecordBatch.from_pydict(columns)
    assert to_canonical(batch.slice(1, 2)).to_pylist() == to_canonical(batch).slice(1, 2).to_pylist()


def test_all_null_columns_stay_null() -> None:
    batch = one([None, None], pa.list_(pa.int64()))
    assert batch.column(0).to_pylist() == [None, None]


def test_provenance_is_kept_where_it_is_complete() -> None:
    batch = canonical_batch(3)
    assert ensure_provenance(batch, 9, 0).equals(batch)
    made = ensure_provenance(batch.drop_columns([record_batch.SOURCE_ROW]), 9, 5)
    assert made.column(record_batch.SOURCE_PARTITION).to_pylist() == [9, 9, 9]
    assert made.column(record_batch.SOURCE_OFFSET).to_pylist() == [5, 6, 7]


def test_columns_are_checked_against_the_schema() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.struct([("c", pa.int64())]))])
    assert check_columns(schema, ["a"], {}) == ["a"]
    with pytest.raises(UserError, match="column b"):
        check_columns(schema, None, {})


def test_a_companion_file_tells_the_kinds(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"a": 2, "b": 3, "c": 5, "d": 1, "e": 4, "f": 6}))
    kinds = ["fid_v2", "float", "int", "fid_v1", "double", "bytes"]
    assert read_kinds(path) == dict(zip("abcdef", kinds, strict=True))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 9}', '{"a": "x"}', '{"a": []}'])
def test_a_wrong_companion_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(UserError, match="column_types"):
        read_kinds(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_kinds(tmp_path / "none")
