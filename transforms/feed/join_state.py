"""The state of a join beside its rows: states of rows by position, waiting actions, and all of it as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.feed.key_index import KeyIndex

PENDING, EMITTED, CLOSED = np.uint8(0), np.uint8(1), np.uint8(2)
"""States of a row: it waits; it has left with an action; its window has closed without one."""

_SMALLEST_CAPACITY = 1024


@dataclass
class Columns:
    """Columns of equal length, numpy arrays or Arrow strings, that go to Arrow and back under their fields' names."""

    def select(self, rows: np.ndarray) -> Self:
        """The entries at `rows`: a bool mask, or integer positions."""
        return type(self)(*(_chosen(getattr(self, field.name), rows) for field in fields(self)))

    def append(self, other: Self) -> Self:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return type(self)(*(_joined(*pair) for pair in pairs))

    def to_arrow(self) -> pa.RecordBatch:
        return pa.record_batch({field.name: _to_arrow(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch) -> Self:
        return cls(*(_from_arrow(batch.column(field.name)) for field in fields(cls)))

    @property
    def nbytes(self) -> int:
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
    """Actions that wait for their row.

    `codes` are indices of `FeedConfig.label_actions`; `values` are NaN where an action has none; `expires` is when the
    action becomes an orphan, Unix milliseconds.
    """

    keys: np.ndarray
    timestamps: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    expires: np.ndarray
    request_ids: pa.StringArray
    item_ids: np.ndarray

    @classmethod
    def none(cls) -> Self:
        keys, numbers = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        codes, values = np.zeros(0, np.int16), np.zeros(0, np.float64)
        return cls(keys, numbers, codes, values, numbers, pa.array([], pa.string()), numbers)

    def match(self, keys: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bool: which actions have a key in `keys`; int64: the position of the row of each of these)."""
        if not len(self.keys):
            return np.zeros(0, bool), np.zeros(0, np.int64)
        at = locate(keys, self.keys)
        matched = at >= 0
        return matched, positions[at[matched]]


@dataclass
class Marks(Columns):
    """Known rows: key, time of the impression, state, code of the action, and when the row is forgotten."""

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
    """State of every known row by its position, a number that grows by one with each row that arrives."""

    def __init__(self) -> None:
        self._base = self._next = 0
        self._keys = np.empty(_SMALLEST_CAPACITY, np.uint64)
        self._timestamps = np.empty(_SMALLEST_CAPACITY, np.int64)
        self._states = np.empty(_SMALLEST_CAPACITY, np.uint8)
        self._codes = np.empty(_SMALLEST_CAPACITY, np.int16)
        self._first = 0  # position of element 0 of the arrays
        self._index = KeyIndex()

    def add(self, keys: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
        """Adds pending rows with new keys; returns their positions, int64 [n]."""
        self._reserve(len(keys))
        positions = np.arange(self._next, self._next + len(keys))
        slots = slice(self._next - self._first, self._next - self._first + len(keys))
        self._keys[slots], self._timestamps[slots] = keys, timestamps
        self._states[slots], self._codes[slots] = PENDING, -1
        self._next += len(keys)
        self._index.add(keys, positions)
        return positions

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        return self._index.positions_of(keys)

    def forget_below(self, base: int) -> None:
        self._base = max(self._base, base)
        self._index.forget_below(self._base)

    def key(self, positions: np.ndarray) -> np.ndarray:
        return self._keys[positions - self._first]

    def timestamp(self, positions: np.ndarray) -> np.ndarray:
        return self._timestamps[positions - self._first]

    def state(self, positions: np.ndarray) -> np.ndarray:
        return self._states[positions - self._first]

    def code(self, positions: np.ndarray) -> np.ndarray:
        """The action with which a row left, -1 for none."""
        return self._codes[positions - self._first]

    def set(self, positions: np.ndarray, state: np.ndarray | np.uint8, code: np.ndarray | int) -> None:
        self._states[positions - self._first] = state
        self._codes[positions - self._first] = code

    def count(self, state: np.uint8) -> int:
        return int((self._states[self._base - self._first : self._next - self._first] == state).sum())

    def marks(self, stops: np.ndarray, forget_at: np.ndarray) -> Marks:
        """All known rows; those at positions in [stops[i - 1], stops[i]) are forgotten at forget_at[i]."""
        positions = np.arange(self._base, self._next)
        times = forget_at[np.searchsorted(stops, positions, side="right")] if len(positions) else forget_at[:0]
        return Marks(self.key(positions), self.timestamp(positions), self.state(positions), self.code(positions), times)

    @property
    def nbytes(self) -> int:
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
    """All that a join holds: pending rows with their keys, marks of all known rows, waiting actions."""

    now_ms: int
    rows: pa.RecordBatch
    row_keys: np.ndarray
    marks: Marks
    early: EarlyActions

    def to_bytes(self) -> bytes:
        """An Arrow IPC stream of one row, whose binary columns are Arrow IPC streams themselves."""
        keys = pa.record_batch({"keys": pa.array(self.row_keys)})
        parts = (self.rows, keys, self.marks.to_arrow(), self.early.to_arrow())
        columns = {
            name: pa.array([record_batch.to_bytes(part)], pa.large_binary())
            for name, part in zip(_PARTS, parts, strict=True)
        }
        return record_batch.to_bytes(pa.record_batch({"now_ms": pa.array([self.now_ms])} | columns))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
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
        """One snapshot of all. Of a row that several know, the furthest state counts: closed, emitted, pending."""
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
