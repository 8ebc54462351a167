"""The C++ codecs against the Protobuf runtime, row by row: whole records, damaged ones, and round trips."""

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.instance_pb2 import Instance
from protos.record_pb2 import Example, ExampleBatch
from tests.reference import record_reference
from tests.transforms.record_messages import MESSAGES, damaged
from transforms import record_batch
from transforms.record_codec import DecodeOptions, decode_records, encode_records

_FORMATS = list(MESSAGES)
_CLASSES = {"example": Example, "example_batch": ExampleBatch, "instance": Instance}
_PROVENANCE = [record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW]


def block_of(values: list[bytes | None]) -> pa.RecordBatch:
    """A raw block; offsets begin at 100."""
    count = len(values)
    columns = [
        pa.array(values, pa.binary()),
        pa.array([3] * count, pa.int32()),
        pa.array(range(100, 100 + count), pa.int64()),
        pa.array([0] * count, pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=record_batch.raw_schema("records"))


def _plain(value: Any) -> Any:
    """`value` so that equal bits are equal: NaN, and 0.0 beside -0.0."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return value


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = batch.drop_columns(_PROVENANCE).to_pylist()
    return [{name: _plain(value) for name, value in row.items() if value is not None} for row in rows]


def _types(batch: pa.RecordBatch) -> dict[str, str]:
    types = {}
    for field in batch.schema:
        if field.name in record_reference.METADATA:
            continue
        kind = (field.metadata or {}).get(record_batch.KIND_KEY, b"").decode()
        types[field.name] = f"{field.type} {kind}".replace("item: ", "").strip()
    return types


def _assert_as_reference(values: list[bytes | None], format: str, as_is: bool) -> None:
    fids = "as_is" if as_is else "v2"
    batch, dead = decode_records(block_of(values), format, DecodeOptions(fids=fids, pruning="as_is"))
    batch.validate(full=True)
    rows, types, refused = record_reference.decode(values, format, as_is, keep_raw=True)
    assert {offset - 100 for offset in dead["offset"].to_pylist()} == set(refused), dead.to_pylist()
    assert _types(batch) == types
    assert _rows(batch) == [{name: _plain(value) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data(), as_is=st.booleans())
@settings(max_examples=40, deadline=None)
def test_records_decode_to_the_rows_of_the_protobuf_runtime(format: str, data: st.DataObject, as_is: bool) -> None:
    messages = data.draw(st.lists(MESSAGES[format], max_size=5))
    _assert_as_reference([message.SerializeToString() for message in messages], format, as_is)


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data(), as_is=st.booleans())
@settings(max_examples=60, deadline=None)
def test_damaged_records_are_taken_and_refused_as_by_the_protobuf_runtime(
    format: str, data: st.DataObject, as_is: bool
) -> None:
    whole = MESSAGES[format].map(lambda message: message.SerializeToString())
    _assert_as_reference(data.draw(st.lists(whole | damaged(format) | st.none(), max_size=4)), format, as_is)


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_batch_survives_encoding(format: str, data: st.DataObject) -> None:
    messages = data.draw(st.lists(MESSAGES[format], max_size=5))
    options = DecodeOptions(fids="as_is", pruning="as_is")
    batch, _ = decode_records(block_of([message.SerializeToString() for message in messages]), format, options)
    start = data.draw(st.integers(0, batch.num_rows))
    sliced = batch.slice(start)
    records = encode_records(sliced, format)
    again, dead = decode_records(block_of(records.to_pylist()), format, options)
    if format != "example_batch":
        assert len(records) == sliced.num_rows
    # A row without anything is a record without bytes, which nobody accepts.
    assert set(dead["reason"].to_pylist()) <= {"empty_value"}
    assert _rows(again) == [row for row in _rows(sliced) if row or format == "example_batch"]
    for record in records.to_pylist():
        _CLASSES[format].FromString(record)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_an_instance_loses_nothing_on_its_way_through_an_example(data: st.DataObject) -> None:
    values = [message.SerializeToString() for message in data.draw(st.lists(MESSAGES["instance"], max_size=4))]
    options = DecodeOptions(fids="as_is")
    batch, _ = decode_records(block_of(values), "instance", options)
    batch = batch.filter(pc.not_equal(pc.fill_null(batch["__DATA_SOURCE_KEY__"], 1), 0))  # an Example has no key 0
    examples, _ = decode_records(block_of(encode_records(batch, "example").to_pylist()), "example", options)
    direct = [value for value in encode_records(batch, "instance").to_pylist() if value]
    assert encode_records(examples, "instance").to_pylist() == direct
