"""The rules of the record codecs, one by one; `test_record_codec_reference.py` has whole random records."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millrace.protos.instance_pb2 import Instance
from millrace.protos.line_id_pb2 import LineId
from millrace.protos.record_pb2 import SHARED, Example, ExampleBatch
from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid, line_id, record_batch
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.record_codec import FORMATS, DecodeOptions, decode_records, encode_records
from millrace.transforms.frames.framing import FrameOptions, deframe, join_frames
from tests.conformance.covers import covers
from tests.reference.record_comparison import block_of

_FLOATS = pa.list_(pa.float32())
_FIDS = pa.list_(pa.int64())


def _example(**floats: list[float]) -> Example:
    example = Example()
    for name, values in floats.items():
        example.named_feature.add(name=name).feature.float_list.value.extend(values)
    return example


def _decode(
    values: list[Any], format: str = "example", options: DecodeOptions = DecodeOptions()
) -> tuple[pa.RecordBatch, list[dict[str, Any]]]:
    """(rows, dead letters) of values, or of messages."""
    encoded = [value.SerializeToString() if hasattr(value, "SerializeToString") else value for value in values]
    rows, dead = decode_records(block_of(encoded), format, options)
    rows.validate(full=True)
    return rows, dead.to_pylist()


def _refusal(value: Any, format: str = "example", options: DecodeOptions = DecodeOptions()) -> tuple[str, str]:
    """(reason, detail) for one record among good ones, which have to survive."""
    good = {"example": _example(a=[1]), "example_batch": _batch(2), "instance": Instance(label=[1])}[format]
    rows, dead = _decode([good, value, good], format, options)
    assert set(rows[record_batch.SOURCE_OFFSET].to_pylist()) == {100, 102}
    (letter,) = dead
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("records", 3, 101)
    return letter["reason"], letter["detail"]


def _batch(size: int) -> ExampleBatch:
    batch = ExampleBatch(batch_size=size)
    named = batch.named_feature_list.add(name="a", id=5)
    for row in range(size):
        named.feature.add().float_list.value.append(row)
    return batch


@covers("data:v33")
def test_the_row_of_the_parsing_vector() -> None:
    """Fids of both versions, other lists, labels and fields of the line id."""
    example = Example(label=[1.1, 2.2, 3.3], line_id=LineId(uid=110, sample_rate=0.5, actions=[0, 100]))
    for slot in range(10):
        feature = example.named_feature.add(name=f"slot_{slot}", id=slot).feature
        feature.fid_v1_list.value.append(int(fid.fid_v1(slot, slot)))
    example.named_feature.add(name="v2").feature.fid_v2_list.value.extend(fid.fid_v2(100, np.arange(10)).tolist())
    example.named_feature.add(name="ue").feature.float_list.value.extend(np.arange(16) * 1e-5)
    example.named_feature.add(name="count").feature.int64_list.value.append(100)
    example.named_feature.add(name="text").feature.bytes_list.value.append(b"test_string")
    rows, dead = _decode([example])
    assert dead == []
    (row,) = rows.to_pylist()
    assert row["slot_1"] == [int(fid.fid_v2(1, 1))]
    assert row["v2"] == fid.fid_v2(100, np.arange(10)).tolist()
    assert np.allclose(row["ue"], np.arange(16) * 1e-5)
    assert (row["count"], row["text"]) == ([100], [b"test_string"])
    assert np.allclose(row["__LABEL__"], [1.1, 2.2, 3.3])
    assert (row["__UID__"], row["__SAMPLE_RATE__"], row["__ACTIONS__"]) == (110, 0.5, [0, 100])
    assert "slot_10" not in row
    assert rows.schema.field("slot_7").metadata == record_batch.FID_METADATA | {record_batch.ID_KEY: b"7"}
    kept, _ = _decode([example], options=DecodeOptions(fids="as_is"))
    assert kept["slot_1"].to_pylist() == [[int(fid.fid_v1(1, 1))]]
    assert record_batch.is_fid_v1_field(kept.schema.field("slot_1"))


def test_an_example_batch_explodes_into_rows() -> None:
    """a has one list of fids per row, b one for all rows, and c is absent."""
    a, b = fid.fid_v2(1, np.array([10, 11, 11])).tolist(), fid.fid_v2(2, np.array([20, 21])).tolist()
    batch = ExampleBatch(batch_size=2, data_source_key=1280)
    individual = batch.named_feature_list.add(name="a")
    individual.feature.add().fid_v2_list.value.extend(a[:2])
    individual.feature.add().fid_v2_list.value.extend(a[2:])
    batch.named_feature_list.add(name="b", type=SHARED).feature.add().fid_v2_list.value.extend(b)
    who = batch.named_feature_list.add(name="__LINE_ID__", type=SHARED).feature.add()
    who.bytes_list.value.append(LineId(did="d").SerializeToString())
    weights = batch.named_feature_list.add(name="instance_weight")
    weights.feature.add().float_list.SetInParent()
    weights.feature.add()
    rows, dead = _decode(
        [batch], "example_batch", DecodeOptions(features=pa.schema([*map(record_batch.fid_field, "abc")]))
    )
    assert dead == []
    assert rows["a"].to_pylist() == [a[:2], a[2:]]
    assert rows["b"].to_pylist() == [b, b]
    assert rows["c"].to_pylist() == [None, None]
    shared = [name for name in "abc" if record_batch.SHARED_KEY in rows.schema.field(name).metadata]
    assert shared == ["b"]
    assert rows["__DID__"].to_pylist() == ["d", "d"]
    assert rows["__WEIGHT__"].to_pylist() == [1.0, None]
    assert rows["__DATA_SOURCE_KEY__"].to_pylist() == [1280, 1280]
    assert rows[record_batch.SOURCE_ROW].to_pylist() == [0, 1]


def test_an_instance_groups_its_fids_by_slot_in_order_of_appearance() -> None:
    fids = fid.fid_v1(2, 1).tolist(), fid.fid_v1(1, 5).tolist(), fid.fid_v1(2, 9).tolist()
    instance = Instance(fid=fids, value=[0.5], data_source_key=0)
    rows, _ = _decode([instance], "instance", DecodeOptions(fids="as_is"))
    assert rows.schema.names[:3] == ["value", "fc_slot_2", "fc_slot_1"]
    assert rows["fc_slot_2"].to_pylist() == [[fids[0], fids[2]]]
    assert rows.schema.field("fc_slot_2").metadata[record_batch.ID_KEY] == b"2"
    assert rows["__DATA_SOURCE_KEY__"].to_pylist() == [0]
    assert rows["__WEIGHT__"].to_pylist() == [None]


def test_reserved_names_become_metadata() -> None:
    example = Example(label=[1], line_id=LineId(uid=1, did="old"), instance_weight=3)
    example.named_feature.add(name="__LABEL__").feature.float_list.value.append(2)
    example.named_feature.add(name="instance_weight").feature.float_list.SetInParent()
    example.named_feature.add(name="__LINE_ID__").feature.bytes_list.value.append(LineId(uid=7).SerializeToString())
    rows, _ = _decode([example])
    assert record_batch.feature_columns(rows.schema) == []
    (row,) = rows.to_pylist()
    assert (row["__LABEL__"], row["__WEIGHT__"], row["__UID__"]) == ([1, 2], 1.0, 7)
    assert "__DID__" not in row


def test_unknown_fields_are_skipped() -> None:
    newer = b"\xfa\x3e\x03abc" + b"\xc0\x3e\x01" + b"\xc3\x3e\x08\x01\xc4\x3e"  # fields 1007 and 1000, and a group
    rows, dead = _decode([_example(a=[1]).SerializeToString() + newer])
    assert dead == []
    assert rows["a"].to_pylist() == [[1.0]]


@pytest.mark.parametrize(
    ("pruning", "columns"),
    [("as_is", ["a", "r"]), ("features", ["r"]), ("raw_features", ["a"])],
)
def test_pruning_leaves_out_features_or_raw_features(pruning: Any, columns: list[str]) -> None:
    example = _example(a=[1], __LABEL__=[1])
    example.named_raw_feature.add(name="r").raw_feature.feature.append(b"x")
    rows, _ = _decode([example], options=DecodeOptions(pruning=pruning))
    assert record_batch.feature_columns(rows.schema) == columns
    assert rows["__LABEL__"].to_pylist() == [[1.0]]


def _named(name: str, *, twice: bool = False) -> Example:
    example = _example(**{name: [1]})
    if twice:
        example.named_feature.add(name=name)
    return example


def _with_fid(bits: int) -> Example:
    example = Example()
    example.named_feature.add(name="f").feature.fid_v2_list.value.append(bits)
    return example


def _with_line_id(value: bytes) -> Example:
    example = Example()
    example.named_feature.add(name="__LINE_ID__").feature.bytes_list.value.append(value)
    return example


def _sized(size: int, *, shared: bool = False) -> ExampleBatch:
    batch = _batch(2)
    named = batch.named_feature_list.add(name="short", type=SHARED if shared else 0)
    for _ in range(size):
        named.feature.add()
    return batch


_BAD = [
    (None, "example", Reason.EMPTY_VALUE, "no value"),
    (b"", "example", Reason.EMPTY_VALUE, "no value"),
    (b"\x0a\x05\x0a", "example", Reason.MALFORMED_PROTO, "malformed at byte 0"),
    (
        b"\x0a\x09\x0a\x01a\x12\x04\x1a\x02\x0a\x03",
        "example",
        Reason.MALFORMED_PROTO,
        "feature 'a': malformed at byte 10",
    ),
    (b"\x0a\x03\x0a\x01\xff", "example", Reason.NOT_UTF8, "name of a feature: not UTF-8 at byte 4"),
    (_with_fid(1 << 63), "example", Reason.OUT_OF_RANGE, "feature 'f': a fid v2 with bit 63 set at byte 11"),
    (_named("a", twice=True), "example", Reason.DUPLICATE_FEATURE, "feature 'a': given twice at byte 19"),
    (_named("__UID__"), "example", Reason.RESERVED_NAME, "feature '__UID__': the name of a metadata column at byte 4"),
    (_named("a\0b"), "example", Reason.RESERVED_NAME, "name of a feature: holds a NUL at byte 4"),
    (_with_line_id(b"\x11"), "example", Reason.MALFORMED_LINE_ID, "line id: malformed at byte 21"),
    (_with_line_id(b"\xca\x3e\x01\xff"), "example", Reason.MALFORMED_LINE_ID, "line id: did: not UTF-8 at byte 21"),
    (_sized(1), "example_batch", Reason.BATCH_SIZE_MISMATCH, "feature 'short': 1 features in a batch of 2 at byte 31"),
    (_sized(0, shared=True), "example_batch", Reason.BATCH_SIZE_MISMATCH, "feature 'short': 0 features"),
    (_batch(0), "example_batch", Reason.BATCH_SIZE_MISMATCH, "batch_size: 0"),
    (_batch(65), "example_batch", Reason.TOO_MANY_ROWS, "65 rows of one source record, at most 64"),
    (b"\x4a\x03\x1a\x01\x00", "instance", Reason.MALFORMED_PROTO, "feature '': malformed at byte 4"),
]


@pytest.mark.parametrize(("value", "format", "reason", "detail"), _BAD, ids=[str(case[2]) for case in _BAD])
def test_a_bad_record_is_one_dead_letter_that_says_where(value: Any, format: str, reason: Reason, detail: str) -> None:
    found = _refusal(value, format)
    assert found[0] == reason
    assert found[1].startswith(detail)


def test_a_feature_of_another_type_is_refused_by_name() -> None:
    other = Example()
    other.named_feature.add(name="a").feature.double_list.value.append(1)
    expected = "feature 'a': expected list<float>, found list<double> at byte 4"
    assert _refusal(other) == (Reason.WRONG_TYPE, expected)
    rows, dead = _decode([other, _example(a=[1])], options=DecodeOptions(features=pa.schema([("a", _FLOATS)])))
    assert rows["a"].to_pylist() == [[1.0]]
    assert [(letter["offset"], letter["detail"]) for letter in dead] == [(100, expected)]


def test_a_refused_record_leaves_no_column_behind() -> None:
    bad = _named("new", twice=True)
    bad.line_id.did = "x"
    rows, _ = _decode([bad, _example(a=[1])])
    assert record_batch.feature_columns(rows.schema) == ["a"]
    assert "__DID__" not in rows.schema.names


def test_more_names_than_a_batch_can_have_are_refused() -> None:
    wide = Example()
    for index in range(8200):
        wide.named_feature.add(name=f"f{index}")
    assert _refusal(wide)[0] == Reason.TOO_MANY_FEATURES
    rows, dead = _decode([wide], options=DecodeOptions(features=["f1"]))
    assert (rows.num_rows, dead) == (1, [])


def test_one_small_feature_cannot_be_repeated_into_gigabytes() -> None:
    batch = ExampleBatch(batch_size=64 * 10_000)
    batch.named_feature_list.add(name="b", type=SHARED).feature.add().bytes_value = b"x" * 100_000
    reason, detail = _refusal(batch, "example_batch", DecodeOptions(row_stride=10_000))
    assert (reason, detail) == (Reason.TOO_LARGE, "feature 'b': too large to repeat for every row at byte 6")


def test_a_schema_gives_the_same_columns_for_every_block() -> None:
    schema = pa.schema([record_batch.fid_field("f"), pa.field("z", pa.int64()), pa.field("a", _FLOATS)])
    options = DecodeOptions(features=schema, line_id=["uid", "did"])
    first, _ = _decode([_example(a=[1], b=[2])], options=options)
    second, _ = _decode([], options=options)
    assert first.schema.equals(second.schema, check_metadata=True)
    assert record_batch.feature_columns(first.schema) == ["f", "z", "a"]
    assert first.to_pylist()[0]["a"] == [1.0]
    assert {"__UID__", "__DID__"} <= set(first.schema.names)
    assert "__REQ_ID__" not in first.schema.names


def test_names_choose_features_and_take_the_type_that_comes() -> None:
    rows, dead = _decode([_example(a=[1], b=[2]), _example(b=[3])], options=DecodeOptions(features=["b", "none"]))
    assert dead == []
    assert record_batch.feature_columns(rows.schema) == ["b"]
    assert rows["b"].to_pylist() == [[2.0], [3.0]]


def test_an_empty_block_and_rows_without_anything() -> None:
    rows, dead = _decode([])
    assert (rows.num_rows, dead) == (0, [])
    rows, dead = _decode([Example(data_source_key=1), Example(data_source_key=1)])
    assert rows["__LABEL__"].null_count == rows["__WEIGHT__"].null_count == 2
    assert dead == []


def test_a_slice_of_a_block_is_decoded_alone() -> None:
    block = block_of([_example(a=[value]).SerializeToString() for value in range(5)] + [b"\x0a"])
    rows, dead = decode_records(block.slice(3), "example")
    assert rows["a"].to_pylist() == [[3.0], [4.0]]
    assert rows[record_batch.SOURCE_OFFSET].to_pylist() == [103, 104]
    assert dead["offset"].to_pylist() == [105]


def test_a_source_that_leaves_room_numbers_rows_beyond_64() -> None:
    rows, dead = _decode([_batch(130)], "example_batch", DecodeOptions(row_stride=3))
    assert dead == []
    index = np.arange(130)
    assert rows[record_batch.SOURCE_OFFSET].to_pylist() == (100 + index // 64).tolist()
    assert rows[record_batch.SOURCE_ROW].to_pylist() == (index % 64).tolist()


def test_records_framed_in_one_value_have_rows_of_their_own() -> None:
    options = FrameOptions(has_sort_id=False, lagrangex_header=True)
    frames = [_batch(2).SerializeToString(), b"\x0a\x05", _batch(3).SerializeToString()]
    value = join_frames(pa.array(frames, pa.binary()), options, "pc").to_pybytes()
    records, bad = deframe(block_of([value, value]), options)
    rows, dead = decode_records(records, "example_batch")
    assert (bad.num_rows, dead["offset"].to_pylist()) == (0, [100, 101])
    assert rows[record_batch.SOURCE_OFFSET].to_pylist() == [100] * 5 + [101] * 5
    assert rows[record_batch.SOURCE_ROW].to_pylist() == [0, 1, 2, 3, 4] * 2
    assert rows["__DATA_SOURCE_KEY__"].to_pylist() == [914176] * 10


def test_the_columns_of_the_line_id_are_those_of_python() -> None:
    rows, _ = _decode([_example(a=[1])], options=DecodeOptions(line_id=list(line_id.FIELDS)))
    expected = [(field.column, field.type) for field in line_id.FIELDS.values()]
    at = rows.schema.names.index("__UID__")
    assert [(field.name, field.type) for field in rows.schema][at : at + len(expected)] == expected
    every = LineId()
    for field in line_id.FIELDS.values():
        if field.repeated:
            getattr(every, field.name).extend([1, -2])
        else:
            setattr(every, field.name, {str: "x", bool: True}.get(type(field.default), 3))
    rows, _ = _decode([Example(line_id=every)])
    back = Example.FromString(encode_records(rows, "example")[0].as_py())
    assert back.line_id == every


@pytest.mark.parametrize("format", ["example", "example_batch", "instance"])
def test_encoding_takes_slices_and_nulls_and_empty_batches(format: str) -> None:
    batch = pa.record_batch(
        {
            "f": pa.array([[9], [1, 2], None, []], _FIDS),
            "t": pa.array([["q"], ["x", "y"], None, ["z"]]),
            "n": pa.array([5, 6, 7, None], pa.int32()),
            "gone": pa.nulls(4),
            "__UID__": pa.array([1, None, 3, 4]),
            "__LABEL__": pa.array([[1], [], None, [2]], pa.list_(pa.float64())),
            "__SOURCE_ROW__": pa.array([0, 0, 0, 0], pa.int32()),
        }
    )
    rows, dead = decode_records(block_of(encode_records(batch.slice(1), format).to_pylist()), format)
    assert dead.num_rows == 0
    assert rows["t"].to_pylist() == [[b"x", b"y"], None, [b"z"]]
    assert rows["f"].to_pylist() == [[1, 2], None, None if format == "instance" else []]
    assert rows["n"].to_pylist() == ([[6], [7], None] if format == "instance" else [6, 7, None])
    assert rows["__UID__"].to_pylist() == [None, 3, 4]
    assert rows["__LABEL__"].to_pylist() == [None, None, [2.0]]
    assert len(encode_records(batch.slice(0, 0), format)) == 0


def test_an_example_batch_takes_64_rows_of_one_data_source() -> None:
    keys = [1] * 70 + [2] * 3
    batch = pa.record_batch({"a": pa.array([[1.0]] * 73, _FLOATS), "__DATA_SOURCE_KEY__": pa.array(keys)})
    records = [ExampleBatch.FromString(value) for value in encode_records(batch, "example_batch").to_pylist()]
    assert [(record.batch_size, record.data_source_key) for record in records] == [(64, 1), (6, 1), (3, 2)]


def test_a_weight_of_zero_survives() -> None:
    batch = pa.record_batch({"__WEIGHT__": pa.array([0.0, None, 2.0], pa.float32()), "a": pa.array([1, 1, 1])})
    for format in ("example", "example_batch", "instance"):
        rows, _ = decode_records(block_of(encode_records(batch, format).to_pylist()), format)
        assert rows["__WEIGHT__"].to_pylist() == [0.0, None, 2.0]


@pytest.mark.parametrize(
    ("column", "format", "problem"),
    [
        (pa.array([["click"]]), "example", "__ACTIONS__.*does not fit list<item: int32>"),
        (pa.array([[[[1]]]]), "example", "records have no such type"),
        (pa.array([{"x": 1}]), "example", "records have no such type"),
        (pa.array([[None, 1]]), "example", "null inside a list"),
        (pa.array([1.5]), "instance", "an Instance cannot hold it"),
    ],
)
def test_a_column_that_records_cannot_hold_is_named(column: pa.Array, format: str, problem: str) -> None:
    name = "__ACTIONS__" if "ACTIONS" in problem else "bad"
    with pytest.raises(UserError, match=problem):
        encode_records(pa.record_batch({name: column}), format)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        (["instance_weight"], "a reserved name"),
        (["a", "a"], "given twice"),
        (pa.schema([("a", pa.string())]), "records have no such type"),
    ],
)
def test_features_that_cannot_be_are_refused(features: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        _decode([_example(a=[1])], options=DecodeOptions(features=features))


def test_an_unknown_format_or_field_is_named() -> None:
    with pytest.raises(UserError, match="format=xml.*choose example, example_batch, instance, arrow, json"):
        _decode([], "xml")
    with pytest.raises(UserError, match="line_id=age"):
        _decode([], options=DecodeOptions(line_id=["age"]))
    with pytest.raises(UserError, match="can only be read"):
        encode_records(pa.record_batch({"a": pa.array([1])}), "json")
    with pytest.raises(UserError, match="give a schema"):
        _decode([], "json")
    assert list(FORMATS) == ["example", "example_batch", "instance", "arrow", "json"]


def test_arrow_blocks_keep_provenance_or_get_one() -> None:
    own = with_provenance(pa.record_batch({"a": pa.array([1, 2])}), 9, 50)
    bare = pa.record_batch({"b": pa.array([3, 4, 5])})
    other = pa.record_batch({"a": pa.array(["x"])})
    values = [record_batch.to_bytes(batch) for batch in (own, bare, other)]
    rows, dead = _decode([values[0], b"\xff\xff\xff\xff", values[1], values[2]], "arrow")
    assert rows.select(["a", "b", record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW]).to_pylist() == [
        {"a": 1, "b": None, "__SOURCE_OFFSET__": 50, "__SOURCE_ROW__": 0},
        {"a": 2, "b": None, "__SOURCE_OFFSET__": 51, "__SOURCE_ROW__": 0},
        {"a": None, "b": 3, "__SOURCE_OFFSET__": 102, "__SOURCE_ROW__": 0},
        {"a": None, "b": 4, "__SOURCE_OFFSET__": 102, "__SOURCE_ROW__": 1},
        {"a": None, "b": 5, "__SOURCE_OFFSET__": 102, "__SOURCE_ROW__": 2},
    ]
    assert [(letter["offset"], letter["reason"]) for letter in dead] == [(101, "malformed_arrow"), (103, "wrong_type")]
    again, _ = decode_records(block_of(encode_records(rows, "arrow").to_pylist()), "arrow")
    assert again.equals(rows)
    chosen, _ = _decode(values[:2], "arrow", DecodeOptions(features=pa.schema([("c", pa.int64()), ("b", pa.int64())])))
    assert record_batch.feature_columns(chosen.schema) == ["c", "b"]
    nothing, _ = _decode([], "arrow")
    assert nothing.num_rows == 0


def test_json_rows_have_the_columns_of_the_schema() -> None:
    schema = pa.schema([record_batch.fid_field("f"), ("t", pa.list_(pa.binary())), ("__UID__", pa.int64())])
    values = [b'{"f":[1,2],"t":["x"],"__UID__":7,"more":{}}', b'{"f":[null]}', b"[1]", b'{"f":1}', b'{"t":[]}']
    rows, dead = _decode(values, "json", DecodeOptions(features=schema))
    assert rows.drop_columns([record_batch.SOURCE_PARTITION, record_batch.SOURCE_ROW]).to_pylist() == [
        {"f": [1, 2], "t": [b"x"], "__UID__": 7, "__SOURCE_OFFSET__": 100},
        {"f": None, "t": [], "__UID__": None, "__SOURCE_OFFSET__": 104},
    ]
    assert rows.schema.field("f").metadata == record_batch.FID_METADATA
    assert [(letter["offset"], letter["reason"]) for letter in dead] == [
        (offset, "wrong_type") for offset in (101, 102, 103)
    ]


def test_json_rows_of_no_wanted_columns_say_where_they_come_from() -> None:
    rows, _ = decode_records(block_of([b'{"a": 1}', b"{}"]), "json", DecodeOptions(features=pa.schema([])))
    assert rows.column("__SOURCE_OFFSET__").to_pylist() == [100, 101]
