"""Machines that a runner's state persists: rebuilt, retried, moved to another worker, and with side rows."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.pipelines.feed import shard_state
from millrace.pipelines.feed.shard_state import ShardStateDoFn
from tests.pipelines.feed.machines import NUMBERED, Delay, rows_of
from tests.pipelines.feed.shard_runner import ShardRunner


def _runner() -> ShardRunner:
    return ShardRunner(lambda clock: ShardStateDoFn(NUMBERED, "test", clock=clock, monotonic=clock))


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
                runner.bundle([rows_of(*values)], timer, commit=False)
            elif event == "move":
                runner.new_worker()
            left += runner.bundle([rows_of(*values)], timer)
            entered += [value for value in values if value >= 0]
        left += runner.bundle([], timer=True)
    finally:
        shard_state._LOG_BYTES = previous
    assert [row["value"] for row in left] == entered
    assert [row["number"] for row in left] == list(range(len(entered)))
    assert len(runner.routed) == sum(len(values) for values, _, _ in steps if min(values, default=0) < 0)


def test_a_machine_in_memory_is_used_again_and_publishes_once_per_bundle() -> None:
    runner = _runner()
    made = Delay.made
    for _ in range(3):
        runner.bundle([rows_of(1), rows_of(2)])
    assert Delay.made == made + 1
    assert runner.loads == 0


def test_side_rows_that_left_before_a_restart_do_not_leave_again() -> None:
    runner = _runner()
    runner.bundle([rows_of(-1)])
    runner.new_worker()
    runner.bundle([rows_of(1)])
    assert runner.routed == [{"value": -1}]


def test_the_order_of_the_log_is_not_that_of_the_bag() -> None:
    runner = _runner()
    values = random.Random(3).sample(range(100), 30)
    for value in values:
        runner.bundle([rows_of(value)])
    runner.new_worker()
    assert [row["value"] for row in runner.bundle([], timer=True)] == values
