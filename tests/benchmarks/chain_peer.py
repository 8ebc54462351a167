"""The recipe of `bench_chain.py` as a DoFn of one element per record does it: plain Python over dictionaries."""

import random
from typing import Any

from millrace.transforms.batch.fid import fid_v2

ITEMS = 10_000

Row = dict[str, Any]


class RowRules:
    """All rules in one call per row, without detours: rows share what does not change.

    Args:
      features: names; the first quarter, without the first one, is the item's.
    """

    def __init__(self, features: list[str]) -> None:
        self._features = features
        self._items = features[1 : max(2, len(features) // 4)]
        self._pool: list[tuple[int, Row]] = []
        self._known: set[int] = set()
        self._drawn: dict[int, int] = {}
        self._blocked = {int(fid_v2(1, 5)), int(fid_v2(1, 6))}
        self._random = random.Random(7)
        self._shards: dict[tuple[str, int], dict[int, int]] = {}

    def process(self, row: Row) -> list[Row]:
        if row["__UID__"] <= 100 or any(fid in self._blocked for name in self._features for fid in row[name]):
            return []
        actions = row["__ACTIONS__"]
        row = row | {"__LABEL__": [1.0 if 1 in actions or 2 in actions else 0.0], "__SAMPLE_RATE__": 1.0}
        row["__WEIGHT__"] = 2.0 if 2 in actions else 1.0
        return [self._finish(each) for each in self._with_negatives(row)]

    def end_batch(self) -> None:
        self._shards.clear()

    def _with_negatives(self, row: Row) -> list[Row]:
        key = row["__ITEM_ID__"]
        if key not in self._known and len(self._known) < ITEMS:
            self._known.add(key)
            self._pool.append((key, {name: row[name] for name in self._items}))
        if row["__LABEL__"][0] != 1.0 or len(self._pool) <= 500:
            return [row]
        other = key
        while other == key:
            index = self._random.randrange(len(self._pool))
            other, item = self._pool[index]
        times = self._drawn[other] = self._drawn.get(other, 0) + 1
        weight = row["__WEIGHT__"] * (1.0 + (index + 1) / len(self._pool) / times)
        drawn = {"__ITEM_ID__": other, "__LABEL__": [-1.0], "__WEIGHT__": weight, "__SOURCE_ROW__": 64}
        return [{**row, **item, **drawn}, row]

    def _finish(self, row: Row) -> Row:
        row = row | {"f2": [(301 << 48) | (fid & 0xFFFFFFFFFFFF) for fid in row["f2"]]}
        row["offsets"] = [self._offset(name, fid) for name in self._features for fid in row[name]]
        return row

    def _offset(self, name: str, fid: int) -> int:
        shard = fid % 4
        seen = self._shards.setdefault((name, shard), {})
        return shard << 32 | seen.setdefault(fid, len(seen)) * 17
