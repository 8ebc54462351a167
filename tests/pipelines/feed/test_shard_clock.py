"""A clock that steps changes no window, and is told."""

import pyarrow as pa
import pytest

from millrace.pipelines.feed.join import join_do_fn
from millrace.pipelines.feed.shard_clock import ClockWatch, ShardClock
from millrace.pipelines.feed.shard_state import ShardStateDoFn
from tests.pipelines.feed.shard_runner import ShardRunner
from tests.transforms.feed.join_rows import NOW, actions, config, impressions

HOUR_MS = 3_600_000


class _Machine:
    """The clocks of a computer: `passed` seconds on the monotonic one, `step` seconds more on the other."""

    def __init__(self) -> None:
        self.passed, self.step = 500.0, 0.0

    def monotonic(self) -> float:
        return self.passed

    def wall(self) -> float:
        return NOW / 1000 + self.passed + self.step


class _Runner(ShardRunner):
    """A runner whose timers follow the stepping clock."""

    def __init__(self) -> None:
        self.machine = _Machine()
        super().__init__(self._do_fn)

    def _do_fn(self, _clock: object) -> ShardStateDoFn:
        return join_do_fn(config(), clock=self.machine.wall, monotonic=self.machine.monotonic)

    def step(self, *batches: pa.RecordBatch) -> list[dict]:
        """A bundle after one second more, with the timer if it is due."""
        self.machine.passed += 1.0
        self.now_ms = int(self.machine.wall() * 1000)
        due = self.timer_is_due()
        if due:
            self.timer_ms = None
        return self.bundle(list(batches), due)


def _row(name: str) -> pa.RecordBatch:
    return impressions((name, 1, 0))


def test_a_step_ahead_closes_no_window_and_a_step_back_holds_none_open() -> None:
    runner = _Runner()
    assert runner.step(_row("a")) == []
    runner.machine.step = 3600.0
    assert runner.step(_row("b")) == []  # its timer fires at once, and finds nothing due
    runner.machine.step = 0.0
    assert [row["request_id"] for row in runner.step(actions(("a", 1, "click", 900)))] == ["a"]
    left: list[str] = []
    for _ in range(8):
        left += [row["request_id"] for row in runner.step(impressions().slice(0, 0))]
    assert left == ["b"]


def test_a_timer_that_a_step_back_has_put_off_is_set_again_by_the_next_bundle() -> None:
    runner = _Runner()
    runner.machine.step = 3600.0
    runner.step(_row("a"))
    armed = runner.timer_ms
    runner.machine.step = 0.0
    for _ in range(3):
        runner.step()
    assert runner.timer_ms == armed  # an hour away by now
    runner.machine.passed += 4.0
    left = runner.step(_row("b"))
    assert [row["request_id"] for row in left] == ["a"]
    assert runner.timer_ms is not None and runner.timer_ms < runner.now_ms + 10_000


def test_a_shard_that_is_restored_goes_on_where_its_time_was_saved() -> None:
    runner = _Runner()
    runner.step(_row("a"))
    runner.new_worker()
    runner.machine.passed += HOUR_MS / 1000  # the feed was away for an hour, and so were the actions of that hour
    assert [row["request_id"] for row in runner.step(actions(("a", 1, "click", 900)))] == ["a"]


def test_a_shard_clock_goes_on_from_its_start() -> None:
    machine = _Machine()
    clock = ShardClock(NOW, machine.monotonic)
    machine.passed += 1.5
    machine.step = -3600.0
    assert clock.now_ms() == NOW + 1500


def test_a_step_is_logged_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = _Machine()
    watch = ClockWatch(machine.wall, machine.monotonic)
    for step in (0.0, 0.2, 3600.2, 3600.2, 0.2):
        machine.step = step
        machine.passed += 10.0
        watch.look()
    assert watch.steps == 2
    assert "+3600.0 s" in caplog.text and "-3600.0 s" in caplog.text
