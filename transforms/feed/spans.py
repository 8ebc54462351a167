"""Spans: which offsets of its source partitions a raw block covers, and how far a feed shard was given each partition.

A reader gives the records of a partition as adjoining spans. A span covers what lies between its records too: offsets
of control records, of records that compaction removed, and of records that are lost. Each feed shard gets a piece of
every block, with the block's spans, even if none of its rows belongs to the shard. A runner may give bundles in any
order, so a shard keeps the spans that do not adjoin yet.
"""

import bisect
import json
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch

_SPANS_KEY = b"millrace.spans"
_SPAN = struct.Struct("<4q")  # the fields of `Span`: a block has few, so that this is the cheapest form
_MAX_RUNS = 64  # up to so many runs of rows of one partition, a loop is cheaper than sorting the rows


class Span(NamedTuple):
    """Offsets [before, after) of a source partition; `begin` is where this reader began to read it."""

    source_partition: int
    begin: int
    before: int
    after: int


def with_spans(batch: pa.RecordBatch, spans: Iterable[Span] | None) -> pa.RecordBatch:
    """`batch` with these spans in its schema's metadata; None removes the spans it has."""
    return _with_packed(batch, None if spans is None else _packed(spans))


def spans_of(batch: pa.RecordBatch) -> list[Span] | None:
    """The spans of a raw block, or of a piece of its rows; None when the source gives none."""
    packed = (batch.schema.metadata or {}).get(_SPANS_KEY)
    return None if packed is None else list(map(Span._make, _SPAN.iter_unpack(packed)))


def _packed(spans: Iterable[Span]) -> bytes:
    return b"".join(_SPAN.pack(*span) for span in spans)


def _with_packed(batch: pa.RecordBatch, packed: bytes | None) -> pa.RecordBatch:
    metadata = batch.schema.metadata or {}
    metadata.pop(_SPANS_KEY, None)
    if packed is not None:
        metadata[_SPANS_KEY] = packed
    return batch.replace_schema_metadata(metadata or None)


def shard_pieces(
    parts: Iterable[tuple[int, pa.RecordBatch]], rows: pa.RecordBatch, block: pa.RecordBatch, shards: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(feed shard, its piece of a raw block): one for each shard when the block has spans, else those with rows.

    Args:
      parts: (feed shard, rows), the rows of `block` by shard.
      rows: all rows; only their schema counts.
    """
    packed = (block.schema.metadata or {}).get(_SPANS_KEY)
    if packed is None:
        yield from ((number, part) for number, part in parts if part.num_rows)
        return
    by_shard = dict(parts)
    nothing = _with_packed(rows.slice(0, 0), packed) if len(by_shard) < shards else None
    for number in range(shards):
        part = by_shard.get(number)
        yield number, nothing if part is None else _with_packed(part, packed)


class GivenSpans:
    """How far a feed shard was given each source partition, without a gap.

    Args:
      saved: what `save` returned; None for a shard that was given nothing.
    """

    def __init__(self, saved: str | None = None) -> None:
        self._ends: dict[int, int] = {}
        self._later: dict[int, list[tuple[int, int]]] = {}
        for number, end, later in json.loads(saved) if saved else ():
            self._ends[number], self._later[number] = end, [(first, after) for first, after in later]

    def take(self, spans: Iterable[Span]) -> None:
        """Takes the spans of a piece, which the shard may have been given before."""
        for number, begin, before, after in spans:
            end = self._ends.setdefault(number, begin)
            later = self._later.setdefault(number, [])
            if before > end:
                bisect.insort(later, (before, after))
                continue
            end = max(end, after)
            while later and later[0][0] <= end:
                end = max(end, later.pop(0)[1])
            self._ends[number] = end

    def ends(self) -> Mapping[int, int]:
        """{source partition: offset below which the shard was given everything since the feed began to read it}."""
        return self._ends

    def save(self) -> str:
        """As JSON."""
        return json.dumps([[number, end, self._later[number]] for number, end in self._ends.items()])


def lowest_offsets(source_partitions: np.ndarray, offsets: np.ndarray) -> dict[int, int]:
    """{source partition: lowest offset} of rows; both arguments are int64 [rows]."""
    if not len(offsets):
        return {}
    starts = np.flatnonzero(source_partitions[1:] != source_partitions[:-1]) + 1
    if len(starts) < _MAX_RUNS:  # rows come from blocks, in which the records of a partition lie together
        starts = np.concatenate([[0], starts])
        runs = zip(source_partitions[starts].tolist(), np.minimum.reduceat(offsets, starts).tolist(), strict=True)
        return lowest_of({number: offset} for number, offset in runs)
    numbers, index = np.unique(source_partitions, return_inverse=True)
    lowest = np.full(len(numbers), offsets.max())
    np.minimum.at(lowest, index, offsets)
    return dict(zip(numbers.tolist(), lowest.tolist(), strict=True))


def lowest_of(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """{source partition: its lowest offset in any of `parts`}."""
    lowest: dict[int, int] = {}
    for part in parts:
        for number, offset in part.items():
            if offset < lowest.get(number, offset + 1):
                lowest[number] = offset
    return lowest


class LowestHeld:
    """The lowest offset per source partition of groups of rows that leave in the order in which they came.

    Offsets mostly ascend, so that the first group has the lowest ones: each is looked at about once.
    """

    def __init__(self) -> None:
        # By source partition: (number of the group, offset), both ascending; what a later group undercuts is left out.
        self._lowest: dict[int, deque[tuple[int, int]]] = {}
        self._first, self._next = 0, 0

    def add_group(self) -> None:
        """From now on `add` is about a new group."""
        self._next += 1

    def add(self, lowest: Mapping[int, int]) -> None:
        """Rows with these offsets, {source partition: the lowest}, came into the newest group."""
        for number, offset in lowest.items():
            queue = self._lowest.setdefault(number, deque())
            while queue and queue[-1][1] >= offset:
                queue.pop()
            queue.append((self._next - 1, offset))

    def remove_group(self) -> None:
        """The oldest group has gone."""
        for number in list(self._lowest):
            queue = self._lowest[number]
            while queue and queue[0][0] <= self._first:
                queue.popleft()
            if not queue:
                del self._lowest[number]
        self._first += 1

    def lowest(self) -> dict[int, int]:
        """{source partition: lowest offset of all groups}."""
        return {number: queue[0][1] for number, queue in self._lowest.items()}


def rows_lowest(rows: pa.RecordBatch) -> dict[int, int]:
    """{source partition: lowest offset} of rows with provenance."""
    return lowest_offsets(
        record_batch.numpy_column(rows, record_batch.SOURCE_PARTITION),
        record_batch.numpy_column(rows, record_batch.SOURCE_OFFSET),
    )
