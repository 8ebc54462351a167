"""Rows a second of a recipe of eight steps on one core, step by step, beside the same rules row by row in Python.

python tests/benchmarks/bench_chain.py [--json] [--seconds 2]
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from transforms import record_batch
from transforms.fid import fid_v2
from transforms.list_columns import list_array, splits_of
from transforms.recipe import TransformChain, make_step

_ROWS = 4096
_BATCHES = 8
_ITEMS = 10_000
_Row = dict[str, Any]


def _recipe(features: int) -> str:
    names = [f"f{number}" for number in range(features)]
    tables = {name: {"table": "shared", "slice_dims": [1, 16]} for name in names}
    return json.dumps(
        {
            "seed": 7,
            "steps": [
                {"filter_by_value": {"field_name": "uid", "op": "gt", "int_operand": [100]}},
                {"none_of": {"predicates": [{"filter_by_fid": {"has_fids": [int(fid_v2(1, 5)), int(fid_v2(1, 6))]}}]}},
                {"add_label": {"task_label_configs": [{"pos_actions": [1, 2]}], "negative_value": 0}},
                {
                    "reweight": {
                        "action_priority": [2, 1],
                        "weights": [{"action": 2, "weight": 2, "label": 1}],
                        "emit": "WEIGHT",
                    }
                },
                {
                    "generate_negatives": {
                        "neg_num": 1,
                        "item_features": names[1 : max(2, features // 4)],
                        "start_num": 500,
                        "max_item_num": 10_000,
                    }
                },
                {"switch_slot": {"features": [{"feature_name": "f2", "slot": 301, "inplace": True}]}},
                {"project": {"feature_names": names}},
                {"shard_fids": {"ps_num": 4, "unique": True, "feature_configs": {"feature_configs": tables}}},
            ],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one case")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    for case in _cases(arguments.seconds):
        if arguments.json:
            print(json.dumps(case), flush=True)
        else:
            extra = "  ".join(
                f"{name}={value}" for name, value in case.items() if name not in ("case", "value", "unit")
            )
            print(f"{case['case']!s:<44} {case['value']:>12,.0f} {case['unit']}  {extra}", flush=True)


def _cases(seconds: float) -> Iterator[dict[str, object]]:
    for features in (8, 41):
        batches = [_batch(number, features) for number in range(_BATCHES)]
        ours = _chain_rate(batches, features, seconds)
        yield {"case": f"chain of 8 steps, {features} features", "value": round(ours), "unit": "rows/s"}
        theirs = _row_rate(batches, seconds)
        name = f"the same row by row (peer), {features} features"
        yield {"case": name, "value": round(theirs), "unit": "rows/s", "ratio": round(ours / theirs, 1)}
        if features == 8:
            yield from _step_cases(batches, features, seconds / 4)


def _batch(number: int, features: int) -> pa.RecordBatch:
    """Rows of 1 to 2 fids a feature; one in ten was clicked."""
    draw = np.random.default_rng(number)
    batch = record_batch.with_provenance(
        pa.record_batch({"__REQ_TIME__": pa.array(np.full(_ROWS, 1_764_000_000))}), first_offset=number * _ROWS
    )
    for slot in range(features):
        counts = draw.integers(1, 3, _ROWS)
        fids = fid_v2(slot, draw.zipf(1.2, int(counts.sum())) % 1_000_000)
        column = list_array(fids, splits_of(counts), pa.int64())
        batch = record_batch.with_column(batch, record_batch.fid_field(f"f{slot}"), column)
    acted = (draw.random(_ROWS) < 0.1).astype(np.int64)
    actions = list_array(draw.integers(1, 3, int(acted.sum())).astype(np.int32), splits_of(acted), pa.int32())
    for name, values in (
        ("__UID__", pa.array(draw.integers(0, 2000, _ROWS))),
        ("__ITEM_ID__", pa.array(draw.integers(0, _ITEMS, _ROWS))),
        ("__ACTIONS__", actions),
    ):
        batch = record_batch.with_column(batch, pa.field(name, values.type), values)
    return batch


def _chain_rate(batches: list[pa.RecordBatch], features: int, seconds: float) -> float:
    chain = TransformChain.parse(_recipe(features))
    for batch in batches:
        chain.process(batch)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        chain.process(batches[done % _BATCHES])
        done += 1
    return done * _ROWS / elapsed


def _step_cases(batches: list[pa.RecordBatch], features: int, seconds: float) -> Iterator[dict[str, object]]:
    """Each step alone, on what the steps before it make."""
    chain = TransformChain.parse(_recipe(features))
    for config, step in zip(chain.config.configs, chain.steps, strict=True):
        alone = make_step(config, step.context)
        counts = chain.counts[step.context.id]
        rows, spent, round_ = 0, 0.0, 0
        outputs = [alone.process(batch, counts) for batch in batches]
        while spent < seconds:
            batch = batches[round_ % _BATCHES]
            began = time.perf_counter()
            alone.process(batch, counts)
            spent += time.perf_counter() - began
            rows += batch.num_rows
            round_ += 1
        yield {"case": f"  step {step.context.id}", "value": round(rows / spent), "unit": "rows/s"}
        batches = outputs


def _row_rate(batches: list[pa.RecordBatch], seconds: float) -> float:
    rows = batches[0].to_pylist()
    rules = _RowRules([name for name in batches[0].schema.names if not name.startswith("__")])
    for row in rows:
        rules.process(row)
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        rules.process(rows[done % _ROWS])
        done += 1
        if done % _ROWS == 0:
            rules.end_batch()
    return done / elapsed


class _RowRules:
    """What a DoFn of one element a record does with the same recipe, in plain Python without detours."""

    def __init__(self, features: list[str]) -> None:
        self._features = features
        self._items = features[1 : max(2, len(features) // 4)]
        self._pool: list[tuple[int, _Row]] = []
        self._known: set[int] = set()
        self._blocked = {int(fid_v2(1, 5)), int(fid_v2(1, 6))}
        self._random = random.Random(7)
        self._shards: dict[tuple[str, int], dict[int, int]] = {}

    def process(self, row: _Row) -> list[_Row]:
        if row["__UID__"] <= 100 or any(fid in self._blocked for name in self._features for fid in row[name]):
            return []
        actions = row["__ACTIONS__"]
        row = row | {"__LABEL__": [1.0 if 1 in actions or 2 in actions else 0.0]}
        row["__WEIGHT__"] = 2.0 if 2 in actions else 1.0
        return [self._finish(each) for each in self._with_negatives(row)]

    def end_batch(self) -> None:
        self._shards.clear()

    def _with_negatives(self, row: _Row) -> list[_Row]:
        key = row["__ITEM_ID__"]
        if key not in self._known and len(self._known) < _ITEMS:
            self._known.add(key)
            self._pool.append((key, {name: row[name] for name in self._items}))
        if row["__LABEL__"][0] != 1.0 or len(self._pool) <= 500:
            return [row]
        other, item = self._random.choice(self._pool)
        while other == key:
            other, item = self._random.choice(self._pool)
        return [{**row, **item, "__ITEM_ID__": other, "__LABEL__": [-1.0]}, row]

    def _finish(self, row: _Row) -> _Row:
        row = row | {"f2": [(301 << 48) | (fid & 0xFFFFFFFFFFFF) for fid in row["f2"]]}
        row["offsets"] = [self._offset(name, fid) for name in self._features for fid in row[name]]
        return row

    def _offset(self, name: str, fid: int) -> int:
        shard = fid % 4
        seen = self._shards.setdefault((name, shard), {})
        return shard << 32 | seen.setdefault(fid, len(seen)) * 17


if __name__ == "__main__":
    main()
