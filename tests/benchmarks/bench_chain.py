"""Rows a second of processor time of a recipe of eight steps, step by step, beside the same rules row by row in Python.

python tests/benchmarks/bench_chain.py [--json] [--seconds 2]
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v2
from millrace.transforms.batch.list_columns import list_array, splits_of
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.recipe.chain import TransformChain, make_step
from millrace.transforms.recipe.text import parse_recipe
from millrace.transforms.steps.step import Counts
from tests.benchmarks.chain_peer import ITEMS, RowRules
from tests.reference.chain_reference import ReferenceChain

_ROWS = 8192  # as blocks of files have
_BATCHES = 8


def recipe(features: int) -> str:
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
        batches = [example_batch(number, features) for number in range(_BATCHES)]
        ours = _chain_rate(batches, features, seconds)
        yield _case(f"chain of 8 steps, {features} features", ours)
        yield _case(f"  a record at a time, {features} features (peer)", _peer_rate(batches, seconds), ours)
        yield _case(f"  the tests' row-wise reference, {features} features", _reference_rate(batches, features), ours)
        if features == 8:
            yield from _step_cases(batches, features, seconds / 4)


def _case(name: str, rate: float, ours: float = 0.0) -> dict[str, object]:
    return {"case": name, "value": round(rate), "unit": "rows/s"} | ({"ratio": round(ours / rate, 1)} if ours else {})


def example_batch(number: int, features: int) -> pa.RecordBatch:
    """Rows of 1 to 2 fids a feature; one in ten was clicked."""
    draw = np.random.default_rng(number)
    batch = with_provenance(
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
        ("__ITEM_ID__", pa.array(draw.integers(0, ITEMS, _ROWS))),
        ("__ACTIONS__", actions),
    ):
        batch = record_batch.with_column(batch, pa.field(name, values.type), values)
    return batch


def _chain_rate(batches: list[pa.RecordBatch], features: int, seconds: float) -> float:
    chain = TransformChain.parse(recipe(features))
    for batch in batches:
        chain.process(batch)
    return _rate(chain.process, batches, seconds, _ROWS)


def _rate(work: Callable[[Any], object], inputs: Sequence[Any], seconds: float, rows: int) -> float:
    """Rows a second of processor time; `rows` are in each of the inputs, which come round and round."""
    done, began = 0, time.thread_time()
    while (elapsed := time.thread_time() - began) < seconds:
        work(inputs[done % len(inputs)])
        done += 1
    return done * rows / elapsed


def _step_cases(batches: list[pa.RecordBatch], features: int, seconds: float) -> Iterator[dict[str, object]]:
    """Each step alone, on what the steps before it make."""
    chain = TransformChain.parse(recipe(features))
    for config, step in zip(chain.config.configs, chain.steps, strict=True):
        process = functools.partial(make_step(config, step.context).process, counts=Counts())
        outputs = [process(batch) for batch in batches]
        rows = sum(batch.num_rows for batch in batches) // _BATCHES
        yield _case(f"  step {step.context.id}", _rate(process, batches, seconds, rows))
        batches = outputs


def _peer_rate(batches: list[pa.RecordBatch], seconds: float) -> float:
    rules = RowRules([name for name in batches[0].schema.names if not name.startswith("__")])

    def process(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            rules.process(row)
        rules.end_batch()

    inputs = [batch.to_pylist() for batch in batches[:2]]
    for rows in inputs:
        process(rows)
    return _rate(process, inputs, seconds, _ROWS)


def _reference_rate(batches: list[pa.RecordBatch], features: int) -> float:
    """Of one batch: the reference is slow, and grows slower with what its pool holds."""
    chain = ReferenceChain(parse_recipe(recipe(features)).config, batches[0].schema)
    rows, began = batches[0].to_pylist(), time.thread_time()
    chain.sharded(chain.rows(rows))
    return _ROWS / (time.thread_time() - began)


if __name__ == "__main__":
    main()
