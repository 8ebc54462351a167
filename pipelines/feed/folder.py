"""The output folder of a bounded feed: Parquet files, and a marker that says that all of them are there."""

import json
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from millrace.pipelines.files.containers import CONTAINERS, write_parquet, write_plain_parquet
from millrace.pipelines.files.storage import publish
from millrace.runtime.atomic_file import write_text
from millrace.runtime.errors import UserError
from millrace.transforms.feed.rows_folder import SUCCESS


class WriteParquetDoFn(beam.DoFn):
    """(name, batch) to `<folder>/<name>.parquet` on this machine's disk; gives the names.

    Each file is written under a temporary name and renamed. A bundle that is retried replaces its files by equal ones.

    Args:
      rows: whether the batches are canonical rows, which their files then say; dead letters and actions are none.
    """

    def __init__(self, folder: Path, rows: bool = True) -> None:
        self._folder = folder
        self._write = write_parquet if rows else write_plain_parquet

    def process(self, element: tuple[str, pa.RecordBatch]) -> Iterator[str]:
        name, batch = element
        path = self._folder / f"{name}{CONTAINERS['parquet'].suffix}"
        publish(str(path), lambda file: self._write(file, [batch]))
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
    """Writes the marker, which holds `summary` as JSON, once every file is there."""
    write_text(folder / SUCCESS, json.dumps(summary, sort_keys=True) + "\n")
