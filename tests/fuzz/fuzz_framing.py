"""Damages streams of records: no reader crashes or hangs, the good records survive, what is lost has a dead letter.

    python -m tests.fuzz.fuzz_framing --runs 1000000 --seed 1

A run depends on the sum of seed and its number alone.
"""

import io
import random
from collections.abc import Callable, Iterator

import fastavro
import pyarrow as pa

from millrace.transforms.codecs.avro import AvroCodec
from millrace.transforms.codecs.avro_file import AvroFile
from millrace.transforms.frames.compression import Compression, read_chunks, write_chunks
from millrace.transforms.frames.framing import (
    FILE_FRAMES,
    KAFKA_FRAMES,
    LINES,
    TF_RECORDS,
    Framing,
    deframe,
    join_frames,
)
from millrace.transforms.frames.stream import FrameStream
from tests.fuzz import runs
from tests.reference.file_batches import events_block

_MAX_RECORD = 200
_SCHEMA = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "uid", "type": "long"},
        {"name": "f", "type": ["null", {"type": "array", "items": "double"}]},
        {"name": "name", "type": "string"},
    ],
}
_PARSED = fastavro.parse_schema(_SCHEMA)
_SYNC = b"0123456789abcdef"

Outcome = tuple[list[bytes], int]
"""(records in their order, dead letters)."""


def _damage(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    at, length = draw.randrange(len(data)), draw.randrange(1, 16)
    kind = draw.randrange(6)
    if kind == 0:
        flipped = bytearray(data)
        flipped[at] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + draw.randbytes(length) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        word = draw.choice([0, 1, 0xFEFEFEFE, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).to_bytes(8, "little")
        return data[:at] + word + data[at + 8 :]
    return data[:at] + data[draw.randrange(len(data)) :]


def _read_stream(data: bytes, options: Framing, compression: Compression, draw: random.Random) -> Outcome:
    chunks: Iterator[bytes] = read_chunks(io.BytesIO(data), compression)
    blocks = FrameStream(chunks, options, "fuzz", block_bytes=draw.randrange(1, 500), max_record_bytes=_MAX_RECORD)
    values, dead, offsets = [], 0, []
    for block, letters in blocks:
        values += block.column("value").to_pylist()
        offsets += block.column("offset").to_pylist()
        dead += letters.num_rows
    assert offsets == sorted(set(offsets)), "two records have one number"
    return values, dead


def _values(draw: random.Random, options: Framing) -> list[bytes]:
    values = [draw.randbytes(draw.randrange(30)) for _ in range(draw.randrange(1, 12))]
    return [value.replace(b"\n", b"") for value in values] if options == LINES else values


def _fuzz_stream(options: Framing, compression: Compression) -> Callable[[random.Random], bool]:
    def run(draw: random.Random) -> bool:
        values = _values(draw, options)
        framed = join_frames(pa.array(values, pa.binary()), options)
        file = io.BytesIO()
        write_chunks(file, iter([framed]), compression)
        whole = file.getvalue()
        assert _read_stream(whole, options, compression, draw) == (values, 0), "what was written is not read"
        damaged = _damage(whole, draw)
        found, dead = _read_stream(damaged, options, compression, draw)
        _check_survivors(values, found, dead, options, compression, whole, damaged)
        return dead > 0

    return run


def _check_survivors(
    values: list[bytes],
    found: list[bytes],
    dead: int,
    options: Framing,
    compression: Compression,
    whole: bytes,
    damaged: bytes,
) -> None:
    """Every record that ends before the first damaged byte is there; so are those behind it where the format allows."""
    if compression != Compression.NO:
        return
    same = next((at for at, (a, b) in enumerate(zip(whole, damaged, strict=False)) if a != b), len(damaged))
    before, ends = 0, 0
    for value in values:
        ends += len(join_frames(pa.array([value], pa.binary()), options))
        before += ends <= same
    assert found[:before] == values[:before], "a record before the damage is lost"
    if options == TF_RECORDS:
        strange = [value for value in found if value not in values]
        # One damage makes one at most.
        assert len(strange) <= 1, "records that nobody wrote"
        assert all(is_size_behind_cut(value, values, damaged) for value in strange), "a record that nobody wrote"
    # A damaged size of a sort id may swallow records, and nothing in the format tells.
    tells = options in (KAFKA_FRAMES, TF_RECORDS)
    if tells and sum(map(len, found)) < sum(map(len, values)) and len(damaged) == len(whole):
        assert dead, "records are lost without a dead letter"


def is_size_behind_cut(record: bytes, values: list[bytes], damaged: bytes) -> bool:
    """Whether the damage made a TFRecord of the size of one: the header of eight bytes lies right before its header.

    A size has a checksum like that of a value, so no reader can tell.
    """
    sizes = {len(value).to_bytes(8, "little") for value in values}
    return record in sizes and join_frames(pa.array([record], pa.binary()), TF_RECORDS).to_pybytes() in damaged


def _fuzz_values(draw: random.Random) -> bool:
    good = [
        join_frames(pa.array(_values(draw, KAFKA_FRAMES), pa.binary()), KAFKA_FRAMES).to_pybytes() for _ in range(3)
    ]
    rows, _ = deframe(events_block([*good]), KAFKA_FRAMES, _MAX_RECORD)
    damaged = _damage(good[1], draw)
    found, dead = deframe(events_block([good[0], damaged, good[2]]), KAFKA_FRAMES, _MAX_RECORD)
    for offset in (0, 2):
        assert _of(found, offset) == _of(rows, offset), "a value beside the damaged one is lost"
    assert all(letter["offset"] == 1 for letter in dead.to_pylist())
    return dead.num_rows > 0


def _of(rows: pa.RecordBatch, offset: int) -> list[bytes]:
    return [row["value"] for row in rows.to_pylist() if row["offset"] == offset]


def _records(draw: random.Random) -> list[dict[str, object]]:
    return [
        {
            "uid": draw.randrange(-(2**63), 2**63),
            "f": draw.choice([None, [draw.random() for _ in range(draw.randrange(4))]]),
            "name": "x" * draw.randrange(10),
        }
        for _ in range(draw.randrange(1, 6))
    ]


def _avro_value(record: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, _PARSED, record)
    return stream.getvalue()


_CODEC = AvroCodec(_SCHEMA)


def _fuzz_avro_values(draw: random.Random) -> bool:
    good = [_avro_value(record) for record in _records(draw)]
    at = draw.randrange(len(good))
    values = [*good]
    values[at] = _damage(good[at], draw)
    rows, dead = _CODEC.decode(events_block([*values]))
    assert rows.num_rows + dead.num_rows == len(values), "a value is neither a row nor a dead letter"
    offsets = rows.column("__SOURCE_OFFSET__").to_pylist()
    assert set(range(len(values))) - {at} <= set(offsets), "a value beside the damaged one is lost"
    return dead.num_rows > 0


def _fuzz_avro_file(draw: random.Random) -> bool:
    stream = io.BytesIO()
    codec = draw.choice(["null", "deflate"])
    writer = fastavro.write.Writer(stream, _PARSED, codec=codec, sync_marker=_SYNC)
    records = _records(draw)
    for record in records:
        writer.write(record)
        if draw.random() < 0.5:
            writer.flush()
    writer.flush()
    whole = stream.getvalue()
    start = whole.index(_SYNC) + len(_SYNC)
    data = whole[:start] + _damage(whole[start:], draw)
    rows = dead = 0
    for good, bad in AvroFile(io.BytesIO(data)):
        rows += good.num_rows
        dead += bad.num_rows
    if len(data) == len(whole):
        assert dead or rows >= len(records), "records are lost without a dead letter"
    return dead > 0


_TARGETS: list[Callable[[random.Random], bool]] = [
    *(_fuzz_stream(options, Compression.NO) for options in (FILE_FRAMES, KAFKA_FRAMES, TF_RECORDS, LINES)),
    *(_fuzz_stream(TF_RECORDS, kind) for kind in (Compression.SNAPPY, Compression.ZSTD, Compression.GZIP)),
    _fuzz_values,
    _fuzz_avro_values,
    _fuzz_avro_file,
]


def fuzz(count: int, seed: int) -> int:
    """Returns how many of the damaged streams had dead letters."""
    return runs.count(lambda number: _TARGETS[number % len(_TARGETS)](random.Random(number)), count, seed)


if __name__ == "__main__":
    runs.main(__doc__.splitlines()[0], fuzz, "had dead letters", others="went through")
