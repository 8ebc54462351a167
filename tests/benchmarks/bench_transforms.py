"""Events a second of decode, join and label on one core, beside a plain row-wise decoder.

python tests/benchmarks/bench_transforms.py [--json] [--seconds 2]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from millrace.pipelines.traffic.producer import impression_values
from millrace.pipelines.traffic.source import GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import PARTITIONS_PER_SOURCE
from millrace.transforms.batch.raw_block import raw_block, raw_topic
from millrace.transforms.feed import events as event_codec
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.event_schemas import PLACED_ACTION_SCHEMA
from millrace.transforms.feed.join import JoinIndex
from millrace.transforms.feed.train_rows import rows_to_train_batch

_NOW = 1_764_000_000_000
_CONFIG = FeedConfig(
    "bench",
    (
        FidFeature("user", 1, "user_id"),
        FidFeature("item", 2, "item_id"),
        FidFeature("device", 3, "context.device"),
        FidFeature("hour", 4, "context.hour", "int64"),
    ),
    (LabelRule("click", ("click", "like")),),
    audit=True,
)
_BLOCK = 2000
_BUNDLE_MS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one case")
    arguments = parser.parse_args()
    for case, events, unit, work in _cases():
        rounds, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < arguments.seconds:
            work()
            rounds += 1
        value = events * rounds / elapsed
        if arguments.json:
            print(json.dumps({"case": case, "value": round(value), "unit": unit}), flush=True)
        else:
            print(f"{case:<44} {value:>14,.0f} {unit}", flush=True)


def _cases() -> Iterator[tuple[str, int, str, Callable[[], object]]]:
    """(case, events per call, unit, call)."""
    impressions, actions = _raw_impressions(_BLOCK), _raw_actions(_BLOCK)
    context = _CONFIG.context_fields()
    yield (
        "decode impressions of 3 items",
        _BLOCK,
        "events/s",
        lambda: event_codec.decode_impressions(impressions, context, _NOW),
    )
    yield "decode impressions, row by row (peer)", _BLOCK, "events/s", lambda: _decode_by_rows(impressions)
    yield "decode actions", _BLOCK, "events/s", lambda: event_codec.decode_actions(actions, _NOW)
    broken = _break(impressions, every=100)
    yield (
        "decode impressions, 1% malformed",
        _BLOCK,
        "events/s",
        lambda: event_codec.decode_impressions(broken, context, _NOW),
    )
    for rate in (1000, 30_000):
        replay = _JoinLoad(rate)
        yield f"join, {rate} events/s, 100 ms bundles", replay.events, "events/s", replay.bundle
    rows = _joined_rows()
    yield (
        "fids, labels, train batch",
        rows.num_rows,
        "rows/s",
        lambda: rows_to_train_batch(rows, _CONFIG),
    )
    batch, _ = rows_to_train_batch(rows, _CONFIG)
    yield "train batch to IPC and back", rows.num_rows, "rows/s", lambda: _there_and_back(batch)


def _raw(topic: str, values: list[bytes]) -> pa.RecordBatch:
    return raw_block(topic, values, 0, np.arange(len(values)), _NOW)


def _raw_impressions(count: int) -> pa.RecordBatch:
    draw = GeneratedSource(EventWorld(WorldConfig())).draw(count, _NOW)
    values = impression_values(draw, [f"r-0-{index}" for index in range(count)], _NOW)
    return _raw("events.impressions", [value.encode() for value in values])


def _raw_actions(count: int) -> pa.RecordBatch:
    form = '{"schema_version":1,"request_id":"r-0-%d","item_id":%d,"action":"click","timestamp_ms":%d}'
    return _raw("events.actions", [(form % (index, index % 1000, _NOW)).encode() for index in range(count)])


def _break(block: pa.RecordBatch, every: int) -> pa.RecordBatch:
    values = block.column("value").to_pylist()
    values[::every] = [value[:-2] for value in values[::every]]
    return _raw(raw_topic(block), values)


def _decode_by_rows(block: pa.RecordBatch) -> list[tuple[object, ...]]:
    """What a per-record DoFn would do, without its checks."""
    rows = []
    for offset, value in enumerate(block.column("value").to_pylist()):
        event = json.loads(value)
        for row, item in enumerate(event["item_ids"]):
            context = event["context"]
            rows.append(
                (event["request_id"], event["user_id"], item, event["timestamp_ms"], context["device"], offset, row)
            )
    return rows


class _JoinLoad:
    """A join in steady state: each bundle brings impressions of 3 items and the actions on those of a second ago."""

    def __init__(self, rate: int) -> None:
        self.events = rate * _BUNDLE_MS // 1000
        self._impressions = self.events * 7 // 10
        block = _raw_impressions(self._impressions)
        self._rows, _ = event_codec.decode_impressions(block, _CONFIG.context_fields(), _NOW)
        self._index = JoinIndex(_CONFIG)
        self._bundles = 0
        self._rng = np.random.default_rng(0)
        for _ in range(2 * _CONFIG.window_ms // _BUNDLE_MS + 10):
            self.bundle()

    def bundle(self) -> None:
        now_ms = _NOW + self._bundles * _BUNDLE_MS
        self._index.add_impressions(self._of_bundle(self._bundles), now_ms)
        if self._bundles >= 10:
            self._index.add_actions(self._actions(self._of_bundle(self._bundles - 10), now_ms), now_ms)
        self._index.close_expired(now_ms)
        self._bundles += 1

    def _of_bundle(self, number: int) -> pa.RecordBatch:
        """The same rows under other request ids and times."""
        requests = pa.compute.binary_join_element_wise(self._rows.column("request_id"), str(number), "-")
        times = pa.array(np.full(self._rows.num_rows, _NOW + number * _BUNDLE_MS))
        renamed = self._rows.set_column(0, self._rows.schema.field(0), requests)
        return renamed.set_column(3, self._rows.schema.field(3), times)

    def _actions(self, rows: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        count = self.events - self._impressions
        chosen = rows.take(pa.array(self._rng.choice(rows.num_rows, count, replace=False)))
        columns = [
            chosen.column("request_id"),
            chosen.column("item_id"),
            pa.repeat(pa.scalar("click"), count),
            pa.array(np.full(count, now_ms)),
            pa.nulls(count, pa.float64()),
            pa.array(np.full(count, PARTITIONS_PER_SOURCE)),
            pa.array(np.arange(count)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=PLACED_ACTION_SCHEMA)


def _joined_rows() -> pa.RecordBatch:
    index = JoinIndex(_CONFIG)
    rows, _ = event_codec.decode_impressions(_raw_impressions(_BLOCK), _CONFIG.context_fields(), _NOW)
    index.add_impressions(rows, _NOW)
    return index.close_all()


def _there_and_back(batch: pa.RecordBatch) -> None:
    for _, data in record_batch.split_to_bytes(batch):
        record_batch.from_bytes(data)


if __name__ == "__main__":
    main()
