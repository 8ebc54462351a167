"""Table files of a snapshot, without a store: what is in them, their entries in pages, other numbers of shards."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from millrace.ops import library

_PAGE_FLOATS = 1 << 22
_MAX_PAGE_ROWS = 1 << 16


class TableFileError(Exception):
    """A file that cannot be read or written, or files that are no whole snapshot; the message names file and block."""


@dataclasses.dataclass(frozen=True)
class FileSegment:
    """Consecutive floats of an entry: weights [dim] and, in training form, optimizer state [state_floats]."""

    dim: int
    optimizer: str
    state_floats: int
    compressor: str


@dataclasses.dataclass(frozen=True)
class TableFile:
    """The header of a table file.

    Attributes:
      form: "training", weights and optimizer state as float32, or "serving", compressed weights.
      shard, num_shards: which parameter server wrote it, and of how many: ids with floormod(id, num_shards) == shard.
      part, num_parts: which of the files of that server's entries it is.
      newest_timestamp: Unix seconds of the table's newest write.
    """

    path: Path
    table: str
    form: str
    shard: int
    num_shards: int
    part: int
    num_parts: int
    newest_timestamp: int
    segments: tuple[FileSegment, ...]

    @property
    def dim(self) -> int:
        return sum(segment.dim for segment in self.segments)

    @property
    def state_floats(self) -> int:
        return sum(segment.state_floats for segment in self.segments)

    @classmethod
    def from_header(cls, path: Path, text: str) -> "TableFile":
        """Of the header's `key=value;...`; ops/cc/embedding/snapshot/table_snapshot.h lists its fields."""
        fields = dict(part.split("=", 1) for part in text.split(";"))
        numbers = {key: int(fields[key]) for key in ("shard", "num_shards", "part", "num_parts", "newest_timestamp")}
        segments = tuple(
            FileSegment(
                int(fields[f"segment.{i}.dim"]),
                fields[f"segment.{i}.optimizer"],
                int(fields[f"segment.{i}.state_floats"]),
                fields[f"segment.{i}.compressor"],
            )
            for i in range(int(fields["segments"]))
        )
        return cls(path, fields["table"], fields["form"], segments=segments, **numbers)


class Page(NamedTuple):
    """Entries in columns, in the order of the file.

    Attributes:
      ids: int64 [n].
      values: float32 [n, dim + state_floats], weights decompressed.
      timestamps: int64 [n], Unix seconds.
      end: bytes of the file up to here.
    """

    ids: np.ndarray
    values: np.ndarray
    timestamps: np.ndarray
    end: int


def read_header(path: Path) -> TableFile:
    """Reads and checks the header alone. Raises TableFileError."""
    return TableFile.from_header(path, _read(path, np.zeros(2, np.int64), limit=0)[0])


def verify_file(path: Path) -> tuple[TableFile, int]:
    """Reads and checks every byte; returns the number of entries too. Raises TableFileError."""
    with _own_errors():
        header, rows = library.load().millrace_verify_table_file(path=str(path))
    return TableFile.from_header(path, header.numpy().decode()), int(rows.numpy())


def pages(path: Path) -> Iterator[Page]:
    """All entries of a file, in pages of some ten megabytes. Each block is checked when it is read.

    Raises:
      TableFileError: the file is damaged; what came before is good.
    """
    header = read_header(path)
    limit = max(1, min(_MAX_PAGE_ROWS, _PAGE_FLOATS // (header.dim + header.state_floats)))
    cursor = np.zeros(2, np.int64)
    while True:
        _, page, cursor = _read(path, cursor, limit)
        if len(page.ids):
            yield page
        if len(page.ids) < limit:
            return


def reshard(files: Sequence[Path], folder: Path, num_shards: int) -> list[Path]:
    """Writes the entries of a snapshot anew: shard s of each table gets the ids with floormod(id, num_shards) == s.

    Occurrence filters are left out: their cells cannot be told apart by id.

    Args:
      files: all table files of one snapshot.
      folder: created when it is new.

    Raises:
      TableFileError: a file is damaged, or files of a table are missing or of different snapshots.
    """
    with _own_errors():
        written = library.load().millrace_reshard_files(
            files=[str(path) for path in files], folder=str(folder), num_shards=num_shards
        )
    return [Path(path.decode()) for path in written.numpy()]


def _read(path: Path, cursor: np.ndarray, limit: int) -> tuple[str, Page, np.ndarray]:
    """Text of the header, whole blocks of `limit` entries or more (fewer at the end), and where the next ones begin."""
    with _own_errors():
        read = library.load().millrace_read_table_file(path=str(path), cursor=cursor, limit=limit)
    ids, values, timestamps, header, following = (column.numpy() for column in read)
    return header.decode(), Page(ids, values, timestamps, int(following[0])), following


@contextmanager
def _own_errors() -> Iterator[None]:
    """Errors of an op in the library's own words, without TensorFlow's frame around them."""
    try:
        yield
    except tf.errors.OpError as error:
        raise TableFileError(error.message.rpartition("}} ")[2].partition(" [Op:")[0]) from error
