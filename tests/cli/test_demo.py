"""`millrace demo` stops what it started, whoever ends it."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from millrace.cli import demo, main
from millrace.cli.loop.run import LoopRun


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unwinds_the_run_so_that_nothing_keeps_running(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    stopped: list[str] = []

    def run(_: LoopRun) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60.0)
        finally:
            stopped.append("servers")

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background command of a shell
    monkeypatch.setattr(LoopRun, "run", run)
    monkeypatch.setattr(demo, "_fetch", lambda runner: None)
    assert main.main(["demo"]) == 128 + signal.SIGINT
    assert stopped == ["servers"]
