"""Compares the rows of two sources by key. Memory holds two digests per row, 16 bytes, however wide the rows are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.pipelines.records.source import DeadLetterCounts, ReadProgress, RecordSource
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.hashes import mix64
from millrace.transforms.batch.provenance import PROVENANCE
from millrace.transforms.batch.row_digest import row_digests, value_digests
from millrace.transforms.codecs.json_writer import json_lines

# Changed rows whose columns are compared: enough to tell which columns differ, few enough to be held in memory whole.
_MAX_EXAMINED = 10_000
# Rows that are held for that: with keys that several rows have, a changed row brings others of its key along.
_MAX_FOUND = 4 * _MAX_EXAMINED


class DifferingRow(NamedTuple):
    """JSON texts of a row that one source has (the other is None), or of what differs in a pair of rows."""

    a: str | None
    b: str | None


@dataclass
class Difference:
    """How two sources differ; each pair is (of A, of B).

    Attributes:
      rows: numbers of rows that were compared.
      refused: records that could not be read.
      only: numbers of rows whose key the other source lacks, or has less often.
      changed: number of pairs of rows with one key and different content.
      columns: {column: rows in which it differs} among the first 10,000 changed rows.
      same_order: whether equal rows stand in the same order; None where rows differ.
      examples: some rows that differ.
    """

    rows: tuple[int, int]
    refused: tuple[DeadLetterCounts, DeadLetterCounts]
    only: tuple[int, int] = (0, 0)
    changed: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    same_order: bool | None = None
    examples: list[DifferingRow] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (any(self.only) or self.changed)


class _Digests(NamedTuple):
    """Keys (digests of key columns) and marks (digests of whole rows), uint64 [rows] each, in the source's order."""

    keys: np.ndarray
    marks: np.ndarray
    refused: DeadLetterCounts


class _Leftovers(NamedTuple):
    """Rows without an equal on the other side: keys and marks, uint64 [n]; how many A and B have, int64 [n, 2]."""

    keys: np.ndarray
    marks: np.ndarray
    counts: np.ndarray


class _Keys(NamedTuple):
    """Keys of leftovers, uint64 [n] ascending; their rows in A and B, int64 [n, 2]; how many of these form pairs."""

    keys: np.ndarray
    counts: np.ndarray
    changed: np.ndarray


class _Found(NamedTuple):
    """Rows that differ, sorted by key; `at`, int64 [n], are places in `_Keys`, `rank` numbers the rows of one key."""

    rows: pa.RecordBatch
    at: np.ndarray
    rank: np.ndarray

    def take(self, chosen: np.ndarray) -> pa.RecordBatch:
        return self.rows.take(pa.array(chosen, pa.int64()))


class RecordDiff:
    """Compares two sources.

    Args:
      key: columns that tell which rows belong together; columns of the provenance that are not in the key are ignored.
      progress: called after each part of either source.
    """

    def __init__(self, a: RecordSource, b: RecordSource, key: Sequence[str], progress: ReadProgress) -> None:
        self._sources, self._key, self._progress = (a, b), tuple(key), progress

    def run(self, limit: int) -> Difference:
        """The difference, with up to `limit` examples each of rows only in A, rows only in B and changed rows.

        Raises: UserError where a source lacks a column of the key.
        """
        a, b = (self._digests(source) for source in self._sources)
        result = Difference((len(a.keys), len(b.keys)), (a.refused, b.refused))
        leftovers = _leftovers(a, b)
        if not len(leftovers.keys):
            result.same_order = bool(np.array_equal(a.marks, b.marks))
            return result
        keys = _by_key(leftovers)
        only = keys.counts - keys.changed[:, None]
        result.only = (int(only[:, 0].sum()), int(only[:, 1].sum()))
        result.changed = int(keys.changed.sum())
        self._explain(result, leftovers, keys, limit)
        return result

    def _digests(self, source: RecordSource) -> _Digests:
        keys, marks, refused = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], DeadLetterCounts()
        for part in source.parts():
            self._progress(part.done, part.rows.num_rows)
            refused.add(part.dead)
            if part.rows.num_rows:
                of_key, of_row = self._marks(part.rows, source)
                keys.append(of_key)
                marks.append(of_row)
        return _Digests(np.concatenate(keys), np.concatenate(marks), refused)

    def _marks(self, rows: pa.RecordBatch, source: RecordSource) -> tuple[np.ndarray, np.ndarray]:
        for name in self._key:
            if name not in rows.schema.names:
                found = ", ".join(rows.schema.names)
                raise UserError("--key", name, f"{source.name} has no such column", f"choose of {found}")
        keys = row_digests(rows, self._key)
        return keys, mix64(keys + mix64(row_digests(rows, self._compared(rows.schema))))

    def _compared(self, schema: pa.Schema) -> list[str]:
        return [name for name in schema.names if name not in self._key and name not in PROVENANCE]

    def _explain(self, result: Difference, leftovers: _Leftovers, keys: _Keys, limit: int) -> None:
        """Reads the sources again for rows that differ, to show some and to count the columns that differ."""
        changed = np.flatnonzero(keys.changed)[:_MAX_EXAMINED]
        sides, pairs = [], []
        for side, source in enumerate(self._sources):
            only = np.flatnonzero(keys.counts[:, side] > keys.changed)[:limit]
            found = self._find(source, leftovers, keys, side, np.union1d(changed, only))
            extra = found.take(np.flatnonzero((found.rank >= keys.changed[found.at]) & np.isin(found.at, only))[:limit])
            for text in json_lines(extra, "unsigned").to_pylist():
                result.examples.append(DifferingRow(text, None) if side == 0 else DifferingRow(None, text))
            sides.append(found)
            paired = (found.rank < keys.changed[found.at]) & np.isin(found.at, changed)
            pairs.append(np.where(paired, found.at * _MAX_FOUND + found.rank, -1 - side))
        _, in_a, in_b = np.intersect1d(pairs[0], pairs[1], return_indices=True)
        self._compare(result, sides[0].take(in_a), sides[1].take(in_b), limit)

    def _find(self, source: RecordSource, leftovers: _Leftovers, keys: _Keys, side: int, chosen: np.ndarray) -> _Found:
        """The leftover rows of `source` whose keys stand at `chosen` in `keys`."""
        wanted = np.isin(leftovers.keys, keys.keys[chosen])
        marks = leftovers.marks[(leftovers.counts[:, side] > 0) & wanted]
        found, of_key = [], [np.zeros(0, np.uint64)]
        for rows, row_keys, row_marks in self._marked(source):
            hits = np.isin(row_marks, marks)
            if hits.any():
                found.append(rows.filter(pa.array(hits)))
                of_key.append(row_keys[hits])
            if sum(map(len, of_key)) > _MAX_FOUND:
                break
        row_keys = np.concatenate(of_key)
        order = np.argsort(row_keys, kind="stable")
        at = np.searchsorted(keys.keys, row_keys[order])
        rank = np.arange(len(at)) - np.searchsorted(at, at)
        within = rank < keys.counts[at, side]
        return _Found(_joined(found, source).take(pa.array(order[within])), at[within], rank[within])

    def _marked(self, source: RecordSource) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray]]:
        """(rows, digests of their keys, their marks) of each part."""
        for part in source.parts():
            self._progress(part.done, part.rows.num_rows)
            if part.rows.num_rows:
                yield part.rows, *self._marks(part.rows, source)

    def _compare(self, result: Difference, a: pa.RecordBatch, b: pa.RecordBatch, limit: int) -> None:
        """Counts the columns in which the pairs (a[i], b[i]) differ, and keeps some pairs as examples."""
        names = list(dict.fromkeys([*self._compared(a.schema), *self._compared(b.schema)]))
        differs = {}
        for name in names:
            columns = (record_batch.column_of(each, name) for each in (a, b))
            left, right = (value_digests(pa.nulls(len(a)) if each is None else each) for each in columns)
            differs[name] = left != right
            if differs[name].any():
                result.columns[name] = int(differs[name].sum())
        for row in range(min(limit, a.num_rows)):
            changed = [*self._key, *(name for name in names if differs[name][row])]
            result.examples.append(DifferingRow(_text(a, row, changed), _text(b, row, changed)))


def _text(rows: pa.RecordBatch, row: int, names: Sequence[str]) -> str:
    chosen = rows.slice(row, 1).select([name for name in names if name in rows.schema.names])
    return str(json_lines(chosen, "unsigned")[0].as_py())


def _joined(batches: list[pa.RecordBatch], source: RecordSource) -> pa.RecordBatch:
    try:
        return record_batch.concat(batches, pa.schema([]))
    except ValueError as error:
        raise UserError("SOURCE", source.name, str(error), "convert its records apart") from error


def _leftovers(a: _Digests, b: _Digests) -> _Leftovers:
    marks, first, inverse = np.unique(np.concatenate([a.marks, b.marks]), return_index=True, return_inverse=True)
    counts = np.stack([np.bincount(side, minlength=len(marks)) for side in np.split(inverse, [len(a.marks)])], axis=1)
    counts -= counts.min(axis=1)[:, None]
    left = counts.any(axis=1)
    return _Leftovers(np.concatenate([a.keys, b.keys])[first[left]], marks[left], counts[left])


def _by_key(leftovers: _Leftovers) -> _Keys:
    keys, inverse = np.unique(leftovers.keys, return_inverse=True)
    counts = np.zeros((len(keys), 2), np.int64)
    np.add.at(counts, inverse, leftovers.counts)
    return _Keys(keys, counts, counts.min(axis=1))
