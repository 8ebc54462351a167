"""Saves that fail: tried twice, with guards that always hear of their end."""

import logging

import pytest

from millrace.training.state.robust_save import SaveListener, save_robustly
from tests.conformance.covers import covers


class DiskError(Exception):
    """What a save may raise."""


class Recorder(SaveListener):
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
            raise DiskError(what)


@pytest.fixture
def log() -> list[str]:
    return []


class Save:
    """Fails the first `failures` times."""

    def __init__(self, log: list[str], failures: int = 0) -> None:
        self._log, self._failures = log, failures

    def __call__(self) -> None:
        self._log.append("save")
        self._failures -= 1
        if self._failures >= 0:
            raise DiskError("disk full")


def test_listeners_surround_the_save_and_guards_surround_them(log: list[str]) -> None:
    listeners, guards = [Recorder(n, log) for n in "ab"], [Recorder(n, log) for n in "xy"]
    assert save_robustly(Save(log), 3, (DiskError,), listeners, guards)
    assert log == [
        "before x", "before y", "before a", "before b", "save", "after b", "after a", "after y", "after x",
    ]  # fmt: skip


def test_a_save_that_fails_once_is_tried_again(log: list[str]) -> None:
    assert save_robustly(Save(log, failures=1), 3, (DiskError,), guards=[Recorder("g", log)])
    assert log == ["before g", "save", "save", "after g"]


def test_a_save_that_fails_twice_is_an_error_after_the_guards_were_told(log: list[str]) -> None:
    with pytest.raises(DiskError, match="disk full"):
        save_robustly(Save(log, failures=2), 3, (DiskError,), guards=[Recorder("g", log)])
    assert log == ["before g", "save", "save", "after g"]


@pytest.mark.parametrize("fails", ["before", "after"])
@covers("emb:K4")
def test_guards_are_told_also_when_a_listener_fails_and_errors_are_ignored(log: list[str], fails: str) -> None:
    listeners, guards = [Recorder("a", log, fails)], [Recorder("g", log)]
    assert not save_robustly(Save(log), 3, (DiskError,), listeners, guards, ignore_save_errors=True)
    assert log.count(f"{fails} a") == 2
    assert log[-1] == "after g"


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_guard_that_fails_is_logged_and_keeps_nobody_else_from_being_called(
    log: list[str], fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    guards = [Recorder("x", log), Recorder("y", log, fails)]
    with caplog.at_level(logging.ERROR):
        assert save_robustly(Save(log), 3, (DiskError,), guards=guards)
    assert log == ["before x", "before y", "save", "after y", "after x"]
    assert f"{fails} y" in caplog.text


def test_an_error_of_another_kind_is_not_tried_again_but_guards_are_told(log: list[str]) -> None:
    with pytest.raises(DiskError):
        save_robustly(Save(log, failures=1), 3, (OSError,), guards=[Recorder("g", log)], ignore_save_errors=True)
    assert log == ["before g", "save", "after g"]
