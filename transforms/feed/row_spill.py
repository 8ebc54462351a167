"""Rows in files instead of memory: what waits longest need not take room meanwhile."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from millrace.runtime.errors import UserError


@dataclass(frozen=True)
class SpillSettings:
    """When rows go to files.

    Args:
      max_rows: rows held in memory; None: all of them.
      folder: on a local disk; None: the system's folder of temporary files, which may lie in memory itself.
    """

    max_rows: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 0:
            raise UserError("max_pending_rows", self.max_rows, "negative", "choose 0 or more, or leave it out")


IN_MEMORY = SpillSettings()


def spilled(rows: pa.RecordBatch, folder: Path | None) -> pa.RecordBatch:
    """`rows` as they are, their buffers in a file that is mapped: the system reads pages when asked, and drops them.

    The file has no name any more when this returns and is gone with the last of its buffers, whatever becomes of the
    process. OSError when it cannot be written.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="millrace-rows-", suffix=".arrow", dir=folder) as file:
        with pa.OSFile(file.name, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_batch(rows)
        with pa.memory_map(file.name) as source:
            return pa.ipc.open_file(source).get_batch(0)
