"""Entries as EntryDump records, the form in which Monolith's lookups and checkpoints hold them.

`to_entry_dumps` and `from_entry_dumps` turn pages of entries into records and back; `import_entry_dumps` reads the
checkpoint files of a table. Records are made one by one in Python: this exchanges tables with another system, live data
takes other ways.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from millrace.ops.embedding_table import EmbeddingStore, Entries
from millrace.ops.table_config import Adagrad, Segment, TableConfig
from millrace.ops.table_files import FileSegment, TableFile
from millrace.protos.embedding_table_pb2 import EntryDump, SingleOptimizerDump

__all__ = [
    "NoDumpError",
    "complete_file_set",
    "from_entry_dumps",
    "import_entry_dumps",
    "lookup_entries_as_dumps",
    "to_entry_dumps",
]

_RECORDS_PER_PAGE = 8192
_FILE_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True)
class _State:
    """Fields of an optimizer's dump in the order of its state: float vectors, floats, and int64s of two floats each."""

    vectors: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()

    def floats(self, dim: int) -> int:
        return dim * len(self.vectors) + len(self.scalars) + 2 * len(self.integers)


_STATES = {
    "sgd": _State(),
    "adagrad": _State(("norm",)),
    "dynamic_wd_adagrad": _State(("norm",)),
    "adadelta": _State(("accum", "accum_update")),
    "adam": _State(("m", "v"), ("beta1_power", "beta2_power")),
    "amsgrad": _State(("m", "v", "vhat"), ("beta1_power", "beta2_power")),
    "momentum": _State(("n",)),
    "rmsprop": _State(("n",)),
    "rmspropv2": _State(("n",)),
    "ftrl": _State(("norm", "zero")),
    "group_ftrl": _State(("norm", "zero")),
    "group_adagrad": _State(scalars=("grad_square_sum",)),
    "batch_softmax": _State(integers=("global_step",)),
}
_ADAGRADS = ("adagrad", "dynamic_wd_adagrad")


class NoDumpError(ValueError):
    """An optimizer whose state EntryDump has no message for; the message names table, segment and optimizer."""


class _DumpedSegment(NamedTuple):
    """A segment that has an optimizer's dump: its weights, and which message of EntryDump holds its state."""

    dim: int
    kind: str


def to_entry_dumps(table: TableConfig | TableFile, entries: Entries) -> list[bytes]:
    """One serialized EntryDump per entry, with its id.

    Args:
      table: the table in training form, or a file of it.

    Raises:
      NoDumpError: an optimizer of the table has no dump.
    """
    return _serialize(table, entries, with_id=True)


def from_entry_dumps(table: TableConfig, dumps: Sequence[bytes]) -> Entries:
    """Inverse of `to_entry_dumps`; a record without a time stamp gets 0.

    Raises:
      DecodeError: no EntryDump at all.
      ValueError: a record has no id, weights or state that are not finite or of another table; names the id, the
        segment, what was expected and what was found.
    """
    segments = _dumped_segments(table)
    width = table.dim + sum(_STATES[kind].floats(dim) for dim, kind in segments)
    values = np.empty((len(dumps), width), np.float32)
    messages = [EntryDump.FromString(dump) for dump in dumps]
    for row, message in zip(values, messages, strict=True):
        where = f"table {table.name!r}, id {message.id}"
        if not message.HasField("id"):
            raise ValueError(f"table {table.name!r}: an entry has no id")
        row[: table.dim] = _checked(where, "weights", message.num, table.dim)
        row[table.dim :] = _read_state(where, segments, message)
    ids = np.array([message.id for message in messages], np.int64)
    return Entries(ids, values, np.array([message.last_update_ts_sec for message in messages], np.int64))


def lookup_entries_as_dumps(store: EmbeddingStore, table: str, ids: Any) -> list[bytes]:
    """One serialized EntryDump without id for each of `ids`, b"" for one without an entry.

    Raises:
      NoDumpError: an optimizer of the table has no dump.
    """
    entries, found = store.lookup_entries(table, ids)
    present = iter(_serialize(store.table(table), Entries(*(column[found] for column in entries)), with_id=False))
    return [next(present) if is_there else b"" for is_there in found]


def complete_file_set(files: Iterable[str | Path]) -> list[Path]:
    """The files of one checkpoint of a table, `<table>-00000-of-00002` and so on, in order.

    Names of another form are passed over: a checkpoint that failed leaves such files behind.

    Raises:
      ValueError: none is left, a file is missing, or files are of several tables or several checkpoints.
    """
    named = {Path(file): match for file in files if (match := _FILE_NAME.fullmatch(Path(file).name))}
    if not named:
        raise ValueError("no file is named <table>-<5 digits>-of-<5 digits>")
    sets = {f"{path.parent / match[1]}-*-of-{match[3]}" for path, match in named.items()}
    if len(sets) > 1:
        raise ValueError(f"files of several checkpoints: {', '.join(sorted(sets))}")
    total = int(next(iter(named.values()))[3])
    paths = {int(match[2]): path for path, match in named.items()}
    if sorted(paths) != list(range(total)):
        raise ValueError(f"{sets.pop()} must have numbers 0 to {total - 1}, but it has {sorted(paths)}")
    return [paths[i] for i in range(total)]


def import_entry_dumps(store: EmbeddingStore, table: str, files: Iterable[str | Path]) -> int:
    """Replaces the content of a table by the entries of a Monolith checkpoint; returns how many records there were.

    Every record is checked before the table changes. What `clear` forgets is forgotten: touched ids, and what the
    table's filter counted. The filter is not asked.

    Args:
      files: TFRecord files of EntryDump, not compressed, of one table; they must be a `complete_file_set`.

    Raises:
      ValueError: as `complete_file_set` and `from_entry_dumps`.
      DataLossError: a file is damaged; names it.
    """
    config = store.table(table)
    paths = complete_file_set(files)
    records = sum(entries.ids.size for entries in _read(config, paths))
    store.clear(table)
    for entries in _read(config, paths):
        store.import_entries(table, entries)
    return records


def _read(table: TableConfig, paths: Sequence[Path]) -> Iterator[Entries]:
    """Entries of the files, a page at a time."""
    for path in paths:
        try:
            for records in tf.data.TFRecordDataset(str(path)).batch(_RECORDS_PER_PAGE):
                yield from_entry_dumps(table, records.numpy().tolist())
        except (tf.errors.DataLossError, DecodeError) as error:
            raise tf.errors.DataLossError(None, None, f"{path}: {error}") from error


def _dumped_segments(table: TableConfig | TableFile) -> list[_DumpedSegment]:
    """Segments that have an optimizer's dump: none in a table that serves."""
    dumped = []
    name = table.table if isinstance(table, TableFile) else table.name
    segments: Sequence[Segment | FileSegment] = table.segments
    for i, segment in enumerate(segments):
        optimizer = segment.optimizer
        kind = optimizer if isinstance(optimizer, str) else "" if optimizer is None else optimizer.kind
        if kind in ("", "none", "moving_average"):
            continue
        if kind not in _STATES:
            described = kind if isinstance(optimizer, str) else type(optimizer).__name__
            raise NoDumpError(f"table {name!r}, segment {i}: {described} has no dump")
        decoupled = isinstance(optimizer, Adagrad) and optimizer.decouple_weight_decay
        dumped.append(_DumpedSegment(segment.dim, "dynamic_wd_adagrad" if decoupled else kind))
    return dumped


def _serialize(table: TableConfig | TableFile, entries: Entries, with_id: bool) -> list[bytes]:
    segments = _dumped_segments(table)
    dumps = []
    for fid, row, timestamp in zip(entries.ids.tolist(), entries.values, entries.timestamps.tolist(), strict=True):
        message = EntryDump(num=row[: table.dim].tolist(), last_update_ts_sec=timestamp)
        if with_id:
            message.id = fid
        first = table.dim
        for dim, kind in segments:
            floats = _STATES[kind].floats(dim)
            message.opt.dump.append(_write_state(dim, kind, row[first : first + floats]))
            first += floats
        dumps.append(message.SerializeToString())
    return dumps


def _write_state(dim: int, kind: str, state: np.ndarray) -> SingleOptimizerDump:
    dump = SingleOptimizerDump()
    fields = getattr(dump, kind)
    fields.SetInParent()
    layout = _STATES[kind]
    for i, name in enumerate(layout.vectors):
        getattr(fields, name).extend(state[i * dim : (i + 1) * dim].tolist())
    rest = state[dim * len(layout.vectors) :]
    for i, name in enumerate(layout.scalars):
        setattr(fields, name, float(rest[i]))
    for name, number in zip(layout.integers, rest[len(layout.scalars) :].view(np.int64).tolist(), strict=True):
        setattr(fields, name, number)
    return dump


def _read_state(where: str, segments: list[_DumpedSegment], message: EntryDump) -> np.ndarray:
    """State of all segments, float32."""
    if not segments:
        return np.empty(0, np.float32)
    if len(message.opt.dump) != len(segments):
        raise ValueError(f"{where}: has {len(message.opt.dump)} optimizer dumps, expected {len(segments)}")
    parts = []
    for i, ((dim, kind), dump) in enumerate(zip(segments, message.opt.dump, strict=True)):
        place = f"{where}, optimizer dump {i}"
        found = dump.WhichOneof("type")
        if found != kind and not (found in _ADAGRADS and kind in _ADAGRADS):
            raise ValueError(f"{place}: has {found}, expected {kind}")
        fields, layout = getattr(dump, found), _STATES[kind]
        missing = [name for name in layout.scalars + layout.integers if not fields.HasField(name)]
        if missing:
            raise ValueError(f"{place}: {kind} has no {missing[0]}")
        parts += [_checked(place, name, getattr(fields, name), dim) for name in layout.vectors]
        scalars = [getattr(fields, name) for name in layout.scalars]
        parts.append(_checked(place, "scalars", scalars, len(layout.scalars)))
        parts.append(np.array([getattr(fields, name) for name in layout.integers], np.int64).view(np.float32))
    return np.concatenate(parts)


def _checked(where: str, what: str, floats: Sequence[float], dim: int) -> np.ndarray:
    if len(floats) != dim:
        raise ValueError(f"{where}: has {len(floats)} {what}, expected {dim}")
    found = np.array(floats, np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{where}: {what} must be finite")
    return found
