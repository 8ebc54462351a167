"""Saves that succeed and that fail: training goes on, they are tried again, and guards always hear of their end."""

import logging
import threading
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from millrace.training.state.save_schedule import SaveSchedule
from millrace.training.state.saver import SaveGuard, Saver, SaveTimer, start_in_turn
from tests.conformance.covers import covers


class Recorder(SaveGuard):
    """Writes its calls into a common log; fails where told."""

    def __init__(self, name: str, log: list[str], fails: str = "") -> None:
        self._name, self._log, self._fails = name, log, fails

    def before_save(self, global_step: int) -> None:
        self._call(f"before {self._name}")

    def after_save(self, global_step: int) -> None:
        self._call(f"after {self._name}")

    def _call(self, what: str) -> None:
        self._log.append(what)
        if what == f"{self._fails} {self._name}":
            raise OSError(what)


class Disk:
    """The two parts of a save; each fails as often as told, then succeeds."""

    def __init__(self, log: list[str], error: type[Exception] = OSError, **failures: int) -> None:
        self._log, self._error, self._failures = log, error, failures

    def cut(self) -> str:
        self._do("cut")
        return "content"

    def write(self, cut: str) -> None:
        assert cut == "content"
        self._do("write")

    def _do(self, what: str) -> None:
        self._log.append(what)
        self._failures[what] = self._failures.get(what, 0) - 1
        if self._failures[what] >= 0:
            raise self._error("disk full")


class Inline(Executor):
    """Runs what is submitted at once."""

    def submit(self, function: Any, /, *args: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> list[str]:
    return []


def saver_of(disk: Disk, *guards: SaveGuard, thread: Executor | None = None, **settings: Any) -> Saver[str]:
    schedule = SaveSchedule(every_seconds=10, clock=Clock())
    schedule.force()
    return Saver("checkpoint", schedule, disk.cut, disk.write, thread or Inline(), guards=guards, **settings)


def pass_time(saver: Saver[str], seconds: float) -> None:
    assert isinstance(saver.schedule.clock, Clock)
    saver.schedule.clock.now += seconds


def save(saver: Saver[str], step: int) -> bool:
    """One turn of a trainer's loop; whether step `step` is saved after it."""
    saver.start_if_due(step)
    return not saver.saving and saver.saved_step == step


def test_guards_surround_the_two_parts_of_a_save(log: list[str]) -> None:
    assert save(saver_of(Disk(log), *(Recorder(name, log) for name in "xy")), 3)
    assert log == ["before x", "before y", "cut", "write", "after y", "after x"]


@pytest.mark.parametrize("part", ["cut", "write"])
def test_a_save_that_fails_is_tried_again_after_five_seconds(log: list[str], part: str) -> None:
    saver = saver_of(Disk(log, **{part: 1}))
    assert not save(saver, 3)
    pass_time(saver, 4.9)
    assert not save(saver, 4)
    pass_time(saver, 0.1)
    assert save(saver, 5)
    assert log.count("cut") == 2


@covers("emb:K4")
@pytest.mark.parametrize("part", ["cut", "write"])
def test_guards_are_told_also_when_a_save_fails_and_the_trainer_goes_on(
    log: list[str], part: str, caplog: pytest.LogCaptureFixture
) -> None:
    saver = saver_of(Disk(log, **{part: 1}), Recorder("g", log))
    assert not save(saver, 3)
    assert log[-1] == "after g"
    assert "checkpoint failed and is tried again in at most 5 s: disk full" in caplog.text


@covers("emb:K4")
@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_guard_that_fails_is_logged_and_keeps_nobody_else_from_being_called(
    log: list[str], fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert save(saver_of(Disk(log), Recorder("x", log), Recorder("y", log, fails)), 3)
    assert log == ["before x", "before y", "cut", "write", "after y", "after x"]
    assert f"{fails} y" in caplog.text


def test_a_cut_that_fails_by_a_bug_ends_training_but_guards_are_told(log: list[str]) -> None:
    saver = saver_of(Disk(log, KeyError, cut=1), Recorder("g", log))
    with pytest.raises(KeyError):
        saver.start_if_due(3)
    assert log == ["before g", "cut", "after g"]


def test_a_bug_on_the_saving_thread_is_logged_with_its_traceback(
    log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    saver = saver_of(Disk(log, KeyError, write=1))
    assert not save(saver, 3)
    assert "Traceback" in caplog.text and "KeyError" in caplog.text


def test_the_last_step_is_saved_at_the_end_and_once_more_if_that_fails(log: list[str]) -> None:
    saver = saver_of(Disk(log, write=1), Recorder("g", log))
    saver.save_at_end(3)
    assert saver.saved_step == 3
    assert log == ["before g", "cut", "write", "after g"] * 2


def test_at_the_end_a_second_failure_is_the_last(log: list[str], caplog: pytest.LogCaptureFixture) -> None:
    saver = saver_of(Disk(log, write=9), Recorder("g", log))
    saver.save_at_end(3)
    assert saver.saved_step is None
    assert log == ["before g", "cut", "write", "after g"] * 2
    assert "checkpoint failed and is tried again now: disk full" in caplog.text
    assert "checkpoint failed and is not tried again; the newest checkpoint before it stays: disk full" in caplog.text
    assert caplog.text.count("checkpoint failed") == 2


def test_a_step_that_is_saved_is_not_saved_again_not_even_on_demand_or_at_the_end(log: list[str]) -> None:
    saver = saver_of(Disk(log), saved_step=3)
    assert save(saver, 3)
    saver.schedule.force()
    assert save(saver, 3)
    saver.save_at_end(3)
    assert log == []


def test_steps_go_on_while_a_save_is_written(log: list[str]) -> None:
    class Slow(Disk):
        go_on = threading.Event()

        def write(self, cut: str) -> None:
            assert self.go_on.wait(30)
            super().write(cut)

    with ThreadPoolExecutor(1) as thread:
        disk = Slow(log)
        saver = saver_of(disk, SaveTimer("test"), thread=thread)
        assert saver.start_if_due(3)
        assert saver.saving and saver.saved_step is None
        with pytest.raises(TimeoutError, match="checkpoint of step 3 is not written after 0 s"):
            saver.wait(0.0)
        disk.go_on.set()
        saver.wait(30)
        assert not saver.saving and saver.saved_step == 3


def test_a_saver_that_is_always_due_leaves_the_others_their_turn() -> None:
    logs: list[list[str]] = [[], []]
    slow, other = (saver_of(Disk(log)) for log in logs)
    turns = deque([slow, other])
    for step in range(3):
        slow.schedule.force()  # as after a save that takes longer than its period
        start_in_turn(turns, step)
    assert [log.count("write") for log in logs] == [2, 1]
