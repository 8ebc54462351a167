"""Spans: which offsets of its source partitions a raw block covers, and how far a feed shard was given each partition.

A reader gives the records of a partition as adjoining spans. A span covers what lies between its records too: offsets
of control records, of records that compaction removed, and of records that are lost. Each feed shard gets a piece of
every block, with the block's spans, even if none of its rows belongs to the shard. A runner may give bundles in any
order, so a shard keeps the spans that do not adjoin yet.
"""

import bisect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch

_SPANS_KEY = b"millrace.spans"


class Span(NamedTuple):
    """Offsets [before, after) of a source partition; `begin` is where this reader began to read it."""

    source_partition: int
    begin: int
    before: int
    after: int


def with_spans(batch: pa.RecordBatch, spans: Iterable[Span] | None) -> pa.RecordBatch:
    """`batch` with these spans in its schema's metadata; None removes the spans it has."""
    metadata = dict(batch.schema.metadata or {})
    metadata.pop(_SPANS_KEY, None)
    if spans is not None:
        metadata[_SPANS_KEY] = json.dumps(list(spans), separators=(",", ":")).encode("ascii")
    return batch.replace_schema_metadata(metadata or None)


def spans_of(batch: pa.RecordBatch) -> list[Span] | None:
    """The spans of a raw block, or of a piece of its rows; None when the source gives none."""
    text = (batch.schema.metadata or {}).get(_SPANS_KEY)
    return None if text is None else [Span(*each) for each in json.loads(text)]


def shard_pieces(
    parts: Iterable[tuple[int, pa.RecordBatch]], rows: pa.RecordBatch, block: pa.RecordBatch, shards: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(feed shard, its piece of a raw block): one for each shard when the block has spans, else those with rows.

    Args:
      parts: (feed shard, rows), the rows of `block` by shard.
      rows: all rows; only their schema counts.
    """
    spans = spans_of(block)
    if spans is None:
        yield from ((number, part) for number, part in parts if part.num_rows)
        return
    by_shard = dict(parts)
    nothing = rows.slice(0, 0)
    for number in range(shards):
        yield number, with_spans(by_shard.get(number, nothing), spans)


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


def rows_lowest(rows: pa.RecordBatch) -> dict[int, int]:
    """{source partition: lowest offset} of rows with provenance."""
    return lowest_offsets(
        record_batch.numpy_column(rows, record_batch.SOURCE_PARTITION),
        record_batch.numpy_column(rows, record_batch.SOURCE_OFFSET),
    )
