"""Files in and out of a bounded feed: JSON-lines events, Parquet batches."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from runtime.atomic_file import write_bytes, write_text
from runtime.errors import UserError
from transforms import beam_coder, record_batch  # noqa: F401 (the coder is registered)

SUCCESS = "_SUCCESS"
"""Marker file, written last: without it a folder may lack rows."""

_BLOCK_BYTES = 4 << 20


class ReadEventFiles(beam.PTransform):
    """JSON-lines files to raw blocks (`record_batch.raw_schema`): partition = number of the file, offset = line number.

    Args:
      pattern: path with wildcards; `.gz` and `.bz2` are decompressed. Files are numbered in the order of their names.
      topic: the topic whose events these are.

    Raises: UserError when no file matches.
    """

    def __init__(self, pattern: str, topic: str, field_name: str) -> None:
        super().__init__()
        self._topic = topic
        found = FileSystems.match([pattern])[0].metadata_list
        self._paths = list(enumerate(sorted(metadata.path for metadata in found)))
        if not self._paths:
            raise UserError(field_name, pattern, "no file matches", "check the path and quote its wildcards")

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch]:
        return (
            begin
            | "ListFiles" >> beam.Create(self._paths)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadLines" >> beam.ParDo(_ReadLinesDoFn(self._topic)).with_output_types(pa.RecordBatch)
        )


class _ReadLinesDoFn(beam.DoFn):
    def __init__(self, topic: str) -> None:
        self._schema = record_batch.raw_schema(topic)

    def process(self, element: tuple[int, str]) -> Iterator[pa.RecordBatch]:
        number, path = element
        first, rest = 0, b""
        with FileSystems.open(path) as file:
            while chunk := file.read(_BLOCK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                yield self._block(number, first, lines)
                first += len(lines)
        yield self._block(number, first, [rest])

    def _block(self, number: int, first: int, lines: list[bytes]) -> pa.RecordBatch:
        kept = [(first + index, line) for index, line in enumerate(lines) if line.strip()]
        columns = [
            pa.array([line for _, line in kept], pa.binary()),
            pa.array([number] * len(kept), pa.int32()),
            pa.array([offset for offset, _ in kept], pa.int64()),
            pa.array([0] * len(kept), pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


class WriteParquetDoFn(beam.DoFn):
    """(name, batch) to `<folder>/<name>.parquet` on this machine's disk; gives the names.

    Each file is written beside and renamed, so a retried bundle writes the same file again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, element: tuple[str, pa.RecordBatch]) -> Iterator[str]:
        name, batch = element
        self._folder.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        pq.write_table(pa.Table.from_batches([batch]), data, compression="zstd")
        write_bytes(self._folder / f"{name}.parquet", data.getvalue())
        yield name


def prepare_folder(folder: Path, field_name: str) -> None:
    """Creates `folder`; UserError when it holds anything or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(field_name, folder, f"cannot be written ({error.strerror})", "choose another folder") from error
    if taken is not None:
        raise UserError(field_name, folder, "the folder is not empty", "choose a new one")


def mark_success(folder: Path, summary: dict[str, object]) -> None:
    """Writes the marker, with `summary` as JSON: every file is there."""
    write_text(folder / SUCCESS, json.dumps(summary, sort_keys=True) + "\n")
