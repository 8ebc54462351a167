"""Rows as JSON: what a JSON parser reads is what the columns hold."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.json_writer import json_lines

_FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
_TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "float": (pa.float32(), _FLOATS),
    "flag": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text()),
    "list": (pa.list_(pa.float64()), st.lists(st.floats(allow_nan=False, allow_infinity=False))),
    "lists": (pa.list_(pa.list_(pa.binary())), st.lists(st.lists(st.text().map(str.encode)))),
    "struct": (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        st.fixed_dictionaries({"a": st.none() | st.integers(0, 9), "b": st.none() | st.lists(st.text())}),
    ),
}
_ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in _TYPES.items()}), max_size=5)
_SCHEMA = pa.schema([(name, type) for name, (type, _) in _TYPES.items()])


def _plain(value: Any) -> Any:
    """What JSON has of a row: no nulls in objects, text for bytes."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


@given(_ROWS, st.integers(0, 2))
def test_a_parser_reads_the_rows_back(rows: list[dict[str, Any]], first: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=_SCHEMA).slice(min(first, len(rows)))
    lines = json_lines(batch).to_pylist()
    read = [json.loads(line) for line in lines]
    assert not any("\n" in line for line in lines)
    assert [{**row, "float": None} for row in read] == [{**_plain(row), "float": None} for row in batch.to_pylist()]
    floats = [np.float32(row["float"]) if "float" in row else None for row in read]
    assert floats == batch.column("float").to_pylist()


def test_floats_stay_floats_and_what_json_does_not_have_is_text() -> None:
    batch = pa.record_batch({"x": pa.array([1.0, 0.1, -1e30, math.nan, math.inf], pa.float32())})
    assert json_lines(batch).to_pylist() == ['{"x":1.0}', '{"x":0.1}', '{"x":-1e+30}', '{"x":"nan"}', '{"x":"inf"}']


def test_bytes_that_are_no_text_are_base64() -> None:
    batch = pa.record_batch({"x": pa.array([[b"\xff", b"a\n"]], pa.list_(pa.binary()))})
    assert json_lines(batch).to_pylist() == ['{"x":[{"base64":"/w=="},"a\\n"]}']


def test_fids_are_numbers_or_slot_and_signature() -> None:
    v1 = pa.field("old", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA)
    schema = pa.schema([record_batch.fid_field("new"), v1, ("other", pa.list_(pa.int64()))])
    batch = pa.RecordBatch.from_pylist([{"new": [(2 << 48) | 17], "old": [-(1 << 54) | 5], "other": [-1]}], schema)
    (signed,), (unsigned,), (slots,) = (json_lines(batch, each).to_pylist() for each in ("int64", "unsigned", "slots"))
    assert json.loads(signed) == {"new": [(2 << 48) | 17], "old": [-(1 << 54) | 5], "other": [-1]}
    assert json.loads(unsigned) == {"new": [(2 << 48) | 17], "old": [(1023 << 54) | 5], "other": [-1]}
    assert json.loads(slots) == {"new": ["2/17"], "old": ["v1:1023/5"], "other": [-1]}


def test_a_row_of_nulls_is_an_empty_object_and_so_is_one_without_columns() -> None:
    nulls = pa.record_batch({"x": pa.nulls(2), "y": pa.array([None, 1])})
    assert json_lines(nulls).to_pylist() == ["{}", '{"y":1}']
    assert json_lines(pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))).to_pylist() == ["{}", "{}"]
