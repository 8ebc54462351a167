"""A process that does not end in time says so, and is not taken for one that failed."""

import sys
from pathlib import Path

import pytest

from millrace.cli.loop.processes import Processes
from millrace.runtime.child_process import ChildProcess, ChildProcessError
from millrace.runtime.deadline import wait_until

_DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def _processes(folder: Path, code: str) -> Processes:
    processes = Processes(folder)
    processes._by_name["producer"] = ChildProcess("producer", [sys.executable, "-c", code], folder, ready=False)
    processes["producer"].start()
    return processes


def test_one_that_takes_too_long_is_named_with_its_time(tmp_path: Path) -> None:
    processes = _processes(tmp_path, _DEAF)
    wait_until(lambda: "deaf" in processes["producer"].log_tail(), 60.0, "the handler is set")
    with pytest.raises(
        ChildProcessError, match="producer has not ended within 0.1 s of SIGTERM and was killed: .*helps"
    ):
        processes.end("producer", 0.1)
    assert not processes["producer"].running()


def test_one_that_failed_is_named_with_its_exit_code(tmp_path: Path) -> None:
    processes = _processes(tmp_path, "raise SystemExit('no such topic')")
    processes["producer"].wait(60.0)
    with pytest.raises(ChildProcessError, match="producer exited with 1: no such topic"):
        processes.end("producer")


def test_one_that_has_ended_well_is_no_failure(tmp_path: Path) -> None:
    processes = _processes(tmp_path, "pass")
    processes["producer"].wait(60.0)
    processes.end("producer")
