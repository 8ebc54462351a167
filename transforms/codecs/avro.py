"""Avro records as canonical rows and back: values of a known schema, and values that name theirs in a registry.

fastavro decodes record by record, in C; everything before and after that works on whole batches.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
from fastavro.read import SchemaResolutionError

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.codecs.avro_schema import Schema, arrow_schema, column_names, parse_schema
from millrace.transforms.codecs.tables import to_canonical
from millrace.transforms.frames.framing import with_source

MAX_VALUE_BYTES = 16 << 20
"""Longest value that is decoded, as long as the longest block of an Avro file: it bounds memory per record."""

_MAGIC = b"\0"
_HEADER_BYTES = 5

# What fastavro raises for bytes that are not a value of the schema.
DECODE_ERRORS = (EOFError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, ArithmeticError)


class AvroCodec:
    """Rows of values that were written with one schema.

    Args:
      schema: the schema with which the values were written.
      reader_schema: the schema of the rows, by the rules of schema resolution; default: the same.

    Raises: UserError for a schema that gives no rows.
    """

    def __init__(self, schema: str | Mapping[str, Any], reader_schema: str | Mapping[str, Any] | None = None) -> None:
        self._writer = parse_schema(schema)
        self._reader = self._writer if reader_schema is None else parse_schema(reader_schema, "reader_schema")
        self._rows = RecordsToRows(self._reader)

    def decode(self, block: pa.RecordBatch, skip: int = 0) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(rows, dead letters) of a raw block: `malformed_avro`, or `unknown_schema` where the schemas do not fit.

        Args:
          skip: number of bytes before the record in each value.
        """
        refusals = Refusals(block)
        records: list[Any] = []
        for row, value in enumerate(block.column("value").to_pylist()):
            try:
                records.append(self._read(value, skip))
            except SchemaResolutionError as error:
                refusals.add(np.array([row]), Reason.UNKNOWN_SCHEMA, f"the schemas do not fit: {error}"[:500])
            except DECODE_ERRORS as error:
                refusals.add(np.array([row]), Reason.MALFORMED_AVRO, f"{type(error).__name__}: {error}"[:500])
        rows = self._rows.batch(records)
        return with_source(rows, block.take(pa.array(refusals.accepted()))), refusals.to_batch()

    def _read(self, value: bytes | None, skip: int) -> Any:
        if value is None or len(value) > MAX_VALUE_BYTES:
            raise ValueError("no bytes" if value is None else f"more than {MAX_VALUE_BYTES} bytes")
        stream = io.BytesIO(value)
        stream.seek(skip)
        record: Any = fastavro.schemaless_reader(stream, self._writer, self._reader)
        if stream.tell() != len(value):
            raise ValueError(f"{len(value) - stream.tell()} bytes after the record")
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        return AvroCodec, (_plain(self._writer), _plain(self._reader))


def _plain(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if not key.startswith("__")}


class RecordsToRows:
    """Turns decoded records, dictionaries of one schema, into canonical rows without provenance."""

    def __init__(self, schema: Schema) -> None:
        self._schema, self._names = arrow_schema(schema), column_names(schema)
        self.batch([])  # raises now if a column cannot be a feature

    def batch(self, records: list[dict[str, Any]]) -> pa.RecordBatch:
        batch = pa.RecordBatch.from_pylist(records, schema=self._schema)
        return to_canonical(batch.rename_columns(self._names).replace_schema_metadata(self._schema.metadata))


def to_records(batch: pa.RecordBatch, schema: Schema) -> list[dict[str, Any]]:
    """The rows as dictionaries, keyed by the names that the columns have in `schema`."""
    return batch.rename_columns([field["name"] for field in schema["fields"]]).to_pylist()


class RegistryAvroCodec:
    """Rows of values that begin with a zero byte and the number of their schema in a registry, uint32 big endian.

    Values of any schema that resolves to the reader's give rows; others, and numbers that the registry does not know,
    become dead letters `unknown_schema` that name the number. When the registry does not answer, `decode` raises, so
    that the runner tries the bundle again.

    Args:
      lookup: gives the schema of a number; None where the registry does not know the number.
      reader_schema: the schema of the rows.
    """

    def __init__(
        self, lookup: Callable[[int], Mapping[str, Any] | None], reader_schema: str | Mapping[str, Any]
    ) -> None:
        self._lookup = lookup
        self._reader = _plain(parse_schema(reader_schema, "reader_schema"))
        self._rows = RecordsToRows(parse_schema(self._reader))
        self._codecs: dict[int, AvroCodec | str] = {}

    def decode(self, block: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(rows in the order of the block, dead letters) of a raw block."""
        ids, framed = _schema_ids(block.column("value"))
        refusals = Refusals(block)
        refusals.add(np.flatnonzero(~framed), Reason.MALFORMED_AVRO, "no schema number at the beginning")
        parts, dead = [], []
        for schema_id in np.unique(ids[framed]).tolist():
            rows = np.flatnonzero(framed & (ids == schema_id))
            codec = self._codec(schema_id)
            if isinstance(codec, str):
                refusals.add(rows, Reason.UNKNOWN_SCHEMA, f"schema {schema_id}: {codec}"[:500])
                continue
            good, bad = codec.decode(block.take(pa.array(rows)), _HEADER_BYTES)
            parts.append(good)
            dead.append(bad)
        empty = with_source(self._rows.batch([]), block.slice(0, 0))
        rows_of_all = record_batch.concat(parts, empty.schema)
        order = np.lexsort((record_batch.numpy_column(rows_of_all, record_batch.SOURCE_ROW), *_place(rows_of_all)))
        return rows_of_all.take(pa.array(order)), record_batch.concat([refusals.to_batch(), *dead])

    def _codec(self, schema_id: int) -> AvroCodec | str:
        """The codec of a schema, or what is wrong with it."""
        if schema_id not in self._codecs:
            found = self._lookup(schema_id)
            if found is None:
                return "the registry has no such schema"
            try:
                self._codecs[schema_id] = AvroCodec(found, self._reader)
            except UserError as error:
                self._codecs[schema_id] = str(error)
        return self._codecs[schema_id]


def _place(rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    return (
        record_batch.numpy_column(rows, record_batch.SOURCE_OFFSET),
        record_batch.numpy_column(rows, record_batch.SOURCE_PARTITION),
    )


def _schema_ids(values: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """(int64 schema number at the beginning of each value, bool whether there is one)."""
    heads = values.fill_null(b"").cast(pa.binary())
    _, offset_buffer, data_buffer = heads.buffers()
    if not len(heads) or data_buffer is None:
        return np.zeros(len(heads), np.int64), np.zeros(len(heads), bool)
    offsets = np.frombuffer(offset_buffer, np.int32, len(heads) + 1, 4 * heads.offset)
    data = np.frombuffer(data_buffer, np.uint8)
    framed = np.diff(offsets) >= _HEADER_BYTES
    at = np.where(framed, offsets[:-1], 0)
    framed &= data[at] == _MAGIC[0]
    ids = np.zeros(len(heads), np.int64)
    for byte in range(1, _HEADER_BYTES):
        ids = (ids << 8) | data[np.where(framed, at + byte, 0)]
    return ids, framed
