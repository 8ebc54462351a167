"""Pools of items that negatives are drawn from: one first-in-first-out pool a channel.

C++ keeps keys, order and counters (`ops/cc/records/rows/item_pool.h`); the items are rows of Arrow batches that are
merged as they grow, so that a batch of rows costs what it adds and what it draws, not what the pools hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.ops.record_library import ItemPoolBooks
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.take_rows import take_rows, take_rows_of

MAX_CHANNELS = 1 << 16
"""Pools at most: items of further channels are refused and counted."""

MAX_STATE_BYTES = 1 << 30
"""Largest saved state."""

_MAX_COUNT = 1 << 40
_MARK = {b"millrace.item_pool": b"1"}
_BOOK = pa.schema(
    [
        pa.field("__POOL_CHANNEL__", pa.int64()),
        pa.field("__POOL_KEY__", pa.uint64()),
        pa.field("__POOL_PUSHED__", pa.int64()),
        pa.field("__POOL_DRAWN__", pa.int64()),
    ]
)
_MIN_WASTE = 4096


class Contents(NamedTuple):
    """All items, pool by pool in the order in which the pools came to be, the oldest item first.

    Attributes:
      channels: int64 [n].
      keys: uint64 [n]
      pushed: int64 [n], times the item came.
      drawn: int64 [n], times it was drawn.
      items: [n] rows of item columns.
    """

    channels: np.ndarray
    keys: np.ndarray
    pushed: np.ndarray
    drawn: np.ndarray
    items: pa.RecordBatch


class DrawRule(NamedTuple):
    """How negatives are drawn for a row.

    Attributes:
      times: draws a row; the first that fails is the row's last.
      easy_ratio: probability, in [0, 1], that a draw is from a pool that is itself drawn, by size, among all.
      allow_own: whether the row's own item may be drawn.
    """

    times: int
    easy_ratio: float = 0.0
    allow_own: bool = False


class Draws(NamedTuple):
    """Draws that did not fail, in the order of the rows.

    Attributes:
      rows: int64 [n], rows that drew.
      positions: int64 [n], items that were drawn, in `ItemPool.store` before the next push.
      recency: float64 [n], (index + 1) / size of the pool: 1 for its newest item.
      times: int64 [n], how often the item has been drawn, this time included.
      easy: bool [n], whether the pool was drawn too.
      added, refused: items that were new in their pools; items of too many channels.
    """

    rows: np.ndarray
    positions: np.ndarray
    recency: np.ndarray
    times: np.ndarray
    easy: np.ndarray
    added: int
    refused: int


class ItemPool:
    """Pools by channel. Not thread-safe. What a pool does depends on the rows alone, not on how they come in batches.

    An item that comes again keeps its place and its columns, and is counted. As it leaves with its turn, and comes back
    with new columns, these are at most one turn of the pool old.

    Args:
      start_num: a pool is drawn from once it holds more items.
      max_item_num: items a pool; beyond it the oldest leaves.
    """

    def __init__(self, start_num: int = 500, max_item_num: int = 100_000) -> None:
        self.start_num, self.max_item_num = start_num, max_item_num
        self._books = ItemPoolBooks(start_num, max_item_num, MAX_CHANNELS)
        self._store = _ItemStore()

    def __getstate__(self) -> tuple[int, int, bytes]:
        return self.start_num, self.max_item_num, self.save()

    def __setstate__(self, state: tuple[int, int, bytes]) -> None:
        self.__init__(*state[:2])  # type: ignore[misc]
        self.restore(state[2])

    def __len__(self) -> int:
        return len(self._books)

    @property
    def schema(self) -> pa.Schema:
        """Of the items."""
        return self._store.schema

    def process(
        self,
        items: pa.RecordBatch,
        keys: np.ndarray,
        channels: np.ndarray,
        push: np.ndarray,
        draw: np.ndarray,
        random: np.ndarray,
        rule: DrawRule,
    ) -> Draws:
        """For one row after the other: its item enters its pool, then negatives are drawn for it.

        Args:
          items: item columns, [n] rows.
          keys: uint64 [n], key of the row's item.
          channels: int64 [n].
          push: bool [n], whether the row's item enters its pool.
          draw: bool [n], whether negatives are drawn for the row.
          random: uint64 [n], hash of the row's provenance: all chance comes from it.

        Raises: ValueError naming an item column that has another type than in the pools, which then stay as they are.
        """
        self._store.extend_schema(items.schema)
        self._compact()
        rows = len(keys)
        flags = np.zeros(rows, np.uint8)
        inputs = [
            np.ascontiguousarray(column, dtype)
            for column, dtype in zip((keys, channels, push, draw, random), _ROW_TYPES, strict=True)
        ]
        outputs = [np.empty(int(np.count_nonzero(draw)) * rule.times, dtype) for dtype in _DRAW_TYPES]
        rules = rule.times, rule.easy_ratio, int(rule.allow_own)
        count = self._books.process(rows, *inputs, *rules, flags, *outputs)
        added = np.flatnonzero(flags == _ADDED)
        if len(added):
            self._store.append(take_rows(items, added))
        drawn_rows, positions, recency, times, easy = (column[:count] for column in outputs)
        refused = int(np.count_nonzero(flags == _REFUSED))
        return Draws(drawn_rows, positions, recency, times, easy.astype(bool), len(added), refused)

    @property
    def store(self) -> Sequence[pa.RecordBatch]:
        """The items by position, numbered through, in one batch or several; those that have left among them."""
        return self._store.batches or [record_batch.empty(self.schema)]

    def contents(self) -> Contents:
        """Everything that the pools hold."""
        size = len(self)
        columns = [np.empty(size, dtype) for dtype in (np.int64, np.uint64, np.int64, np.int64, np.int64)]
        self._books.export(*columns)
        channels, keys, positions, pushed, drawn = columns
        return Contents(channels, keys, pushed, drawn, take_rows_of(self.store, positions))

    def merge(self, contents: Contents) -> None:
        """Adds items with their counters, in order: of items that are there the counters add up.

        Raises: ValueError naming an item column that has another type than in the pools.
        """
        self._store.extend_schema(contents.items.schema)
        flags = np.zeros(len(contents.keys), np.uint8)
        columns = [np.ascontiguousarray(column) for column in contents[:4]]
        self._books.add(len(flags), *columns, flags)
        self._store.append(contents.items.take(pa.array(np.flatnonzero(flags == _ADDED))))
        self._compact()

    def save(self) -> bytes:
        """The contents as one Arrow IPC stream; ValueError when they are larger than `MAX_STATE_BYTES`."""
        contents = self.contents()
        arrays = [*map(pa.array, contents[:4]), *contents.items.columns]
        schema = pa.schema([*_BOOK, *contents.items.schema], metadata=_MARK)
        data = record_batch.encode_ipc(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if len(data) > MAX_STATE_BYTES:
            raise ValueError(
                f"the item pools take {len(data)} bytes, more than the limit of {MAX_STATE_BYTES}: lower max_item_num"
            )
        return data

    def restore(self, data: bytes) -> None:
        """Takes the contents that `save` gave in place of its own; ValueError for other bytes, which change nothing."""
        contents = _decode(data)
        fresh = ItemPool(self.start_num, self.max_item_num)
        fresh.merge(contents)
        self._books, fresh._books = fresh._books, self._books
        self._store = fresh._store

    def _compact(self) -> None:
        """Forgets items that have left, once they are most of the store."""
        if len(self._store) <= 2 * len(self) + _MIN_WASTE:
            return
        items = self.contents().items
        self._books.renumber()
        self._store.replace(items)


class _ItemStore:
    """Rows by position, appended and merged: n additions leave about log2(n) batches."""

    def __init__(self) -> None:
        self.schema = pa.schema([])
        self.batches: list[pa.RecordBatch] = []

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def extend_schema(self, schema: pa.Schema) -> None:
        """Takes columns that are new: earlier rows have nulls there. ValueError naming a column of another type."""
        new = [field for field in schema if not self._has(field)]
        if new:
            self.schema = pa.schema([*self.schema, *new])
            self.batches = [self._aligned(batch) for batch in self.batches]

    def append(self, rows: pa.RecordBatch) -> None:
        """Rows of a schema that `extend_schema` has seen."""
        if not rows.num_rows:
            return
        self.batches.append(self._aligned(rows))
        while len(self.batches) > 1 and 2 * self.batches[-1].num_rows >= self.batches[-2].num_rows:
            self.batches[-2:] = [pa.concat_batches(self.batches[-2:])]

    def replace(self, rows: pa.RecordBatch) -> None:
        self.batches = [rows]

    def _has(self, field: pa.Field) -> bool:
        index = self.schema.get_field_index(field.name)
        if index < 0:
            return False
        known = self.schema.field(index)
        if known.type != field.type or _kind(known) != _kind(field):
            raise ValueError(
                f"item column {field.name}: {field.type} of kind {_kind(field)} in this batch, "
                f"{known.type} of kind {_kind(known)} in the item pools"
            )
        return True

    def _aligned(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """`rows` with all columns of the schema, in its order; nulls for those that they lack."""
        columns = [record_batch.column_of(rows, field.name) for field in self.schema]
        arrays = [
            column if column is not None else pa.nulls(rows.num_rows, field.type)
            for column, field in zip(columns, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _kind(field: pa.Field) -> str:
    return (field.metadata or {}).get(record_batch.KIND_KEY, b"plain").decode()


def _decode(data: bytes) -> Contents:
    """Contents of a saved state; ValueError for anything else."""
    if len(data) > MAX_STATE_BYTES:
        raise ValueError(f"saved item pools of {len(data)} bytes: more than the limit of {MAX_STATE_BYTES}")
    batch = record_batch.decode_ipc(data)
    names = batch.schema.names
    is_pool = batch.schema.metadata == _MARK and list(batch.schema)[: len(_BOOK)] == list(_BOOK)
    if not is_pool or len(set(names)) < len(names):
        raise ValueError("an Arrow stream, but not of item pools")
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"saved item pools are damaged: {error}") from error
    book = batch.columns[: len(_BOOK)]
    if any(column.null_count for column in book):
        raise ValueError("saved item pools: a key or counter is null")
    channels, keys, pushed, drawn = (column.to_numpy() for column in book)
    return checked(Contents(channels, keys, pushed, drawn, batch.select(names[len(_BOOK) :])))


def checked(contents: Contents) -> Contents:
    """`contents` from outside; ValueError when a counter is out of range."""
    for counts in (contents.pushed, contents.drawn):
        if len(counts) and not 0 <= counts.min() <= counts.max() < _MAX_COUNT:
            raise ValueError("saved item pools: a counter is out of range")
    return contents


_ADDED, _REFUSED = 1, 2  # ItemPool::Pushed
_ROW_TYPES: Sequence[type[np.generic]] = (np.uint64, np.int64, np.uint8, np.uint8, np.uint64)
_DRAW_TYPES: Sequence[type[np.generic]] = (np.int64, np.int64, np.float64, np.int64, np.uint8)
