"""Rows into files: framed records, TFRecords and lines of raw blocks; Parquet, Avro and Arrow of canonical rows.

The rows are spread over `shards` files by where they come from and sorted by it, so that the same rows give the same
files, byte for byte, on any runner and after any retry: `part-00003-of-00010`, with the start of the window where there
are windows. A file is written beside its place, synced and renamed. The rows of one file are held in memory.
"""

import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import PaneInfo

from millrace.pipelines.files.containers import CONTAINERS, Container, write_plain_parquet, write_records
from millrace.pipelines.files.storage import publish
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.batch.hashes import mix64
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)
from millrace.transforms.frames.compression import SUFFIXES, Compression, compression_named
from millrace.transforms.frames.framing import FILE_FRAMES, RECORD_ROW, FrameOptions, Framing

__all__ = [
    "WriteArrowFiles",
    "WriteAvroFiles",
    "WriteFramedFiles",
    "WriteJsonLines",
    "WriteParquetFiles",
    "WriteTfRecordFiles",
]

_NAMESPACE = telemetry.namespace("pipelines", "file_sinks")
_HOUR_MS = 3_600_000
_LAST_HOUR = 253_402_300_800_000 // _HOUR_MS  # the year 10000, which a folder name of eight digits cannot hold

UNKNOWN_HOUR = "dt=unknown/hour=unknown"
"""Folder of rows without a usable event time."""


class _WriteFiles(beam.PTransform):
    """What the sinks have in common: batches in, the paths of the written files out."""

    container: Container

    def __init__(self, folder: str, shards: int = 1) -> None:
        super().__init__()
        if shards < 1:
            raise UserError("shards", shards, "there must be a file to write to", "give 1 or more")
        self._folder, self._shards = str(folder), shards

    def write(self, file: BinaryIO, rows: pa.RecordBatch) -> None:
        """Writes all rows of one file."""
        self.container.write(file, [rows])

    @property
    def suffix(self) -> str:
        """End of the files' names."""
        return self.container.suffix

    def folders(self, batch: pa.RecordBatch) -> tuple[np.ndarray, list[str]]:
        """(int64 [rows], index of each row's folder; paths of the folders below the main one, each with its slash)."""
        return np.zeros(batch.num_rows, np.int64), [""]

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[str]:
        split = beam.ParDo(_SplitDoFn(self.folders, self._shards)).with_output_types(tuple[str, pa.RecordBatch])
        write = beam.ParDo(_WriteDoFn(self._folder, self.suffix, self.write)).with_output_types(str)
        return batches | "Split" >> split | "Group" >> beam.GroupByKey() | "Write" >> write

    def display_data(self) -> dict[str, Any]:
        return {"folder": self._folder, "shards": self._shards}


class _SplitDoFn(beam.DoFn):
    """Batches to (name of a file, its rows)."""

    def __init__(self, folders: Callable[[pa.RecordBatch], tuple[np.ndarray, list[str]]], shards: int) -> None:
        self._folders, self._shards = folders, shards

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        if not batch.num_rows:
            return
        folder_of, folders = self._folders(batch)
        partition, offset, _ = _place(batch)
        mixed = mix64(offset.astype(np.uint64) + mix64(partition.astype(np.uint64)))
        parts = folder_of * self._shards + (mixed % np.uint64(self._shards)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        found, starts = np.unique(parts[order], return_index=True)
        sorted_rows = batch.take(pa.array(order))
        for part, start, stop in zip(found.tolist(), starts, [*starts[1:], batch.num_rows], strict=True):
            folder, shard = divmod(part, self._shards)
            name = f"{folders[folder]}part-{shard:05d}-of-{self._shards:05d}"
            yield name, sorted_rows.slice(start, stop - start)


class _WriteDoFn(beam.DoFn):
    """(name, its batches) to a file.

    Counters (`millrace.pipelines.file_sinks`): `rows_written`, `files_written`.
    """

    def __init__(self, folder: str, suffix: str, write: Callable[[BinaryIO, pa.RecordBatch], None]) -> None:
        self._folder, self._suffix, self._write = folder, suffix, write
        self._rows = Metrics.counter(_NAMESPACE, "rows_written")
        self._files = Metrics.counter(_NAMESPACE, "files_written")

    def process(
        self,
        element: tuple[str, Iterable[pa.RecordBatch]],
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[str]:
        name, batches = element
        rows = _sorted(record_batch.concat(list(batches)))
        path = f"{self._folder}/{name}{_when(window, pane)}{self._suffix}"
        publish(path, lambda file: self._write(file, rows))
        self._rows.inc(rows.num_rows)
        self._files.inc()
        yield path


def _place(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Provenance (partition, offset, row), int [rows] each, of a raw block or canonical batch. ValueError without."""
    if record_batch.column_of(batch, record_batch.SOURCE_OFFSET) is not None:
        return provenance_of(batch)
    if record_batch.column_of(batch, "offset") is None:
        raise ValueError("the rows have no provenance; add it with provenance.with_provenance")
    has_row = record_batch.column_of(batch, RECORD_ROW) is not None
    row = record_batch.numpy_column(batch, RECORD_ROW) if has_row else np.zeros(batch.num_rows, np.int64)
    return record_batch.numpy_column(batch, "partition"), record_batch.numpy_column(batch, "offset"), row


def _sorted(rows: pa.RecordBatch) -> pa.RecordBatch:
    partition, offset, row = _place(rows)
    return rows.take(pa.array(np.lexsort((row, offset, partition))))


def _when(window: Any, pane: PaneInfo) -> str:
    """The part of a file name that differs between windows and between firings of one window; empty without either."""
    text = ""
    if not isinstance(window, GlobalWindow):
        text = f"-{window.start.to_utc_datetime():%Y%m%dT%H%M%S}"
    return text if pane.index <= 0 else f"{text}-pane{pane.index}"


class _WriteRecords(_WriteFiles):
    """The values of raw blocks, one after the other.

    Args:
      folder: where the files go.
      shards: number of files.
      compression: of the files, or its name, such as "gzip"; its suffix is part of the files' names.
    """

    def __init__(self, folder: str, shards: int = 1, compression: Compression | str = Compression.NO) -> None:
        super().__init__(folder, shards)
        assert self.container.framing is not None
        self._framing: Framing = self.container.framing
        self._compression, self._data_source = compression_named(compression), ""

    @property
    def suffix(self) -> str:
        endings = {kind: ending for ending, kind in reversed(SUFFIXES.items())}
        return self.container.suffix + endings.get(self._compression, "")

    def write(self, file: BinaryIO, rows: pa.RecordBatch) -> None:
        write_records(file, [rows.column("value")], self._framing, self._compression, self._data_source)


class WriteFramedFiles(_WriteRecords):
    """The values of raw blocks as framed records.

    Args:
      folder, shards, compression: as of `WriteTfRecordFiles`.
      frames: the headers; the default has empty sort ids.
      data_source: name whose key a LagrangeX header carries.
    """

    container = CONTAINERS["framed"]

    def __init__(
        self,
        folder: str,
        shards: int = 1,
        frames: FrameOptions = FILE_FRAMES,
        compression: Compression | str = Compression.NO,
        data_source: str = "",
    ) -> None:
        super().__init__(folder, shards, compression)
        self._framing, self._data_source = frames, data_source


class WriteTfRecordFiles(_WriteRecords):
    """The values of raw blocks as TFRecords.

    Args:
      folder: where the files go.
      shards: number of files.
      compression: of the files, or its name, such as "gzip"; its suffix is part of the files' names.
    """

    container = CONTAINERS["tfrecord"]


class WriteJsonLines(_WriteRecords):
    """The values of raw blocks as lines; a value that holds a line feed fails the run.

    Args:
      folder, shards, compression: as of `WriteTfRecordFiles`.
    """

    container = CONTAINERS["lines"]

    def write(self, file: BinaryIO, rows: pa.RecordBatch) -> None:
        broken = pc.match_substring(rows.column("value"), "\n")
        if pc.any(broken).as_py():
            raise ValueError("a record holds a line feed and cannot be a line; write framed records")
        super().write(file, rows)


class WriteParquetFiles(_WriteFiles):
    """Canonical rows, or dead letters, as Parquet files; field metadata, such as what is a fid, is kept.

    Args:
      folder: where the files go.
      shards: number of files; with `hourly`, per hour.
      hourly: one folder per hour of event time, UTC: `dt=20251101/hour=05`; rows without a time go to `dt=unknown`.
    """

    container = CONTAINERS["parquet"]

    def __init__(self, folder: str, shards: int = 1, hourly: bool = False) -> None:
        super().__init__(folder, shards)
        self._hourly = hourly

    def folders(self, batch: pa.RecordBatch) -> tuple[np.ndarray, list[str]]:
        return hour_folders(batch) if self._hourly else super().folders(batch)

    def write(self, file: BinaryIO, rows: pa.RecordBatch) -> None:
        """Writes all rows of one file; one of dead letters, which have no provenance, does not say that it has rows."""
        if record_batch.column_of(rows, record_batch.SOURCE_OFFSET) is None:
            write_plain_parquet(file, [rows])
        else:
            super().write(file, rows)

    def display_data(self) -> dict[str, Any]:
        return super().display_data() | {"hourly": self._hourly}


def hour_folders(batch: pa.RecordBatch) -> tuple[np.ndarray, list[str]]:
    """(int64 [rows], index of each row's folder; folders) by event time, or by request time where there is none."""
    times = record_batch.column_of(batch, record_batch.EVENT_TIME_MS)
    seconds = record_batch.column_of(batch, record_batch.REQ_TIME)
    if times is None:
        times = pa.nulls(batch.num_rows, pa.int64())
    if seconds is not None:
        times = pc.coalesce(times, pc.multiply(seconds, 1000))
    hours = pc.fill_null(times, -1).to_numpy(zero_copy_only=False) // _HOUR_MS
    known = np.where((hours > 0) & (hours < _LAST_HOUR), hours, -1)
    found, index = np.unique(known, return_inverse=True)
    return index.astype(np.int64), [_hour_folder(hour) + "/" for hour in found.tolist()]


def _hour_folder(hour: int) -> str:
    if hour < 0:
        return UNKNOWN_HOUR
    return datetime.datetime.fromtimestamp(hour * 3600, datetime.UTC).strftime("dt=%Y%m%d/hour=%H")


class WriteAvroFiles(_WriteFiles):
    """Canonical rows as Avro container files, by a schema made of their columns."""

    container = CONTAINERS["avro"]


class WriteArrowFiles(_WriteFiles):
    """Canonical rows as Arrow IPC files."""

    container = CONTAINERS["arrow"]
