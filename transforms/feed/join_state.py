"""What a join holds except the rows that wait: the state of each known row, and the actions that wait.

`Snapshot` is all of it, the rows included, and goes to bytes and back. A row is *known* from its arrival until it is
forgotten, after its window and the allowed lateness; it may have left the join long before. Its *key* is the uint64 of
`key_index.row_keys`, its *position* the number of rows that arrived before it. All times are Unix milliseconds, int64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.feed.key_index import KeyIndex

PENDING, EMITTED, CLOSED = np.uint8(0), np.uint8(1), np.uint8(2)
"""States of a known row: it waits for an action; it has left with one; its window has closed without one."""

_SMALLEST_CAPACITY = 1024  # rows, 19 KB: little enough for many feed shards with hardly any traffic


@dataclass
class Columns:
    """Base of a dataclass whose fields are columns of equal length: numpy arrays, or Arrow arrays of strings."""

    def select(self, rows: np.ndarray) -> Self:
        """The entries at `rows`: a bool mask, or integer indices."""
        return type(self)(*(_chosen(getattr(self, field.name), rows) for field in fields(self)))

    def append(self, other: Self) -> Self:
        """New columns: these entries, then those of `other`."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*(_joined(*pair) for pair in pairs))

    def to_arrow(self) -> pa.RecordBatch:
        """A batch with one column per field, of the field's name."""
        return pa.record_batch({field.name: _to_arrow(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> Self:
        """The columns that `to_arrow` gave; KeyError if one is missing."""
        return cls(*(_from_arrow(batch.column(field.name)) for field in fields(cls)))

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))


def _chosen(column: np.ndarray | pa.Array, rows: np.ndarray) -> np.ndarray | pa.Array:
    if isinstance(column, np.ndarray):
        return column[rows]
    return column.filter(pa.array(rows)) if rows.dtype == bool else column.take(pa.array(rows))


def _joined(left: np.ndarray | pa.Array, right: np.ndarray | pa.Array) -> np.ndarray | pa.Array:
    return np.concatenate([left, right]) if isinstance(left, np.ndarray) else pa.concat_arrays([left, right])


def _to_arrow(column: np.ndarray | pa.Array) -> pa.Array:
    return pa.array(column) if isinstance(column, np.ndarray) else column


def _from_arrow(column: pa.Array) -> np.ndarray | pa.Array:
    return column if pa.types.is_string(column.type) else column.to_numpy(zero_copy_only=False)


@dataclass
class EarlyActions(Columns):
    """Actions that arrived before their row and wait for it.

    Attributes:
      keys: uint64, key of the row that the action is about.
      timestamps: when the user acted.
      codes: int16, index in `FeedConfig.label_actions`.
      values: float64, value of the action; NaN where it has none.
      expires: from when on the action waits no more and counts as an orphan.
      request_ids, item_ids: string and int64; what `keys` are the hashes of.
      source_partitions, source_offsets: int64, where the record of each action lies.
    """

    keys: np.ndarray
    timestamps: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    expires: np.ndarray
    request_ids: pa.StringArray
    item_ids: np.ndarray
    source_partitions: np.ndarray
    source_offsets: np.ndarray

    @classmethod
    def none(cls) -> Self:
        """No actions."""
        keys, numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        codes, values = np.zeros(0, np.int16), np.zeros(0, np.float64)
        return cls(keys, numbers, codes, values, numbers, pa.array([], pa.string()), numbers, numbers, numbers)

    def match(self, keys: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the actions whose row has arrived.

        Args:
          keys, positions: uint64 and int64 [n], of rows; no key twice.

        Returns: (bool, one per action: whether its key is in `keys`; int64: for each of those actions, in order, the
          position of its row).
        """
        if not len(self.keys):
            return np.zeros(0, bool), np.zeros(0, np.int64)
        at = locate(keys, self.keys)
        matched = at >= 0
        return matched, positions[at[matched]]


@dataclass
class Marks(Columns):
    """One entry per known row.

    Attributes:
      keys: uint64.
      timestamps: time of the impression.
      states: uint8, `PENDING`, `EMITTED` or `CLOSED`.
      codes: int16, the action with which the row left, as index in `FeedConfig.label_actions`; -1 for none.
      forget_at: processing time at which the row is forgotten.
    """

    keys: np.ndarray
    timestamps: np.ndarray
    states: np.ndarray
    codes: np.ndarray
    forget_at: np.ndarray


def locate(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 [len(wanted)]: index in `keys` (unique) of each wanted key, -1 where it is not there."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(keys)
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    return np.where(keys[order][at] == wanted, order[at], -1)


class RowStates:
    """Key, time, state and action of every known row, by position.

    Arguments and results named `positions` are int64 [n], of rows that are known; this is not checked.
    """

    def __init__(self) -> None:
        self._base = self._next = 0  # known rows are at positions in [_base, _next)
        self._keys = np.empty(_SMALLEST_CAPACITY, np.uint64)
        self._timestamps = np.empty(_SMALLEST_CAPACITY, np.int64)
        self._states = np.empty(_SMALLEST_CAPACITY, np.uint8)
        self._codes = np.empty(_SMALLEST_CAPACITY, np.int16)
        self._first = 0  # position of element 0 of the arrays
        self._index = KeyIndex()

    def add(self, keys: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
        """Adds rows in state `PENDING`; returns their positions, int64 [n].

        Args:
          keys: uint64 [n], no two equal and none that a known row has; not checked.
          timestamps: int64 [n], times of the impressions.
        """
        self._reserve(len(keys))
        positions = np.arange(self._next, self._next + len(keys))
        slots = slice(self._next - self._first, self._next - self._first + len(keys))
        self._keys[slots], self._timestamps[slots] = keys, timestamps
        self._states[slots], self._codes[slots] = PENDING, -1
        self._next += len(keys)
        self._index.add(keys, positions)
        return positions

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        """int64 [n]: position of the known row with each key, uint64 [n]; -1 where there is none."""
        return self._index.positions_of(keys)

    def forget_below(self, base: int) -> None:
        """Forgets the rows at positions below `base`, so that their keys count as new."""
        self._base = max(self._base, base)
        self._index.forget_below(self._base)

    def key(self, positions: np.ndarray) -> np.ndarray:
        """uint64 [n]: key of each row."""
        return self._keys[positions - self._first]

    def timestamp(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n]: time of each row's impression."""
        return self._timestamps[positions - self._first]

    def state(self, positions: np.ndarray) -> np.ndarray:
        """uint8 [n]: `PENDING`, `EMITTED` or `CLOSED`."""
        return self._states[positions - self._first]

    def code(self, positions: np.ndarray) -> np.ndarray:
        """int16 [n]: the action with which each row left, as index in `FeedConfig.label_actions`; -1 for none."""
        return self._codes[positions - self._first]

    def set(self, positions: np.ndarray, state: np.ndarray | np.uint8, code: np.ndarray | int) -> None:
        """Sets state and action of rows, to one value per row or one for all."""
        self._states[positions - self._first] = state
        self._codes[positions - self._first] = code

    def count(self, state: np.uint8) -> int:
        """Number of known rows in `state`."""
        return int((self._states[self._base - self._first : self._next - self._first] == state).sum())

    def marks(self, stops: np.ndarray, forget_at: np.ndarray) -> Marks:
        """All known rows, in order of position.

        Args:
          stops: int64 [m], ascending; the last one is above all positions.
          forget_at: int64 [m]; those at positions in [stops[i - 1], stops[i]) are to be forgotten at forget_at[i].
        """
        positions = np.arange(self._base, self._next)
        times = forget_at[np.searchsorted(stops, positions, side="right")] if len(positions) else forget_at[:0]
        return Marks(self.key(positions), self.timestamp(positions), self.state(positions), self.code(positions), times)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, room for further rows included."""
        arrays = (self._keys, self._timestamps, self._states, self._codes)
        return self._index.nbytes + sum(array.nbytes for array in arrays)

    def _reserve(self, rows: int) -> None:
        if self._next - self._first + rows <= len(self._keys):
            return
        live = slice(self._base - self._first, self._next - self._first)
        capacity = max(_SMALLEST_CAPACITY, 2 * (self._next - self._base + rows))
        self._keys, self._timestamps, self._states, self._codes = (
            _grown(array[live], capacity) for array in (self._keys, self._timestamps, self._states, self._codes)
        )
        self._first = self._base


def _grown(array: np.ndarray, capacity: int) -> np.ndarray:
    larger = np.empty(capacity, array.dtype)
    larger[: len(array)] = array
    return larger


@dataclass
class Snapshot:
    """All that a join holds.

    Attributes:
      now_ms: the latest processing time that the join was given.
      rows: the rows that wait, of `impression_schema`.
      row_keys: uint64, the key of each of `rows`.
      marks: all known rows, those that wait included.
      early: the actions that wait.
    """

    now_ms: int
    rows: pa.RecordBatch
    row_keys: np.ndarray
    marks: Marks
    early: EarlyActions

    def to_bytes(self) -> bytes:
        """An Arrow IPC stream of one row: `now_ms`, and one binary column per part that holds a stream of its own."""
        keys = pa.record_batch({"keys": pa.array(self.row_keys)})
        parts = (self.rows, keys, self.marks.to_arrow(), self.early.to_arrow())
        columns = {
            name: pa.array([record_batch.to_bytes(part)], pa.large_binary())
            for name, part in zip(_PARTS, parts, strict=True)
        }
        return record_batch.to_bytes(pa.record_batch({"now_ms": pa.array([self.now_ms])} | columns))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The snapshot that `to_bytes` wrote; ValueError for other bytes."""
        outer = record_batch.from_bytes(data)
        if outer.schema.names != ["now_ms", *_PARTS] or outer.num_rows != 1:
            raise ValueError(f"not the state of a join: columns {', '.join(outer.schema.names)}")
        rows, keys, marks, early = (record_batch.from_bytes(outer.column(name)[0].as_buffer()) for name in _PARTS)
        return cls(
            outer.column("now_ms")[0].as_py(),
            rows,
            record_batch.numpy_column(keys, "keys"),
            Marks.from_arrow(marks),
            EarlyActions.from_arrow(early),
        )

    @classmethod
    def union(cls, snapshots: Sequence[Self], schema: pa.Schema) -> Self:
        """One snapshot of all that several joins hold; `schema` is that of `rows`, also when there are no snapshots.

        A row that several joins know is kept once, in the state that comes last of pending, emitted and closed.
        """
        no_marks = Marks(*(np.zeros(0, kind) for kind in (np.uint64, np.int64, np.uint8, np.int16, np.int64)))
        merged = cls(0, record_batch.empty(schema), np.zeros(0, np.uint64), no_marks, EarlyActions.none())
        for each in snapshots:
            merged = cls(
                max(merged.now_ms, each.now_ms),
                record_batch.concat([merged.rows, each.rows]) if merged.rows.num_rows else each.rows,
                np.concatenate([merged.row_keys, each.row_keys]),
                merged.marks.append(each.marks),
                merged.early.append(each.early),
            )
        if len(snapshots) > 1:
            furthest = np.lexsort((-merged.marks.states.astype(np.int8), merged.marks.keys))
            first = np.unique(merged.marks.keys[furthest], return_index=True)[1]
            merged.marks = merged.marks.select(furthest[first])
            kept = np.unique(merged.row_keys, return_index=True)[1]
            merged.rows, merged.row_keys = merged.rows.take(pa.array(kept)), merged.row_keys[kept]
        return merged


_PARTS = ("rows", "row_keys", "marks", "early")
