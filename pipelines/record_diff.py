"""Compares the rows of two sources by key: 16 bytes a row are held in memory, whatever rows are made of."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.record_access import RecordSource
from pipelines.record_convert import Progress
from runtime.errors import UserError
from transforms import record_batch
from transforms.json_text import json_lines
from transforms.row_digest import row_digests, value_digests

PROVENANCE = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)

_MAX_EXAMINED = 10_000


class Digests(NamedTuple):
    """uint64 [rows] each, in the order of the source: of the key, and of everything else."""

    keys: np.ndarray
    contents: np.ndarray


@dataclass
class Difference:
    """How two sources differ.

    Attributes:
      rows: of A and B.
      only: rows whose key the other one does not have, or not as often.
      changed: rows of one key and different content.
      columns: {column: rows} that changed, of the first 10,000 changed rows.
      same_order: whether the rows that both have stand in the same order; None where rows differ.
      examples: JSON texts of (what: "only_a", "only_b", "a", "b"; row); a changed row is there twice, with its key and
        the columns that changed.
    """

    rows: tuple[int, int]
    only: tuple[int, int]
    changed: int
    columns: Counter[str] = field(default_factory=Counter)
    same_order: bool | None = None
    examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not (any(self.only) or self.changed)


class Comparison:
    """Args:
    key: columns that tell which rows belong together.
    progress: is told each part that was read.
    """

    def __init__(self, a: RecordSource, b: RecordSource, key: Sequence[str], progress: Progress) -> None:
        self._sources, self._key, self._progress = (a, b), tuple(key), progress

    def run(self, limit: int) -> Difference:
        """The difference, with `limit` examples of each kind at most.

        Raises: UserError where a source lacks a column of the key.
        """
        a, b = (self._digests(source) for source in self._sources)
        left_a, left_b = _without_common(a, b)
        keys, counts = _by_key(left_a, left_b)
        changed = counts.min(axis=1)
        only = counts - changed[:, None]
        result = Difference((len(a.keys), len(b.keys)), (int(only[:, 0].sum()), int(only[:, 1].sum())), int(changed.sum()))
        if result.equal:
            result.same_order = bool(np.array_equal(a.keys, b.keys) and np.array_equal(a.contents, b.contents))
            return result
        self._explain(result, _Chosen(keys, only, changed, limit), left_a, left_b)
        return result

    def _digests(self, source: RecordSource) -> Digests:
        keys, contents = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for rows in self._rows(source):
            keys.append(self._keys(rows, source))
            contents.append(row_digests(rows, self._compared(rows.schema)))
        return Digests(np.concatenate(keys), np.concatenate(contents))
