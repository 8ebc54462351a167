"""Reads one file as an iterator of batches, without Beam's pipelines: for commands and for the sources of pipelines.

A row says where it comes from: partition = number of the file, offset = its number in the file; rows that already say
so keep what they say. What cannot be read is a dead letter; a file that is of another kind gives one for its rest.
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runtime.errors import UserError
from transforms import dead_letter, record_batch
from transforms.avro_files import AvroFile
from transforms.compression import Compression, compression_of, read_chunks
from transforms.dead_letter import Reason
from transforms.frame_stream import FrameStream
from transforms.framing import LINES, Framing
from transforms.parquet_codec import check_columns, to_canonical, with_provenance

TOPIC = "files"
"""Topic of raw blocks and dead letters of files."""

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]
"""(raw block or canonical rows, dead letters)."""

_BATCH_ROWS = 8192
_NONE = record_batch.empty(pa.schema([]))
_NO_DEAD_LETTERS = record_batch.empty(dead_letter.SCHEMA)


def read_blocks(file: BinaryIO, number: int, path: str, framing: Framing, compression: Compression) -> Batches:
    """Raw blocks of framed records, TFRecords or lines; of lines, those that are not blank."""
    chunks = read_chunks(file, compression_of(path, compression))
    for block, dead in FrameStream(chunks, framing, TOPIC, number, path):
        yield _not_blank(block) if framing == LINES else block, dead


def _not_blank(block: pa.RecordBatch) -> pa.RecordBatch:
    blank = pc.match_substring_regex(block.column("value"), r"^\s*$")
    return block.filter(pc.invert(blank)) if pc.any(blank).as_py() else block


def read_parquet(file: BinaryIO, number: int, path: str, kinds: Mapping[str, str] | None = None) -> Batches:
    """Canonical rows of a Parquet file.

    Args:
      kinds: {column: one of `parquet_codec.KINDS`} where types and field metadata do not say enough.
    """
    row = 0
    try:
        opened = pq.ParquetFile(file)
        check_columns(opened.schema_arrow, None, kinds or {})
        for batch in opened.iter_batches(_BATCH_ROWS):
            yield with_provenance(to_canonical(batch, kinds), number, row), _NO_DEAD_LETTERS
            row += batch.num_rows
    except (pa.ArrowException, OSError, UserError) as error:
        yield _NONE, bury_file(number, path, row, error)


def read_avro(file: BinaryIO, number: int, path: str) -> Batches:
    """Canonical rows of an Avro container file, one of its blocks a batch."""
    try:
        blocks = AvroFile(file, None, TOPIC, number, path)
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
        for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS):
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
