"""Every kind of file in one table, `CONTAINERS`: how it is read, how it is written and how its name ends.

Parquet, Avro and Arrow files hold rows, which are read and written as canonical batches. Framed files, TFRecord files
and JSON lines hold records, which are read as raw blocks and written from their values.

Provenance of what is read: partition = number of the file, offset = number of the row or record in the file. Rows that
have provenance already keep it. What cannot be read becomes a dead letter; a file that turns out to be of another kind
gives one dead letter for the rest of it.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.batch.provenance import ensure_provenance
from millrace.transforms.codecs.avro_file import AvroFile, write_avro
from millrace.transforms.codecs.tables import check_columns, mark_canonical, to_canonical
from millrace.transforms.frames.compression import Compression, compression_of, read_chunks, write_chunks
from millrace.transforms.frames.framing import FILE_FRAMES, LINES, MAX_RECORD_BYTES, TF_RECORDS, Framing, join_frames
from millrace.transforms.frames.stream import BLOCK_BYTES, FrameStream

DEAD_LETTER = "dead_letter"
"""The format of refused records and the reasons why: columns of Parquet in files, headers in `feed.dead-letter`."""

TOPIC = "files"
"""Name that stands for the topic in raw blocks and dead letters of files."""

Batches = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]
"""(raw block or canonical rows, dead letters)."""

ReadFile = Callable[[BinaryIO, int, str], Batches]
"""Reads one file, given its number and its path."""

BATCH_ROWS = 8192
"""Rows of one batch that is read, and records that are framed at once: a few MB, so that memory stays bounded."""

# Rows per row group of Parquet and per batch of an Arrow file: enough to compress well, few enough that several
# workers can share the row groups of one file.
_ROW_GROUP = 1 << 16
_NO_ROWS = record_batch.empty(pa.schema([]))
_NO_DEAD_LETTERS = record_batch.empty(dead_letter.SCHEMA)


class ParquetSettings(NamedTuple):
    """What of a Parquet file is read.

    Attributes:
      columns: in this order; default: all.
      features: in place of `columns`: the features that are read, as far as the file has them. Columns of row metadata
        are always read.
      kinds: {column: one of `tables.KINDS`} where types and field metadata do not say enough.
      batch_rows: largest number of rows per batch.
    """

    columns: Sequence[str] | None = None
    kinds: Mapping[str, str] = {}
    batch_rows: int = BATCH_ROWS
    features: Collection[str] | None = None

    def columns_of(self, schema: pa.Schema) -> list[str]:
        """The columns of a file that are read. UserError for one that is missing or that cannot be a feature."""
        columns = self.columns
        if self.features is not None and columns is None:
            wanted = set(self.features)
            columns = [name for name in schema.names if name in wanted or record_batch.is_metadata_name(name)]
            columns = columns or schema.names[:1]  # rows without any column have no number
        return check_columns(schema, columns, self.kinds)


_ALL_COLUMNS = ParquetSettings()


def read_parquet(
    file: BinaryIO,
    number: int,
    path: str,
    settings: ParquetSettings = _ALL_COLUMNS,
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
        columns = settings.columns_of(opened.schema_arrow)
        for batch in opened.iter_batches(settings.batch_rows, row_groups=row_groups, columns=columns):
            yield ensure_provenance(to_canonical(batch.select(columns), settings.kinds), number, row), _NO_DEAD_LETTERS
            row += batch.num_rows
    except (pa.ArrowException, OSError, UserError) as error:
        yield _NO_ROWS, bury_file(number, path, row, error)


def write_parquet(file: BinaryIO, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes canonical batches, at least one, all of one schema; a mark in the file says that they are canonical."""
    write_plain_parquet(file, map(mark_canonical, batches))


def write_plain_parquet(file: BinaryIO, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes batches that are not canonical rows, such as dead letters: at least one, all of one schema."""
    groups = _row_groups(batches)
    first = next(groups)
    with parquet_writer(file, first.schema) as writer:
        writer.write_table(first, row_group_size=_ROW_GROUP)
        for group in groups:
            writer.write_table(group, row_group_size=_ROW_GROUP)


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer for batches that come one by one. Zstandard makes smaller files than Parquet's default, Snappy."""
    return pq.ParquetWriter(file, schema, compression="zstd")


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches as tables of whole row groups, without copies; the last has what is left, and may have no rows."""
    held: list[pa.RecordBatch] = []
    rows = given = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _ROW_GROUP:
            table = pa.Table.from_batches(held)
            whole = rows - rows % _ROW_GROUP
            yield table.slice(0, whole)
            given, rows, held = given + whole, rows - whole, table.slice(whole).to_batches()
    if rows or not given:
        yield pa.Table.from_batches(held)


def read_avro(file: BinaryIO, number: int, path: str, reader_schema: str | Mapping[str, Any] | None = None) -> Batches:
    """Canonical rows of an Avro container file, one batch per block of the file.

    Args:
      reader_schema: what the rows shall have, by Avro's rules of schema resolution; default: the file's own schema.
    """
    try:
        blocks = AvroFile(file, reader_schema, TOPIC, number, path)
    except (ValueError, UserError) as error:
        yield _NO_ROWS, bury_file(number, path, 0, error)
        return
    yield from blocks


def read_arrow(file: BinaryIO, number: int, path: str) -> Batches:
    """Canonical rows of an Arrow IPC file or stream."""
    row = 0
    try:
        for batch in _arrow_batches(file):
            yield ensure_provenance(to_canonical(batch), number, row), _NO_DEAD_LETTERS
            row += batch.num_rows
    except (pa.ArrowException, OSError, UserError) as error:
        yield _NO_ROWS, bury_file(number, path, row, error)


def _arrow_batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
        return
    yield from pa.ipc.open_stream(file)


def write_arrow(file: BinaryIO, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes canonical batches, at least one, all of one schema, as an Arrow IPC file that says they are canonical."""
    marked = map(mark_canonical, batches)
    first = next(marked)
    with pa.ipc.new_file(file, first.schema) as writer:
        writer.write_table(pa.Table.from_batches([first]), max_chunksize=_ROW_GROUP)
        for batch in marked:
            writer.write_table(pa.Table.from_batches([batch]), max_chunksize=_ROW_GROUP)


def read_dead_letters(file: BinaryIO, number: int, path: str) -> Batches:
    """The dead letters of a Parquet file that `feed` or `records convert` wrote. Raises UserError for other files."""
    try:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
            yield _NO_ROWS, batch.select(dead_letter.SCHEMA.names).cast(dead_letter.SCHEMA)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError("SOURCE", path, f"holds no dead letters ({error})", "give what --dead-letters wrote") from error


class StreamSettings(NamedTuple):
    """How a file of records is cut into blocks.

    Attributes:
      compression: default: by the end of its path.
      topic: of the raw blocks.
      block_bytes: approximate size of a block.
      max_record_bytes: longer records become dead letters.
    """

    compression: Compression = Compression.UNKNOWN
    topic: str = TOPIC
    block_bytes: int = BLOCK_BYTES
    max_record_bytes: int = MAX_RECORD_BYTES


_BY_NAME = StreamSettings()


def read_records(
    file: BinaryIO,
    number: int,
    path: str,
    framing: Framing = FILE_FRAMES,
    settings: StreamSettings = _BY_NAME,
) -> Batches:
    """Raw blocks of the records of a file; blank lines are no records, but count in the offsets."""
    stream = FrameStream(
        read_chunks(file, compression_of(path, settings.compression)),
        framing,
        settings.topic,
        number,
        path,
        block_bytes=settings.block_bytes,
        max_record_bytes=settings.max_record_bytes,
    )
    for block, dead in stream:
        yield _not_blank(block) if framing == LINES else block, dead


def _not_blank(block: pa.RecordBatch) -> pa.RecordBatch:
    blank = pc.match_substring_regex(block.column("value"), r"^\s*$")
    return block.filter(pc.invert(blank)) if pc.any(blank).as_py() else block


def write_records(
    file: BinaryIO,
    values: Iterable[pa.BinaryArray],
    framing: Framing = FILE_FRAMES,
    compression: Compression = Compression.NO,
    data_source: str = "",
) -> None:
    """Writes the values of records, each in a frame.

    Args:
      data_source: name whose key a LagrangeX header carries.
    """
    pieces = (array.slice(start, BATCH_ROWS) for array in values for start in range(0, len(array), BATCH_ROWS))
    write_chunks(file, (join_frames(piece, framing, data_source) for piece in pieces), compression)


class Container(NamedTuple):
    """One kind of file.

    Attributes:
      suffix: end of the names of its files, before that of a compression.
      read: (file, number, path) to batches; further arguments of the functions above are bound by the caller.
      write: (file, canonical batches), or (file, values of records).
      framing: how the records are framed; None: the file holds rows.
      format: of files whose names end in the suffix; None: the suffix tells no format.
    """

    suffix: str
    read: ReadFile
    write: Callable[..., None]
    framing: Framing | None = None
    format: str | None = None


def _of_records(suffix: str, framing: Framing, format: str | None) -> Container:
    read = functools.partial(read_records, framing=framing)
    return Container(suffix, read, functools.partial(write_records, framing=framing), framing, format)


CONTAINERS: Mapping[str, Container] = {
    "parquet": Container(".parquet", read_parquet, write_parquet, format="parquet"),
    "avro": Container(".avro", read_avro, write_avro, format="avro"),
    "arrow": Container(".arrow", read_arrow, write_arrow, format="arrow"),
    DEAD_LETTER: Container(".parquet", read_dead_letters, write_plain_parquet),
    "framed": _of_records(".bin", FILE_FRAMES, None),
    "tfrecord": _of_records(".tfrecord", TF_RECORDS, "tf_example"),
    "lines": _of_records(".jsonl", LINES, "json"),
}
"""{name: container}."""


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
