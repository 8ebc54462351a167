"""Machines behind a runner's state: rebuilt, composed with a stage, and with a side door."""

import random
from collections.abc import Mapping

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.pipelines.feed import shard_state
from millrace.pipelines.feed.shard_state import CLOSE, Composed, ComposedFactory, ShardStateDoFn
from millrace.transforms.batch import record_batch
from tests.pipelines.feed.shard_runner import ShardRunner

_SCHEMA = pa.schema([pa.field("value", pa.int64())])


class Delay:
    """Holds rows until the next `CLOSE`; negative ones leave by the side."""

    made = 0

    def __init__(self, saved: bytes | None) -> None:
        self.held = record_batch.empty(_SCHEMA) if saved is None else record_batch.decode_ipc(saved)
        self.side: list[pa.RecordBatch] = []
        self.published: list[int] = []
        Delay.made += 1

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        if kind == CLOSE or rows is None:
            left, self.held = self.held, record_batch.empty(_SCHEMA)
            return left
        good = [value for value in rows.column("value").to_pylist() if value >= 0]
        if len(good) < rows.num_rows:
            self.side.append(rows)
        self.held = record_batch.concat([self.held, _rows(*good)])
        return record_batch.empty(_SCHEMA)

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        side, self.side = self.side, []
        return {"negative": record_batch.concat(side)} if side else {}

    def take_counts(self) -> Mapping[str, int]:
        return {"held": self.held.num_rows}

    def publish(self, shard: int) -> None:
        self.published.append(shard)

    def to_block(self) -> bytes:
        return record_batch.encode_ipc(self.held)

    @property
    def next_close_ms(self) -> int | None:
        return 0 if self.held.num_rows else None

    @property
    def pending_rows(self) -> int:
        return self.held.num_rows

    @property
    def nbytes(self) -> int:
        return self.held.nbytes


class Numbering:
    """Numbers all rows that it ever saw."""

    def __init__(self) -> None:
        self.seen = 0

    def process(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        numbers = range(self.seen, self.seen + rows.num_rows)
        self.seen += rows.num_rows
        return rows.append_column("number", pa.array(numbers, pa.int64()))

    def save(self) -> bytes:
        return str(self.seen).encode("ascii")

    def restore(self, data: bytes) -> None:
        self.seen = int(data)

    def take_counts(self) -> Mapping[str, int]:
        return {"seen": self.seen}

    def publish(self) -> None:
        pass


_FACTORY = ComposedFactory(Delay, Numbering)


def _rows(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"value": list(values)}, schema=_SCHEMA)


def _runner() -> ShardRunner:
    return ShardRunner(lambda clock: ShardStateDoFn(_FACTORY, "test", clock=clock))


@pytest.mark.parametrize("log_bytes", [0, 3000, 1 << 20])
@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.lists(st.integers(-3, 9), max_size=4), st.booleans(), st.sampled_from(["commit", "retry", "move"]))
    )
)
def test_a_stage_is_rebuilt_with_its_machine_wherever_it_is(
    log_bytes: int, steps: list[tuple[list[int], bool, str]]
) -> None:
    runner, left, entered = _runner(), [], []
    previous, shard_state._LOG_BYTES = shard_state._LOG_BYTES, log_bytes
    try:
        for values, timer, event in steps:
            if event == "retry":
                runner.bundle([_rows(*values)], timer, commit=False)
            elif event == "move":
                runner.new_worker()
            left += runner.bundle([_rows(*values)], timer)
            entered += [value for value in values if value >= 0]
        left += runner.bundle([], timer=True)
    finally:
        shard_state._LOG_BYTES = previous
    assert [row["value"] for row in left] == entered
    assert [row["number"] for row in left] == list(range(len(entered)))
    assert len(runner.routed) == sum(len(values) for values, _, _ in steps if min(values, default=0) < 0)


def test_a_machine_in_memory_is_used_again_and_publishes_once_a_bundle() -> None:
    runner = _runner()
    made = Delay.made
    for _ in range(3):
        runner.bundle([_rows(1), _rows(2)])
    assert Delay.made == made + 1
    assert runner.loads == 0


def test_what_left_by_the_side_before_a_restart_does_not_leave_again() -> None:
    runner = _runner()
    runner.bundle([_rows(-1)])
    runner.new_worker()
    runner.bundle([_rows(1)])
    assert runner.routed == [{"value": -1}]


def test_a_composed_machine_is_that_of_its_parts() -> None:
    machine = _FACTORY(None)
    machine.apply(b"R", 1, _rows(4, 5))
    assert (machine.pending_rows, machine.nbytes, machine.next_close_ms) == (2, 16, 0)
    assert machine.take_counts() == {"held": 2, "seen": 0}
    again = _FACTORY(machine.to_block())
    assert again.apply(CLOSE, 2, None).to_pylist() == [{"value": 4, "number": 0}, {"value": 5, "number": 1}]


def test_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state of a machine with a stage"):
        _FACTORY(record_batch.encode_ipc(_rows(1)))
    assert isinstance(_FACTORY(None), Composed)


def test_the_order_of_the_log_is_not_that_of_the_bag() -> None:
    runner = _runner()
    values = random.Random(3).sample(range(100), 30)
    for value in values:
        runner.bundle([_rows(value)])
    runner.new_worker()
    assert [row["value"] for row in runner.bundle([], timer=True)] == values
