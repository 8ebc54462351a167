"""Reads one file as an iterator of batches, without Beam's pipelines: for commands and for the sources of pipelines.

A row says where it comes from: partition = number of the file, offset = its number in the file; rows that already say
so keep what they say. What cannot be read is a dead letter; a file that is of another kind gives one for its rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.codecs.avro_file import AvroFile
from millrace.transforms.codecs.tables import check_columns, to_canonical, with_provenance
from millrace.transforms.frames.compression import Compression, compression_of, read_chunks
from millrace.transforms.frames.framing import LINES, MAX_RECORD_BYTES, Framing
from millrace.transforms.frames.stream import BLOCK_BYTES, FrameStream

TOPIC = "files"
"""Topic of raw blocks and dead letters of files."""

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]
"""(raw block or canonical rows, dead letters)."""

BATCH_ROWS = 8192
_NONE = record_batch.empty(pa.schema([]))
_NO_DEAD_LETTERS = record_batch.empty(dead_letter.SCHEMA)


def open_file(path: str) -> BinaryIO:
    """The bytes of a file as they are stored; of `.bz2`, decompressed."""
    kind = CompressionTypes.AUTO if path.endswith(".bz2") else CompressionTypes.UNCOMPRESSED
    return FileSystems.open(path, compression_type=kind)


class StreamSettings(NamedTuple):
    """How a file is cut into records.

    Attributes:
      compression: default: by the end of its path.
      topic: of the raw blocks.
      block_bytes: size of a block, about.
      max_record_bytes: longer records become dead letters.
    """

    framing: Framing
    compression: Compression = Compression.UNKNOWN
    topic: str = TOPIC
    block_bytes: int = BLOCK_BYTES
    max_record_bytes: int = MAX_RECORD_BYTES


def read_blocks(file: BinaryIO, number: int, path: str, settings: StreamSettings) -> Batches:
    """Raw blocks of framed records, TFRecords or lines; of lines, those that are not blank."""
    stream = FrameStream(
        read_chunks(file, compression_of(path, settings.compression)),
        settings.framing,
        settings.topic,
        number,
        path,
        block_bytes=settings.block_bytes,
        max_record_bytes=settings.max_record_bytes,
    )
    for block, dead in stream:
        yield _not_blank(block) if settings.framing == LINES else block, dead


def _not_blank(block: pa.RecordBatch) -> pa.RecordBatch:
    blank = pc.match_substring_regex(block.column("value"), r"^\s*$")
    return block.filter(pc.invert(blank)) if pc.any(blank).as_py() else block


class ParquetSettings(NamedTuple):
    """What of a Parquet file is read.

    Attributes:
      columns: in this order; default: all.
      kinds: {column: one of `parquet_codec.KINDS`} where types and field metadata do not say enough.
      batch_rows: rows a batch at most.
    """

    columns: Sequence[str] | None = None
    kinds: Mapping[str, str] = {}
    batch_rows: int = BATCH_ROWS


def read_parquet(
    file: BinaryIO,
    number: int,
    path: str,
    settings: ParquetSettings,
    row_groups: Sequence[int] | None = None,
    row: int = 0,
) -> Batches:
    """Canonical rows of a Parquet file.

    Args:
      row_groups: to read; default: all.
      row: number of the first row of these.
    """
    try:
        opened = pq.ParquetFile(file)
        columns = check_columns(opened.schema_arrow, settings.columns, settings.kinds)
        for batch in opened.iter_batches(settings.batch_rows, row_groups=row_groups, columns=columns):
            yield with_provenance(to_canonical(batch.select(columns), settings.kinds), number, row), _NO_DEAD_LETTERS
            row += batch.num_rows
    except (pa.ArrowException, OSError, UserError) as error:
        yield _NONE, bury_file(number, path, row, error)


def read_avro(file: BinaryIO, number: int, path: str, reader_schema: str | Mapping[str, Any] | None = None) -> Batches:
    """Canonical rows of an Avro container file, one of its blocks a batch.

    Args:
      reader_schema: what the rows shall have, by the rules of schema resolution; default: the file's own.
    """
    try:
        blocks = AvroFile(file, reader_schema, TOPIC, number, path)
    except (ValueError, UserError) as error:
        yield _NONE, bury_file(number, path, 0, error)
        return
    yield from blocks


def read_arrow(file: BinaryIO, number: int, path: str) -> Batches:
    """Canonical rows of an Arrow IPC file or stream."""
    row = 0
    try:
        for batch in _arrow_batches(file):
            yield with_provenance(to_canonical(batch), number, row), _NO_DEAD_LETTERS
            row += batch.num_rows
    except (pa.ArrowException, OSError, UserError) as error:
        yield _NONE, bury_file(number, path, row, error)


def _arrow_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
        return
    yield from pa.ipc.open_stream(file)


def read_dead_letters(file: BinaryIO, number: int, path: str) -> Batches:
    """The dead letters that a Parquet file holds, as `feed` and `records convert` write them."""
    row = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
            yield _NONE, batch.select(dead_letter.SCHEMA.names).cast(dead_letter.SCHEMA)
            row += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError("SOURCE", path, f"holds no dead letters ({error})", "give what --dead-letters wrote") from error


def bury_file(number: int, path: str, offset: int, error: Exception) -> pa.RecordBatch:
    """One dead letter for the rest of a file that is not what it should be."""
    row = {
        "value": b"",
        "topic": TOPIC,
        "partition": number,
        "offset": offset,
        "reason": Reason.MALFORMED_FRAME.value,
        "detail": f"{path}: {error}"[:500],
        "truncated_from": None,
    }
    return pa.RecordBatch.from_pylist([row], schema=dead_letter.SCHEMA)
