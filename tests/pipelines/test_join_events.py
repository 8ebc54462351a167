"""The stateful join against the pure one: same rows whatever the runner retries, forgets or moves."""

import random
from collections.abc import Callable, Iterable

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import join_events
from pipelines.chain import Chain
from pipelines.join_events import JoinEvents, split_by_shard
from transforms import record_batch
from transforms.event_schemas import ACTION_SCHEMA, impression_schema
from transforms.feature_list import FeedConfig, FidFeature, LabelRule

CONFIG = FeedConfig("m", (FidFeature("item", 1, "item_id"),), (LabelRule("click", ("click",)),), window_seconds=1.0)


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


def clicks(offsets: Iterable[int], time_ms: int) -> pa.RecordBatch:
    rows = [
        {"request_id": f"r{o}", "item_id": o % 11, "action": "click", "timestamp_ms": time_ms, "value": None}
        for o in offsets
    ]
    return pa.RecordBatch.from_pylist(rows, schema=ACTION_SCHEMA)


class _Bag:
    def __init__(self, committed: list[bytes]) -> None:
        self.entries, self.reads = list(committed), 0

    def read(self) -> list[bytes]:
        self.reads += 1
        return random.Random(self.reads).sample(self.entries, len(self.entries))  # a bag has no order

    def add(self, entry: bytes) -> None:
        self.entries.append(entry)

    def clear(self) -> None:
        self.entries = []


class _Value:
    def __init__(self, committed: bytes | None) -> None:
        self.value = committed

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class _Timer:
    def __init__(self) -> None:
        self.at_ms: int | None = None

    def set(self, timestamp: beam.utils.timestamp.Timestamp) -> None:
        self.at_ms = timestamp.micros // 1000


class _Runner:
    """One key's state as a runner keeps it: what a bundle wrote counts only once the bundle is committed."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.log: list[bytes] = []
        self.epoch: bytes | None = None
        self.timer_ms: int | None = None
        self.loads = 0
        self.new_worker()

    def new_worker(self) -> None:
        self.do_fn = join_events._JoinDoFn(CONFIG, f"run{random.random()}", 0.2, lambda: self.now_ms / 1000, Chain())

    def bundle(self, inputs: list[pa.RecordBatch], timer: bool = False, commit: bool = True) -> list[dict]:
        log, epoch, timer_param = _Bag(self.log), _Value(self.epoch), _Timer()
        self.do_fn.start_bundle()
        out = []
        for rows in inputs:
            out += self.do_fn.process((0, rows), log, epoch, timer_param)
        if timer:
            out += self.do_fn.close(0, log, epoch, timer_param)
        self.loads += log.reads
        if not commit:
            return []
        assert list(self.do_fn.finish_bundle()) == []
        self.log, self.epoch = log.entries, epoch.value
        if timer_param.at_ms is not None:
            self.timer_ms = timer_param.at_ms
        return [row for _, batch in out for row in batch.to_pylist()]


def _provenance(rows: list[dict]) -> list[tuple[int, int, int]]:
    names = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    return sorted(tuple(row[name] for name in names) for row in rows)


def _drive(runner: _Runner, disturb: Callable[[_Runner, list[pa.RecordBatch], bool], None]) -> list[dict]:
    """Half a minute of 100 rows a step with clicks on some; returns all rows that left."""
    rows: list[dict] = []
    for step in range(30):
        runner.now_ms += 100
        blocks = [impressions(step * 100, 100, runner.now_ms)]
        if step >= 3:
            blocks.append(clicks(range((step - 3) * 100, (step - 2) * 100, 4), runner.now_ms))
        timer = runner.timer_ms is not None and runner.timer_ms <= runner.now_ms
        disturb(runner, blocks, timer)
        rows += runner.bundle(blocks, timer)
    runner.now_ms += 5000
    return rows + runner.bundle([], timer=True)


def test_an_index_in_memory_is_never_read_from_state_again() -> None:
    runner = _Runner()
    rows = _drive(runner, lambda *_: None)
    assert len(_provenance(rows)) == len(set(_provenance(rows))) == 3000
    assert sum(bool(row["actions"]) for row in rows) == 27 * 25
    assert runner.loads == 0


def test_a_retried_bundle_gives_every_row_once() -> None:
    runner = _Runner()
    rows = _drive(runner, lambda runner, blocks, timer: runner.bundle(blocks, timer, commit=False))
    assert len(_provenance(rows)) == len(set(_provenance(rows))) == 3000
    assert runner.loads >= 29


@pytest.mark.parametrize("log_bytes", [0, 20_000, 1 << 20])
def test_a_new_worker_at_every_step_gives_every_row_once(monkeypatch: pytest.MonkeyPatch, log_bytes: int) -> None:
    monkeypatch.setattr(join_events, "_LOG_BYTES", log_bytes)
    undisturbed = _drive(_Runner(), lambda *_: None)
    moved = _drive(_Runner(), lambda runner, *_: runner.new_worker())
    assert len(_provenance(moved)) == len(set(_provenance(moved))) == 3000
    assert sorted(map(str, moved)) == sorted(map(str, undisturbed))


def test_the_log_stays_near_the_size_of_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_events, "_LOG_BYTES", 10_000)
    sizes: list[tuple[int, int]] = []

    def watch(runner: _Runner, *_: object) -> None:
        shard = join_events._load(CONFIG, runner.log)
        sizes.append((sum(map(len, runner.log)), len(shard.index.to_block())))

    _drive(_Runner(), watch)
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
    runner, rows, total = _Runner(), [], 0
    for pause_ms, count, event in steps:
        runner.now_ms += pause_ms
        blocks = [impressions(total, count, runner.now_ms)] if count else []
        total += count
        if total:
            blocks.append(clicks({chooser.randrange(total) for _ in range(20)}, runner.now_ms))
        timer = runner.timer_ms is not None and runner.timer_ms <= runner.now_ms
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
    for shard, part in split_by_shard(rows, shards):
        of_request |= dict.fromkeys(part.column("request_id").to_pylist(), shard)
    assert len(of_request) == count
    for shard, part in split_by_shard(actions, shards):
        assert all(of_request[request] == shard for request in part.column("request_id").to_pylist())


def test_a_bounded_join_gives_the_rows_of_the_streaming_one() -> None:
    blocks = [impressions(0, 50, 1000), clicks(range(0, 50, 5), 1400), impressions(50, 50, 1800), clicks([60], 9000)]
    runner = _Runner()
    expected = runner.bundle([blocks[0], blocks[1], blocks[2]])
    runner.now_ms += 5000
    expected += runner.bundle([blocks[3]], timer=True)

    def check(actual: list[tuple[int, pa.RecordBatch]]) -> None:
        rows = [row for _, batch in actual for row in batch.to_pylist()]
        assert sorted(map(str, rows)) == sorted(map(str, expected))

    with beam.Pipeline("apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        sharded = pipeline | beam.Create([(0, block) for block in blocks])
        assert_that(sharded | JoinEvents(CONFIG, streaming=False), check)
