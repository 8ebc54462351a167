"""The stateful join against the pure one: same rows whatever the runner retries, forgets or moves."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.pipelines.feed import shard_state
from millrace.pipelines.feed.join import ROUTED_ACTIONS, JoinBoundedDoFn, JoinEvents, join_do_fn
from millrace.pipelines.feed.machine import RowsStage
from millrace.pipelines.feed.shard_state import ShardStateDoFn
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.event_schemas import PLACED_ACTION_SCHEMA, impression_schema
from millrace.transforms.feed.row_spill import SpillSettings
from millrace.transforms.feed.shards import by_request
from tests.pipelines.feed.shard_runner import ShardRunner

CONFIG = FeedConfig(
    "m", (FidFeature("item", 1, "item_id"),), (LabelRule("any", ("click", "like")),), window_seconds=1.0
)


def impressions(first: int, count: int, time_ms: int) -> pa.RecordBatch:
    offsets = range(first, first + count)
    columns = {
        "request_id": [f"r{offset}" for offset in offsets],
        "user_id": [offset % 7 for offset in offsets],
        "item_id": [offset % 11 for offset in offsets],
        "timestamp_ms": [time_ms] * count,
        record_batch.SOURCE_PARTITION: [offset % 3 for offset in offsets],
        record_batch.SOURCE_OFFSET: list(offsets),
        record_batch.SOURCE_ROW: [0] * count,
    }
    return pa.RecordBatch.from_pydict(columns, schema=impression_schema({}))


def clicks(offsets: Iterable[int], time_ms: int, action: str = "click") -> pa.RecordBatch:
    rows = [
        {
            "request_id": f"r{o}",
            "item_id": o % 11,
            "action": action,
            "timestamp_ms": time_ms,
            "value": None,
            record_batch.SOURCE_PARTITION: 1 << 16,
            record_batch.SOURCE_OFFSET: o,
        }
        for o in offsets
    ]
    return pa.RecordBatch.from_pylist(rows, schema=PLACED_ACTION_SCHEMA)


def _runner(config: FeedConfig = CONFIG) -> ShardRunner:
    return ShardRunner(lambda clock: join_do_fn(config, clock=clock, monotonic=clock))


def _provenance(rows: list[dict]) -> list[tuple[int, int, int]]:
    names = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    return sorted(tuple(row[name] for name in names) for row in rows)


def _drive(runner: ShardRunner, disturb: Callable[[ShardRunner, list[pa.RecordBatch], bool], object]) -> list[dict]:
    """Half a minute of 100 rows per step with clicks on some; returns all rows that left."""
    rows: list[dict] = []
    for step in range(30):
        runner.now_ms += 100
        blocks = [impressions(step * 100, 100, runner.now_ms)]
        if step >= 3:
            blocks.append(clicks(range((step - 3) * 100, (step - 2) * 100, 4), runner.now_ms))
        timer = runner.timer_is_due()
        disturb(runner, blocks, timer)
        rows += runner.bundle(blocks, timer)
    runner.now_ms += 5000
    return rows + runner.bundle([], timer=True)


def test_an_index_in_memory_is_never_read_from_state_again() -> None:
    runner = _runner()
    rows = _drive(runner, lambda *_: None)
    assert len(_provenance(rows)) == len(set(_provenance(rows))) == 3000
    assert sum(bool(row["actions"]) for row in rows) == 27 * 25
    assert runner.loads == 0


def test_a_retried_bundle_gives_every_row_once() -> None:
    runner = _runner()
    rows = _drive(runner, lambda runner, blocks, timer: runner.bundle(blocks, timer, commit=False))
    assert len(_provenance(rows)) == len(set(_provenance(rows))) == 3000
    assert runner.loads >= 29


@pytest.mark.parametrize("log_bytes", [0, 20_000, 1 << 20])
def test_a_new_worker_at_every_step_gives_every_row_once(monkeypatch: pytest.MonkeyPatch, log_bytes: int) -> None:
    monkeypatch.setattr(shard_state, "_LOG_BYTES", log_bytes)
    undisturbed = _drive(_runner(), lambda *_: None)
    moved = _drive(_runner(), lambda runner, *_: runner.new_worker())
    assert len(_provenance(moved)) == len(set(_provenance(moved))) == 3000
    assert sorted(map(str, moved)) == sorted(map(str, undisturbed))


def test_the_log_stays_near_the_size_of_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_state, "_LOG_BYTES", 10_000)
    sizes: list[tuple[int, int]] = []

    def watch(runner: ShardRunner, *_: object) -> None:
        shard = shard_state._load(runner.do_fn._restored, runner.log)
        sizes.append((sum(map(len, runner.log)), len(shard.machine.to_bytes())))

    _drive(_runner(), watch)
    assert all(log <= 3 * held + 20_000 for log, held in sizes), sizes


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 300), st.sampled_from(["commit", "retry", "move"])), max_size=40
    ),
    seed=st.integers(0, 99),
)
def test_every_row_leaves_once_whatever_the_clock_and_the_runner_do(
    steps: list[tuple[int, int, str]], seed: int
) -> None:
    chooser = random.Random(seed)
    runner, rows, total = _runner(), [], 0
    for pause_ms, count, event in steps:
        runner.now_ms += pause_ms
        blocks = [impressions(total, count, runner.now_ms)] if count else []
        total += count
        if total:
            blocks.append(clicks({chooser.randrange(total) for _ in range(20)}, runner.now_ms))
        timer = runner.timer_is_due()
        if event == "retry":
            runner.bundle(blocks, timer, commit=False)
        elif event == "move":
            runner.new_worker()
        rows += runner.bundle(blocks, timer)
    runner.now_ms += 10_000
    rows += runner.bundle([], timer=True)
    assert _provenance(rows) == sorted((offset % 3, offset, 0) for offset in range(total))


@given(count=st.integers(0, 200), shards=st.integers(1, 7))
def test_sharding_keeps_every_row_and_sends_a_request_to_one_shard(count: int, shards: int) -> None:
    rows, actions = impressions(0, count, 5), clicks(range(0, count, 3), 6)
    of_request: dict[str, int] = {}
    for shard, part in by_request(rows, shards):
        of_request |= dict.fromkeys(part.column("request_id").to_pylist(), shard)
    assert len(of_request) == count
    for shard, part in by_request(actions, shards):
        assert all(of_request[request] == shard for request in part.column("request_id").to_pylist())


class Numbering:
    """A stage whose rows depend on all rows before; and it copies some."""

    def __init__(self) -> None:
        self._seen = 0

    def warm(self, batches: Iterable[pa.RecordBatch]) -> None:
        pass

    def process(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        numbers = np.arange(self._seen, self._seen + rows.num_rows)
        self._seen += rows.num_rows
        rows = rows.append_column("number", pa.array(numbers))
        return rows.take(pa.array(np.repeat(np.arange(rows.num_rows), 1 + numbers % 2)))

    def save(self) -> bytes:
        return str(self._seen).encode("ascii")

    def restore(self, data: bytes) -> None:
        self._seen = int(data)

    def take_counts(self) -> dict[str, int]:
        return {}

    def publish(self) -> None:
        pass


_ROUTED = ("late", "duplicate", "superseded", "orphan")
_STAGES: list[Callable[[], RowsStage] | None] = [None, Numbering]
_EVENTS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["impressions", "clicks", "likes"]), st.integers(0, 5)),
    unique_by=lambda event: event[0],
    max_size=30,
)


def _blocks(events: list[tuple[int, str, int]]) -> list[tuple[int, pa.RecordBatch]]:
    """[(time, one event)]: impressions each of their own request, actions on request `number`."""
    blocks, shown = [], 0
    for at, kind, number in sorted(events):
        time_ms = 1_000_000 + 101 * at
        if kind == "impressions":
            blocks.append((time_ms, impressions(shown, 1, time_ms)))
            shown += 1
        else:
            blocks.append((time_ms, clicks([number], time_ms, kind[:-1])))
    return blocks


def _stream(do_fn: Callable[[Callable[[], float]], ShardStateDoFn], blocks: list[tuple[int, pa.RecordBatch]]) -> tuple:
    """(rows, routed actions) of events that arrive at their event time, with a timer that fires on time."""
    runner, rows = ShardRunner(do_fn), []
    for time_ms, block in blocks:
        # A window's last millisecond is in it.
        while runner.timer_ms is not None and runner.timer_ms <= time_ms - 1:
            runner.now_ms, runner.timer_ms = runner.timer_ms, None
            rows += runner.bundle([], timer=True)
        runner.now_ms = time_ms
        rows += runner.bundle([block])
    runner.now_ms += 10_000
    return rows + runner.bundle([], timer=True), runner.routed


@pytest.mark.parametrize("stage", _STAGES)
@settings(max_examples=40, deadline=None)
@given(events=_EVENTS, early=st.booleans(), lateness=st.sampled_from([None, 0.0, 0.35]))
def test_a_bounded_join_gives_the_rows_of_the_streaming_one_byte_for_byte(
    stage: Callable[[], RowsStage] | None, events: list[tuple[int, str, int]], early: bool, lateness: float | None
) -> None:
    config = replace(CONFIG, early_negatives=early, allowed_lateness_seconds=lateness, routed_actions=_ROUTED)
    blocks = _blocks(events)
    spill = SpillSettings(2)
    rows, routed = _stream(lambda clock: join_do_fn(config, 0.0, None, stage, spill, clock, monotonic=clock), blocks)
    bounded = JoinBoundedDoFn(config, stage)
    bounded.start_bundle()
    out = list(bounded.process((0, [block for _, block in blocks])))
    sides = [each.value for each in out if isinstance(each, beam.pvalue.TaggedOutput)]
    mains = [each[1] for each in out if not isinstance(each, beam.pvalue.TaggedOutput)]
    assert [row for batch in mains for row in batch.to_pylist()] == rows
    assert sorted(str(row) for batch in sides for row in batch.to_pylist()) == sorted(map(str, routed))


def test_rows_and_routed_actions_leave_a_pipeline_by_two_doors() -> None:
    config = replace(CONFIG, routed_actions=("duplicate",))
    blocks = [impressions(0, 4, 1000), clicks([2], 1100), clicks([2], 1100)]

    def check_rows(actual: list[pa.RecordBatch]) -> None:
        left = [row for batch in actual for row in batch.to_pylist() if row["actions"]]
        assert [row["request_id"] for row in left] == ["r2"]

    def check_routed(actual: list[pa.RecordBatch]) -> None:
        assert [row["reason"] for batch in actual for row in batch.to_pylist()] == ["duplicate"]

    with beam.Pipeline("apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        sharded = pipeline | beam.Create([(0, block) for block in blocks])
        sharded = sharded | beam.Map(lambda pair: pair).with_output_types(tuple[int, pa.RecordBatch])
        joined = sharded | JoinEvents(config, streaming=False)
        assert_that(joined.rows | beam.Values(), check_rows, label="Rows")
        assert_that(joined[ROUTED_ACTIONS], check_routed, label="Routed")
