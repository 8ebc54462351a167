"""Avro values and files: round trips, schema resolution, registries, damage."""

import io
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import fastavro
import pyarrow as pa
import pytest
import zstandard

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.avro import AvroCodec, RegistryAvroCodec
from millrace.transforms.codecs.avro_file import AvroFile, write_avro
from millrace.transforms.codecs.avro_schema import arrow_schema, avro_schema, parse_schema
from tests.reference.avro_values import encode_avro, registry_prefix
from tests.reference.file_batches import canonical_batch, events_block


def record(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "Row", "fields": list(fields), **more}


def field(name: str, type: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type, **more}


def values(schema: dict[str, Any], records: list[dict[str, Any]]) -> list[bytes]:
    written = []
    for each in records:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), each)
        written.append(stream.getvalue())
    return written


OLD = record(field("uid", "long"), field("f", {"type": "array", "items": "long"}))
NEW = record(
    field("__UID__", "long", aliases=["uid"]),
    field("f", ["null", {"type": "array", "items": "long"}], **{"millrace.kind": "fid_v2"}),
    field("g", ["null", "double"], default=None),
)


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_rows_that_are_encoded_decode_to_themselves(rows: int) -> None:
    batch = canonical_batch(rows)
    features = batch.drop_columns(["scalar", *batch.schema.names[-3:]])
    found, dead = AvroCodec(avro_schema(features.schema)).decode(events_block(encode_avro(features).to_pylist()))
    assert dead.num_rows == 0
    assert found.select(features.schema.names).to_pylist() == features.to_pylist()
    kept = [each for each in features.schema.names if record_batch.is_fid_field(features.schema.field(each))]
    assert record_batch.fid_columns(found.schema) == kept


def test_names_that_avro_does_not_allow_are_kept_beside() -> None:
    schema = avro_schema(canonical_batch(1).schema)
    assert {"context_hour"} <= {each["name"] for each in schema["fields"]}
    with pytest.raises(UserError, match="two columns"):
        avro_schema(pa.schema([("a.b", pa.int64()), ("a_b", pa.int64())]))


def test_a_value_is_read_by_the_readers_schema() -> None:
    block = events_block(values(OLD, [{"uid": 5, "f": [1, 2]}, {"uid": 6, "f": []}]), first_offset=40)
    rows, dead = AvroCodec(OLD, NEW).decode(block)
    assert dead.num_rows == 0
    assert record_batch.fid_columns(rows.schema) == ["f"]
    assert rows.to_pylist()[0] == {
        "__UID__": 5,
        "f": [1, 2],
        "g": None,
        "__SOURCE_PARTITION__": 3,
        "__SOURCE_OFFSET__": 40,
        "__SOURCE_ROW__": 0,
    }


def test_a_bad_value_is_one_dead_letter_and_its_neighbours_stay() -> None:
    good = values(OLD, [{"uid": 5, "f": [1, 2]}])[0]
    block = events_block([good, good[:-1], None, good + b"x", b"", good])
    rows, dead = AvroCodec(OLD).decode(block)
    assert rows.column("__SOURCE_OFFSET__").to_pylist() == [0, 5]
    assert [(row["offset"], row["reason"]) for row in dead.to_pylist()] == [
        (offset, "malformed_avro") for offset in (1, 2, 3, 4)
    ]


def test_schemas_that_do_not_fit_are_refused_by_name() -> None:
    reader = record(field("uid", "string"))
    rows, dead = AvroCodec(OLD, reader).decode(events_block(values(OLD, [{"uid": 5, "f": []}])))
    assert rows.num_rows == 0
    assert dead.column("reason").to_pylist() == ["unknown_schema"]


def test_logical_types_count_as_what_they_are_stored_as() -> None:
    schema = record(field("t", {"type": "long", "logicalType": "timestamp-millis"}))
    rows, _ = AvroCodec(schema).decode(events_block([b"\x0a"]))
    assert rows.column("t").to_pylist() == [[5]]


@pytest.mark.parametrize(
    "schema",
    [
        "no",
        "[]",
        '"long"',
        json.dumps(record()),
        json.dumps(record(field("a", "null"))),
        json.dumps(record(field("a", {"type": "array", "items": "null"}))),
        json.dumps(record(field("a", {"type": "array", "items": record(name="Empty")}))),
        json.dumps(record(field("a", ["null", "Row"]))),
        '{"type":' * 500 + '"long"' + "}" * 500,
        '{"type": "array", "items": "long"}',
    ],
)
def test_a_schema_that_is_none_or_could_stand_for_endless_work_is_refused(schema: str) -> None:
    with pytest.raises(UserError, match="schema"):
        parse_schema(schema)


@pytest.mark.parametrize(
    "type", [{"type": "map", "values": "long"}, record(field("b", "long"), name="B"), ["int", "string"]]
)
def test_a_field_that_is_no_column_is_refused_by_name(type: Any) -> None:
    with pytest.raises(UserError, match="schema=a"):
        arrow_schema(parse_schema(record(field("a", type))))


class Registry:
    """Schemas by number; counts how often it is asked."""

    def __init__(self, schemas: Mapping[int, Mapping[str, Any]]) -> None:
        self.schemas, self.asked = schemas, 0

    def lookup(self, schema_id: int) -> Mapping[str, Any] | None:
        self.asked += 1
        return self.schemas.get(schema_id)


def test_values_of_several_schemas_become_rows_of_one() -> None:
    newer = record(field("uid", "long"), field("f", {"type": "array", "items": "long"}), field("g", "double"))
    registry = Registry({1: OLD, 70000: newer})
    codec = RegistryAvroCodec(registry.lookup, NEW)
    block = events_block(
        [
            registry_prefix(70000) + values(newer, [{"uid": 1, "f": [1], "g": 0.5}])[0],
            registry_prefix(1) + values(OLD, [{"uid": 2, "f": [2]}])[0],
            registry_prefix(70000) + values(newer, [{"uid": 3, "f": [3], "g": 1.5}])[0],
        ]
    )
    rows, dead = codec.decode(block)
    assert dead.num_rows == 0
    assert rows.column("__UID__").to_pylist() == [1, 2, 3]
    assert rows.column("g").to_pylist() == [[0.5], None, [1.5]]
    codec.decode(block)
    assert registry.asked == 2


def test_a_value_without_a_known_schema_is_a_dead_letter_that_names_it() -> None:
    bad = {"type": "PROTOBUF"}
    other = record(field("uid", "string"), field("f", {"type": "array", "items": "long"}))
    codec = RegistryAvroCodec(Registry({1: OLD, 2: bad, 3: other}).lookup, NEW)
    good = registry_prefix(1) + values(OLD, [{"uid": 2, "f": [2]}])[0]
    block = events_block(
        [
            registry_prefix(9) + b"x",
            good,
            b"\x01" + good[1:],
            b"\0\0",
            None,
            registry_prefix(2) + b"x",
            registry_prefix(3) + values(other, [{"uid": "2", "f": [2]}])[0],
        ]
    )
    rows, dead = codec.decode(block.slice(0))
    assert rows.column("__SOURCE_OFFSET__").to_pylist() == [1]
    letters = {row["offset"]: (row["reason"], row["detail"]) for row in dead.to_pylist()}
    assert {offset: reason for offset, (reason, _) in letters.items()} == {
        0: "unknown_schema",
        2: "malformed_avro",
        3: "malformed_avro",
        4: "malformed_avro",
        5: "unknown_schema",
        6: "unknown_schema",
    }
    assert "schema 9" in letters[0][1] and "schema 2" in letters[5][1]


def test_a_slice_and_no_values_at_all_are_decoded() -> None:
    codec = RegistryAvroCodec(Registry({1: OLD}).lookup, NEW)
    good = registry_prefix(1) + values(OLD, [{"uid": 2, "f": [2]}])[0]
    rows, _ = codec.decode(events_block([b"x", good, b"x"]).slice(1, 1))
    assert rows.column("__UID__").to_pylist() == [2]
    rows, dead = codec.decode(events_block([]))
    assert rows.num_rows == dead.num_rows == 0 and "__UID__" in rows.schema.names


def read(data: bytes, schema: Any = None) -> tuple[list[dict], list[dict]]:
    rows, dead = [], []
    for good, bad in AvroFile(io.BytesIO(data), schema, name="file"):
        rows += good.to_pylist()
        dead += bad.to_pylist()
    return rows, dead


SYNC = b"s" * 16
HEADER = fastavro.parse_schema(
    record(
        field("magic", {"type": "fixed", "name": "Magic", "size": 4}),
        field("meta", {"type": "map", "values": "bytes"}),
        field("sync", {"type": "fixed", "name": "Sync", "size": 16}),
    )
)


def file_of_blocks(blocks: list[bytes], codec: str = "null") -> tuple[bytes, list[int]]:
    """A file with one record of OLD in each block, and where the blocks end."""
    stream, ends = io.BytesIO(), []
    meta = {"avro.schema": json.dumps(OLD).encode(), "avro.codec": codec.encode()}
    fastavro.schemaless_writer(stream, HEADER, {"magic": b"Obj\x01", "meta": meta, "sync": SYNC})
    for block in blocks:
        packed = PACK[codec](block)
        fastavro.schemaless_writer(stream, "long", 1)
        fastavro.schemaless_writer(stream, "bytes", packed)
        stream.write(SYNC)
        ends.append(stream.tell())
    return stream.getvalue(), ends


def _deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _deflate,
    "snappy": lambda data: pa.Codec("snappy").compress(data, asbytes=True) + zlib.crc32(data).to_bytes(4, "big"),
    "zstandard": zstandard.ZstdCompressor().compress,
}
BLOCKS = values(OLD, [{"uid": number, "f": [number] * 5} for number in range(4)])


@pytest.mark.parametrize("codec", list(PACK))
def test_files_of_each_codec_are_read(codec: str) -> None:
    data, _ = file_of_blocks(BLOCKS, codec)
    rows, dead = read(data, NEW)
    assert dead == []
    assert [(row["__UID__"], row["__SOURCE_OFFSET__"]) for row in rows] == [(n, n) for n in range(4)]


def test_the_same_rows_give_the_same_file() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        write_avro(file, [canonical_batch(10)])
    assert files[0].getvalue() == files[1].getvalue()


def test_a_block_that_does_not_decode_is_one_dead_letter() -> None:
    data, ends = file_of_blocks(BLOCKS)
    damaged = bytearray(data)
    damaged[ends[0] + 4] ^= 0xFF  # within the second record
    damaged[ends[0] + 3] ^= 0xFF
    rows, dead = read(bytes(damaged))
    assert [row["__SOURCE_OFFSET__"] for row in rows if row["uid"] == [3]] == [3]
    assert len(rows) + len(dead) == 4


def test_behind_a_damaged_block_reading_goes_on_at_the_next_marker() -> None:
    data, ends = file_of_blocks(BLOCKS)
    damaged = bytearray(data)
    damaged[ends[0]] = 0xFF  # the number of records
    damaged[ends[0] + 1] = 0xFF  # and the length
    rows, dead = read(bytes(damaged))
    assert [row["uid"] for row in rows] == [[0], [2], [3]]
    (letter,) = dead
    assert (letter["reason"], letter["offset"], letter["value"]) == (
        "malformed_avro",
        1,
        bytes(damaged[ends[0] : ends[1]]),
    )
    assert f"file byte {ends[0]}" in letter["detail"]


def test_a_file_that_ends_within_a_block_gives_the_others() -> None:
    data, ends = file_of_blocks(BLOCKS[:3])
    for cut in range(ends[1] + 1, ends[2]):
        rows, dead = read(data[:cut])
        assert [row["uid"] for row in rows] == [[0], [1]]
        assert [(row["reason"], row["offset"]) for row in dead] == [("truncated", 2)]


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_a_block_that_inflates_beyond_the_limit_is_refused(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.transforms.codecs.avro_file.MAX_BLOCK_BYTES", 1000)
    data, _ = file_of_blocks(values(OLD, [{"uid": 1, "f": [0] * 5000}]), codec)
    rows, dead = read(data)
    assert rows == [] and "more than 1000 bytes" in dead[0]["detail"]


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_a_block_that_does_not_decompress_is_one_dead_letter(codec: str) -> None:
    data, ends = file_of_blocks(BLOCKS, codec)
    damaged = bytearray(data)
    damaged[ends[1] - 17] ^= 0xFF
    rows, dead = read(bytes(damaged))
    assert [row["offset"] for row in dead] == [1]
    assert [row["__SOURCE_OFFSET__"] for row in rows if row["__SOURCE_OFFSET__"] != 1] == [0, 2, 3]


def test_a_file_whose_schema_does_not_fit_is_refused_block_by_block() -> None:
    data, _ = file_of_blocks(BLOCKS)
    rows, dead = read(data, record(field("uid", "string")))
    assert rows == [] and {row["reason"] for row in dead} == {"unknown_schema"}
    assert [row["offset"] for row in dead] == [0, 1, 2, 3]


@pytest.mark.parametrize("data", [b"", b"Obj", b"Obj\x01", b"hello, world", b"Obj\x01\x00" + b"s" * 16])
def test_a_file_without_a_header_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="Avro"):
        AvroFile(io.BytesIO(data))
