"""Entries of table files as Parquet, CSV or JSON lines.

Columns: `fid` int64, `slot` int16, `timestamp` int64 (Unix seconds), `segment_<i>` with the weights of segment i and,
if asked for, `state_<i>` with its optimizer state. Parquet and JSON hold lists of float32; CSV has a column a float,
`segment_<i>_<k>`.
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

from millrace.ops.table_files import Page, TableFile, TableFileError, pages
from millrace.transforms.batch.fid import slot_v2


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What of an entry is written, and how.

    Attributes:
      format: "parquet", "csv" or "json".
      with_state: optimizer state too.
      limit: entries a table at most; None: all.
    """

    format: str
    with_state: bool = False
    limit: int | None = None


class Writer(Protocol):
    """What pyarrow's writers share."""

    def write_batch(self, batch: pa.RecordBatch) -> Any: ...

    def close(self) -> Any: ...


class JsonLines:
    """One JSON object an entry, floats as short as float32 allows."""

    def __init__(self, output: IO[str], table: str) -> None:
        self._output = output
        self._table = table

    def write_batch(self, batch: pa.RecordBatch) -> None:
        names = ("table", *batch.schema.names)
        for row in zip(*(_plain(column) for column in batch.columns), strict=True):
            self._output.write(json.dumps(dict(zip(names, (self._table, *row), strict=True))) + "\n")

    def close(self) -> None:
        self._output.flush()


def export_table(
    files: Sequence[TableFile], output: IO[Any], options: ExportOptions, progress: Callable[[int], None]
) -> int:
    """Writes the entries of one table's `files` to `output`, a text file for JSON; returns how many.

    Args:
      progress: called with how many bytes of the files were read since its last call.

    Raises:
      TableFileError: a file is damaged, or the files differ in their segments; `output` then ends somewhere.
    """
    if len({(file.form, file.segments) for file in files}) > 1:
        raise TableFileError(f"the files of table '{files[0].table}' differ in form or segments")
    empty = Page(
        np.empty(0, np.int64), np.empty((0, files[0].dim + files[0].state_floats), np.float32), np.empty(0, int), 0
    )
    writer = _make_writer(output, options.format, _batch(empty, files[0], options).schema, files[0].table)
    count = 0
    with closing(writer):
        for batch in _batches(files, options, progress):
            writer.write_batch(batch)
            count += batch.num_rows
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


def _make_writer(output: IO[Any], file_format: str, schema: pa.Schema, table: str) -> Writer:
    if file_format == "json":
        return JsonLines(output, table)
    if file_format == "csv":
        return pa_csv.CSVWriter(output, schema)
    return pq.ParquetWriter(output, schema)


def _batches(
    files: Sequence[TableFile], options: ExportOptions, progress: Callable[[int], None]
) -> Iterator[pa.RecordBatch]:
    left = options.limit
    for file in files:
        end = 0
        for page in pages(file.path):
            batch = _batch(page, file, options).slice(0, left)
            yield batch
            progress(page.end - end)
            end = page.end
            left = None if left is None else left - batch.num_rows
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
