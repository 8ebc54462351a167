"""The C++ codecs against the Protobuf runtime, row by row: whole records, damaged ones, and round trips."""

import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos.instance_pb2 import Instance
from millrace.protos.record_pb2 import Example, ExampleBatch
from millrace.transforms.codecs.record_codec import DecodeOptions, decode_records, encode_records
from tests.reference.record_comparison import assert_as_reference, block_of, plain_rows
from tests.transforms.codecs.record_messages import MESSAGES, damaged

_CLASSES = {"example": Example, "example_batch": ExampleBatch, "instance": Instance}
_FORMATS = list(_CLASSES)


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data(), as_is=st.booleans())
@settings(max_examples=40, deadline=None)
def test_records_decode_to_the_rows_of_the_protobuf_runtime(format: str, data: st.DataObject, as_is: bool) -> None:
    messages = data.draw(st.lists(MESSAGES[format], max_size=5))
    assert_as_reference([message.SerializeToString() for message in messages], format, as_is)


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data(), as_is=st.booleans())
@settings(max_examples=60, deadline=None)
def test_damaged_records_are_taken_and_refused_as_by_the_protobuf_runtime(
    format: str, data: st.DataObject, as_is: bool
) -> None:
    whole = MESSAGES[format].map(lambda message: message.SerializeToString())
    assert_as_reference(data.draw(st.lists(whole | damaged(format) | st.none(), max_size=4)), format, as_is)


@pytest.mark.parametrize("lists", [b"\x0a", b"\x12"], ids=["features", "raw"])
def test_a_spare_feature_of_a_shared_list_has_to_be_well_formed(lists: bytes) -> None:
    """Only the first of them counts, but Protobuf reads them all."""
    name, first, shared, two_rows = b"\x0a\x01e", b"\x12\x00", b"\x18\x01", b"\x18\x02"
    records = [
        lists + bytes([len(body)]) + body + two_rows
        for spare in (b"\x12\x00", b"\x12\x01\x06")
        for body in [name + first + spare + shared]
    ]
    assert_as_reference([*records], "example_batch", True)
    _, dead = decode_records(block_of([*records]), "example_batch", DecodeOptions(pruning="as_is"))
    assert dead.column("offset").to_pylist() == [101]


_RESERVED_FID = b"\x0a\x08" + bytes(7) + b"\x80"


@pytest.mark.parametrize("as_is", [True, False], ids=["as is", "v2"])
@pytest.mark.parametrize(
    ("bad", "is_malformed"),
    [
        (b"\x12\x0a" + _RESERVED_FID, False),
        (b"\x12\x0b" + _RESERVED_FID + b"\x06", True),
        (b"\x3a\x0c\x0a\x0a" + _RESERVED_FID, False),
        (b"\x3a\x0d\x0a\x0a" + _RESERVED_FID + b"\x06", True),
    ],
    ids=["fids", "malformed fids", "lists", "malformed lists"],
)
def test_what_follows_a_reserved_fid_that_nobody_gets_has_to_be_well_formed(
    bad: bytes, is_malformed: bool, as_is: bool
) -> None:
    """Such a fid is in a feature that another one replaces, or is spare in a shared list."""

    def field(tag: bytes, content: bytes) -> bytes:
        return tag + bytes([len(content)]) + content

    name, floats = b"\x0a\x01e", b"\x1a\x00"
    replaced = field(b"\x0a", name + field(b"\x12", bad + floats))
    shared = field(b"\x0a", name + field(b"\x12", floats) + field(b"\x12", bad) + b"\x18\x01") + b"\x18\x02"
    for record, format in ((replaced, "example"), (shared, "example_batch")):
        assert_as_reference([record], format, as_is)
        _, dead = decode_records(block_of([record]), format, DecodeOptions(fids="as_is" if as_is else "v2"))
        assert dead.num_rows == is_malformed


@pytest.mark.parametrize("format", _FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_batch_survives_encoding(format: str, data: st.DataObject) -> None:
    messages = data.draw(st.lists(MESSAGES[format], max_size=5))
    options = DecodeOptions(fids="as_is", pruning="as_is")
    batch, _ = decode_records(block_of([message.SerializeToString() for message in messages]), format, options)
    sliced = batch.slice(data.draw(st.integers(0, batch.num_rows)))
    records = encode_records(sliced, format)
    again, dead = decode_records(block_of(records.to_pylist()), format, options)
    if format != "example_batch":
        assert len(records) == sliced.num_rows
    # A row without anything is a record without bytes, which nobody accepts.
    assert set(dead["reason"].to_pylist()) <= {"empty_value"}
    assert plain_rows(again) == [row for row in plain_rows(sliced) if row or format == "example_batch"]
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
