"""Rows in files instead of memory, for those that wait long in the join."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from millrace.runtime.errors import UserError


@dataclass(frozen=True)
class SpillSettings:
    """When pending rows go to files.

    Args:
      max_rows: largest number of rows held in memory; None: no limit.
      folder: on a local disk; None: the system's folder of temporary files, which may lie in memory itself.
    """

    max_rows: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 0:
            raise UserError("max_pending_rows", self.max_rows, "negative", "choose 0 or more, or leave it out")


IN_MEMORY = SpillSettings()


def spilled(rows: pa.RecordBatch, folder: Path | None) -> pa.RecordBatch:
    """The same rows with their buffers in a file that is mapped into memory, whose pages the system loads and drops.

    When this returns, the file has no name any more, so that the system deletes it with the last of its buffers, also
    when the process is killed. OSError when the file cannot be written.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="millrace-rows-", suffix=".arrow", dir=folder) as file:
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_batch(rows)
        with pa.memory_map(file.name) as source:
            return pa.ipc.open_file(source).get_batch(0)
