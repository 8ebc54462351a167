"""Avro container files, read block by block: a bad block is one dead letter, and reading goes on after it."""

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import fastavro
import pyarrow as pa
import zstandard
from fastavro.read import SchemaResolutionError

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import MAX_VALUE_BYTES, SCHEMA, Reason
from millrace.transforms.batch.provenance import ensure_provenance
from millrace.transforms.codecs.avro import DECODE_ERRORS, RecordsToRows, to_records
from millrace.transforms.codecs.avro_schema import Schema, avro_schema, parse_schema
from millrace.transforms.codecs.tables import mark_canonical
from millrace.transforms.frames.compression import snappy_length

MAX_BLOCK_BYTES = 16 << 20
"""Largest block, compressed or not; writers make far smaller ones, and it bounds what a reader holds."""

_MAX_WINDOW_BYTES = 64 << 20  # of Zstandard, as in compression.py
_SYNC_BYTES = 16
_SEARCH_BYTES = 1 << 20
_MAX_RECORDS = 1 << 24  # a block of 16 MiB has no more, since a record takes a byte or more


class AvroFile:
    """Iterates over (rows, dead letters) of a container file, block by block; a row's offset is its number in the file.

    Args:
      reader_schema: the schema of the rows, by the rules of schema resolution; default: the file's.
      topic: topic that dead letters name.
      partition: number of the file.
      name: name of the file, for dead letters.

    Raises: ValueError when the file has no Avro header, UserError when its schema gives no rows.
    """

    def __init__(
        self,
        file: BinaryIO,
        reader_schema: Mapping[str, Any] | str | None = None,
        topic: str = "files",
        partition: int = 0,
        name: str = "",
    ) -> None:
        self._file, self._topic, self._partition, self._name = file, topic, partition, name
        writer, codec, self._sync = _read_header(file)
        if codec not in _DECOMPRESS:
            raise ValueError(f"codec {codec!r} is not one of {', '.join(_DECOMPRESS)}")
        self._decompress = _DECOMPRESS[codec]
        self._writer = parse_schema(writer, "schema of the file")
        self._reader = None if reader_schema is None else parse_schema(reader_schema, "reader_schema")
        self._rows = RecordsToRows(self._reader or self._writer)
        self._header = _header_bytes(self._writer, self._sync)
        self._record = 0

    def __iter__(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        while True:
            start = self._file.tell()
            head = self._file.read(1)
            if not head:
                return
            try:
                count, size = self._varint(head), self._varint(self._file.read(1))
                if not (0 <= count <= _MAX_RECORDS and 0 <= size <= MAX_BLOCK_BYTES):
                    raise ValueError(f"a block of {count} records in {size} bytes")
                data = self._file.read(size)
                if self._file.read(_SYNC_BYTES) != self._sync:
                    raise ValueError("the block does not end where it should")
            except (ValueError, EOFError) as error:
                yield self._empty(), self._lost(start, str(error))
                continue
            yield self._block(count, data, start)

    def _varint(self, head: bytes) -> int:
        """A zigzag number; ValueError beyond 10 bytes, EOFError at the end of the file."""
        value, shift = 0, 0
        while True:
            if not head:
                raise EOFError("the file ends within a block")
            value |= (head[0] & 0x7F) << shift
            if head[0] < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
            head = self._file.read(1)

    def _block(self, count: int, data: bytes, start: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        records: list[Any] = []
        problem, reason = "", Reason.MALFORMED_AVRO
        try:
            plain = self._decompress(data)
            stream = io.BytesIO(self._header + _zigzag(count) + _zigzag(len(plain)) + plain + self._sync)
            block: Any = next(iter(fastavro.block_reader(stream, self._reader)))
            records.extend(block)  # up to the first bad one
            if block.bytes_.tell() != len(plain):
                raise ValueError(f"{len(plain) - block.bytes_.tell()} bytes after the last record")
        except (*DECODE_ERRORS, zlib.error, zstandard.ZstdError, OSError, pa.ArrowException) as error:
            problem = f"{type(error).__name__}: {error}"
        except SchemaResolutionError as error:
            problem, reason = f"the schemas do not fit: {error}", Reason.UNKNOWN_SCHEMA
        first, self._record = self._record, self._record + count
        rows = ensure_provenance(self._rows.batch(records), self._partition, first)
        if not problem and len(records) == count:
            return rows, record_batch.empty(SCHEMA)
        detail = f"{count - len(records)} of {count} records: {problem or 'missing'}"
        return rows, self._dead_letter(first + max(0, min(len(records), count - 1)), start, detail, data, reason=reason)

    def _lost(self, start: int, problem: str) -> pa.RecordBatch:
        """Moves past the next sync marker, or to the end of the file; returns the dead letter of the bytes between."""
        self._file.seek(start)
        kept, searched, tail, found = b"", 0, b"", -1
        while found < 0 and (chunk := self._file.read(_SEARCH_BYTES)):
            window = tail + chunk
            found = window.find(self._sync)
            kept = kept or chunk[:MAX_VALUE_BYTES]
            if found >= 0:
                searched += found - len(tail) + _SYNC_BYTES
            else:
                searched += len(chunk)
                tail = window[-_SYNC_BYTES + 1 :]
        self._file.seek(start + searched)
        number, self._record = self._record, self._record + 1
        reason = Reason.TRUNCATED if found < 0 else Reason.MALFORMED_AVRO
        return self._dead_letter(number, start, problem, kept[:searched], searched, reason)

    def _dead_letter(
        self, record: int, start: int, detail: str, data: bytes, size: int = 0, reason: Reason = Reason.MALFORMED_AVRO
    ) -> pa.RecordBatch:
        value, size = data[:MAX_VALUE_BYTES], size or len(data)
        row = {
            "value": value,
            "topic": self._topic,
            "partition": self._partition,
            "offset": record,
            "reason": reason.value,
            "detail": f"{self._name} byte {start}: {detail}".lstrip()[:500],
            "truncated_from": size if size > len(value) else None,
        }
        return pa.RecordBatch.from_pylist([row], schema=SCHEMA)

    def _empty(self) -> pa.RecordBatch:
        return ensure_provenance(self._rows.batch([]), self._partition, 0)


def _read_header(file: BinaryIO) -> tuple[str, str, bytes]:
    """(schema, codec, sync marker); ValueError when the file does not begin as Avro files do."""
    try:
        header: Any = fastavro.schemaless_reader(file, _HEADER_SCHEMA, None)
        if header["magic"] != b"Obj\x01":
            raise ValueError("wrong magic")
        codec = header["meta"].get("avro.codec", b"null").decode("ascii")
        return header["meta"]["avro.schema"].decode("utf-8"), codec, header["sync"]
    except DECODE_ERRORS as error:
        raise ValueError(f"not an Avro file: {error}") from error


_HEADER_SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "Sync", "size": _SYNC_BYTES}},
        ],
    }
)


def _header_bytes(schema: Schema, sync: bytes) -> bytes:
    """The header of an uncompressed file, before which fastavro reads no block."""
    stream = io.BytesIO()
    fastavro.writer(stream, schema, [], codec="null", sync_marker=sync)
    return stream.getvalue()


def _zigzag(value: int) -> bytes:
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(data, MAX_BLOCK_BYTES + 1)
    return _checked(plain)


def _unzstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(data)
    plain = reader.read(MAX_BLOCK_BYTES + 1)
    return _checked(plain)


def _checked(plain: bytes) -> bytes:
    if len(plain) > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of more than {MAX_BLOCK_BYTES} bytes")
    return plain


def _unsnap(data: bytes) -> bytes:
    length = snappy_length(data)
    if length > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of more than {MAX_BLOCK_BYTES} bytes")
    plain = pa.Codec("snappy").decompress(data[:-4], length, asbytes=True)
    if zlib.crc32(plain) != int.from_bytes(data[-4:], "big"):
        raise ValueError("the checksum of a block is wrong")
    return plain


_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _inflate,
    "snappy": _unsnap,
    "zstandard": _unzstd,
}


def write_avro(file: BinaryIO, batches: Iterable[pa.RecordBatch], name: str = "Row", codec: str = "deflate") -> None:
    """Writes the canonical batches, all of one schema, as a container file; the same batches give the same bytes."""
    schema: Schema | None = None
    for batch in batches:
        marked = mark_canonical(batch)
        if schema is None:
            schema = avro_schema(marked.schema, name)
            sync = hashlib.md5(json.dumps(schema, sort_keys=True).encode(), usedforsecurity=False).digest()
            writer = fastavro.write.Writer(file, schema, codec=codec, sync_marker=sync)
        for record in to_records(batch, schema):
            writer.write(record)
    if schema is not None:
        writer.flush()
