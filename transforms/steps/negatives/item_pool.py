"""Pools of items that negatives are drawn from: one first-in-first-out pool per channel.

C++ keeps the keys, the order and the counters of the items (`ops/cc/records/rows/item_pool.h`). The columns of the
items are rows of Arrow batches that are merged as they grow, so that the cost of a batch of rows depends on the items
that it adds and draws, not on the number of items that the pools hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.ops.record_library import ItemPoolBooks
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.take_rows import take_rows, take_rows_of

MAX_CHANNELS = 1 << 16
"""Most pools, so that a wrong channel feature cannot fill the memory: items of further channels are refused."""

MAX_STATE_BYTES = 1 << 30
"""Largest saved state in bytes: half of the 2 GiB that a protobuf message, in which runners keep it, may have."""

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
    """All items, pool after pool in the order in which the pools were made, and in each pool the oldest item first.

    Attributes:
      channels: int64 [n].
      keys: uint64 [n].
      pushed: int64 [n], how often the item came.
      drawn: int64 [n], how often the item was drawn.
      items: the item columns, [n] rows.
    """

    channels: np.ndarray
    keys: np.ndarray
    pushed: np.ndarray
    drawn: np.ndarray
    items: pa.RecordBatch


class DrawRule(NamedTuple):
    """How negatives are drawn for a row.

    Attributes:
      times: largest number of draws per row; the first that finds no item is the row's last.
      easy_ratio: probability, in [0, 1], that the pool is drawn as well: among all pools, by their sizes.
      allow_own: whether the row's own item may be drawn.
    """

    times: int
    easy_ratio: float = 0.0
    allow_own: bool = False


class Draws(NamedTuple):
    """The draws that found an item, in the order of the rows.

    Attributes:
      rows: int64 [n], the row that drew.
      positions: int64 [n], the item that was drawn: its row in `ItemPool.store`, until the next item is pushed.
      recency: float64 [n], (index + 1) / size of the pool: 1 for its newest item.
      times: int64 [n], how often the item has been drawn, this time included.
      easy: bool [n], whether the pool was drawn as well.
      added: number of items that were new in their pools.
      refused: number of items whose channel would have been one too many.
    """

    rows: np.ndarray
    positions: np.ndarray
    recency: np.ndarray
    times: np.ndarray
    easy: np.ndarray
    added: int
    refused: int


class ItemPool:
    """Pools by channel. Not thread-safe. Results depend on the rows alone, not on how they are cut into batches.

    An item that comes again is counted, and keeps its position and its columns. When it has become the oldest item it
    leaves, and may enter again with new columns, so that no column is older than one turn of the pool.

    Args:
      start_num: a pool is drawn from when it holds more items than this.
      max_item_num: largest number of items per pool; when there are more the oldest one leaves.
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
        """The schema of the item columns."""
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
        """For one row after the other: the row's item enters its pool, then negatives are drawn for the row.

        Args:
          items: the item columns of the rows, [n] rows.
          keys: uint64 [n], the key of the row's item.
          channels: int64 [n], the channel whose pool the row uses.
          push: bool [n], whether the row's item enters its pool.
          draw: bool [n], whether negatives are drawn for the row.
          random: uint64 [n], a hash of the row's provenance, from which all random choices for the row follow.

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
        """The items by position in one batch or several, numbered through. Some of them have left their pools."""
        return self._store.batches or [record_batch.empty(self.schema)]

    def contents(self) -> Contents:
        """All items that the pools hold, with their counters."""
        size = len(self)
        columns = [np.empty(size, dtype) for dtype in (np.int64, np.uint64, np.int64, np.int64, np.int64)]
        self._books.export(*columns)
        channels, keys, positions, pushed, drawn = columns
        return Contents(channels, keys, pushed, drawn, take_rows_of(self.store, positions))

    def merge(self, contents: Contents) -> None:
        """Adds items with their counters, in order. The counters of an item that is there already are added up.

        Raises: ValueError naming an item column that has another type than in the pools.
        """
        self._store.extend_schema(contents.items.schema)
        flags = np.zeros(len(contents.keys), np.uint8)
        columns = [np.ascontiguousarray(column) for column in contents[:4]]
        self._books.add(len(flags), *columns, flags)
        self._store.append(contents.items.take(pa.array(np.flatnonzero(flags == _ADDED))))
        self._compact()

    def save(self) -> bytes:
        """The contents as one Arrow IPC stream; ValueError when it is larger than `MAX_STATE_BYTES`."""
        contents = self.contents()
        arrays = [*map(pa.array, contents[:4]), *contents.items.columns]
        schema = pa.schema([*_BOOK, *contents.items.schema], metadata=_MARK)
        data = record_batch.to_bytes(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if len(data) > MAX_STATE_BYTES:
            raise ValueError(
                f"the item pools take {len(data)} bytes, more than the limit of {MAX_STATE_BYTES}: lower max_item_num"
            )
        return data

    def restore(self, data: bytes) -> None:
        """Replaces the contents by what `save` returned; ValueError for other bytes, which change nothing."""
        contents = _decode(data)
        fresh = ItemPool(self.start_num, self.max_item_num)
        fresh.merge(contents)
        self._books, fresh._books = fresh._books, self._books
        self._store = fresh._store

    def _compact(self) -> None:
        """Removes the columns of items that have left, once these items are most of the store."""
        if len(self._store) <= 2 * len(self) + _MIN_WASTE:
            return
        items = self.contents().items
        self._books.renumber()
        self._store.replace(items)


class _ItemStore:
    """Rows by position. Batches are merged as they are appended: after n additions there are about log2(n)."""

    def __init__(self) -> None:
        self.schema = pa.schema([])
        self.batches: list[pa.RecordBatch] = []

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def extend_schema(self, schema: pa.Schema) -> None:
        """Adds the columns that are new, with nulls in earlier rows. ValueError naming a column of another type."""
        new = [field for field in schema if not self._has(field)]
        if new:
            self.schema = pa.schema([*self.schema, *new])
            self.batches = [self._aligned(batch) for batch in self.batches]

    def append(self, rows: pa.RecordBatch) -> None:
        """Adds rows, whose columns `extend_schema` must know."""
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
        """`rows` with all columns of the schema, in its order, with nulls in those that they lack."""
        columns = [record_batch.column_of(rows, field.name) for field in self.schema]
        arrays = [
            column if column is not None else pa.nulls(rows.num_rows, field.type)
            for column, field in zip(columns, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _kind(field: pa.Field) -> str:
    return (field.metadata or {}).get(record_batch.KIND_KEY, b"plain").decode()


def _decode(data: bytes) -> Contents:
    """The contents in a saved state; ValueError for anything else."""
    if len(data) > MAX_STATE_BYTES:
        raise ValueError(f"saved item pools of {len(data)} bytes: more than the limit of {MAX_STATE_BYTES}")
    batch = record_batch.from_bytes(data)
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
    """`contents` that were read from bytes; ValueError when a counter is out of range."""
    for counts in (contents.pushed, contents.drawn):
        if len(counts) and not 0 <= counts.min() <= counts.max() < _MAX_COUNT:
            raise ValueError("saved item pools: a counter is out of range")
    return contents


_ADDED, _REFUSED = 1, 2  # ItemPool::Pushed
_ROW_TYPES: Sequence[type[np.generic]] = (np.uint64, np.int64, np.uint8, np.uint8, np.uint64)
_DRAW_TYPES: Sequence[type[np.generic]] = (np.int64, np.int64, np.float64, np.int64, np.uint8)
