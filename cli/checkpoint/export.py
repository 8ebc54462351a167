"""Entries of table files as Parquet, CSV, JSON lines, or Monolith's EntryDump records.

Columns: `fid` int64, `slot` int16, `timestamp` int64 (Unix seconds), `segment_<i>` with the weights of segment i and,
if asked for, `state_<i>` with its optimizer state. Parquet and JSON hold lists of float32; CSV has one column per
float, `segment_<i>_<k>`. EntryDump records are a TFRecord file, named as Monolith names the only file of a table.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from millrace.ops.embedding_table import Entries
from millrace.ops.entry_dump import NoDumpError, to_entry_dumps
from millrace.ops.table_files import Page, TableFile, TableFileError, pages
from millrace.transforms.batch.fid import slot_v2
from millrace.transforms.frames.framing import TF_RECORDS, join_frames


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What of an entry is written, and how.

    Attributes:
      format: "parquet", "csv", "json" or "entry-dump".
      with_state: optimizer state too; entry-dump always has it.
      limit: most entries per table; None: all.
    """

    format: str
    with_state: bool = False
    limit: int | None = None


class Writer(Protocol):
    """Writes pages of one table's entries."""

    def write(self, page: Page) -> None: ...

    def close(self) -> None: ...


class ColumnWriter:
    """Columns by a writer of pyarrow's, or by `JsonLines`."""

    def __init__(self, output: IO[Any], file: TableFile, options: ExportOptions) -> None:
        self._file, self._options = file, options
        empty = Page(
            np.empty(0, np.int64), np.empty((0, file.dim + file.state_floats), np.float32), np.empty(0, int), 0
        )
        schema = _batch(empty, file, options).schema
        if options.format == "json":
            self._writer: Any = JsonLines(output, file.table)
        else:
            make = pa_csv.CSVWriter if options.format == "csv" else pq.ParquetWriter
            self._writer = make(output, schema)

    def write(self, page: Page) -> None:
        self._writer.write_batch(_batch(page, self._file, self._options))

    def close(self) -> None:
        self._writer.close()


class JsonLines:
    """One JSON object per entry, floats as short as float32 allows."""

    def __init__(self, output: IO[str], table: str) -> None:
        self._output = output
        self._table = table

    def write_batch(self, batch: pa.RecordBatch) -> None:
        names = ("table", *batch.schema.names)
        for row in zip(*(_plain(column) for column in batch.columns), strict=True):
            self._output.write(json.dumps(dict(zip(names, (self._table, *row), strict=True))) + "\n")

    def close(self) -> None:
        self._output.flush()


class EntryDumpWriter:
    """EntryDump records in a TFRecord file, made one by one in Python: an edge to other systems, not a data path."""

    def __init__(self, output: IO[bytes], file: TableFile) -> None:
        self._output, self._file = output, file

    def write(self, page: Page) -> None:
        records = to_entry_dumps(self._file, Entries(page.ids, page.values, page.timestamps))
        self._output.write(join_frames(pa.array(records, pa.binary()), TF_RECORDS))

    def close(self) -> None:
        self._output.flush()


def file_name(table: str, file_format: str) -> str:
    """Name of the file of `table` in the output folder."""
    return f"{table}-00000-of-00001" if file_format == "entry-dump" else f"{table}.{file_format}"


def export_table(
    files: Sequence[TableFile], output: IO[Any], options: ExportOptions, progress: Callable[[int], None]
) -> int:
    """Writes the entries of one table's `files` to `output`, a text file for JSON; returns how many.

    Args:
      progress: called with how many bytes of the files were read since its last call.

    Raises:
      TableFileError: a file is damaged, the files differ in their segments, or the format has no place for an
        optimizer; `output` then ends somewhere.
    """
    if len({(file.form, file.segments) for file in files}) > 1:
        raise TableFileError(f"the files of table '{files[0].table}' differ in form or segments")
    count = 0
    with closing(_make_writer(output, files[0], options)) as writer:
        try:
            for page in _pages(files, options.limit, progress):
                writer.write(page)
                count += len(page.ids)
        except NoDumpError as error:
            raise TableFileError(str(error)) from error
    return count


@contextmanager
def new_file(path: Path, text: bool) -> Iterator[IO[Any]]:
    """A file to write that appears at `path` whole or, after an error, not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w" if text else "wb") as output:
            yield output
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_writer(output: IO[Any], file: TableFile, options: ExportOptions) -> Writer:
    return EntryDumpWriter(output, file) if options.format == "entry-dump" else ColumnWriter(output, file, options)


def _pages(files: Sequence[TableFile], limit: int | None, progress: Callable[[int], None]) -> Iterator[Page]:
    """Pages of all files, `limit` entries at most."""
    left = limit
    for file in files:
        end = 0
        for page in pages(file.path):
            kept = Page(page.ids[:left], page.values[:left], page.timestamps[:left], page.end)
            yield kept
            progress(page.end - end)
            end = page.end
            left = None if left is None else left - len(kept.ids)
            if left == 0:
                return


def _batch(page: Page, file: TableFile, options: ExportOptions) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        "fid": pa.array(page.ids),
        "slot": pa.array(slot_v2(page.ids).astype(np.int16)),
        "timestamp": pa.array(page.timestamps),
    }
    parts = [(f"segment_{i}", segment.dim) for i, segment in enumerate(file.segments)]
    parts += [(f"state_{i}", segment.state_floats) for i, segment in enumerate(file.segments)]
    first = 0
    for name, width in parts:
        values = page.values[:, first : first + width]
        first += width
        if width and (options.with_state or first <= file.dim):
            columns |= _columns(name, values, flat=options.format == "csv")
    return pa.RecordBatch.from_pydict(columns)


def _columns(name: str, values: np.ndarray, flat: bool) -> dict[str, pa.Array]:
    if flat:
        return {f"{name}_{k}": pa.array(values[:, k]) for k in range(values.shape[1])}
    return {name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])}


def _plain(column: pa.Array) -> list[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_pylist()
    values = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return [[float(str(value)) for value in row] for row in values]
