"""A background process is found again, and another that has its pid by now is left alone."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from millrace.runtime.deadline import wait_until
from millrace.runtime.servers.daemon import Daemon, free_port, port_is_free, start_time

_IGNORE_SIGTERM = (
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
)


@pytest.fixture
def daemon(tmp_path: Path):
    daemon = Daemon(tmp_path / "process.json", tmp_path / "server.log")
    yield daemon
    daemon.stop(0.1)


def test_a_started_process_is_found_by_a_second_object(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(["sleep", "60"], tmp_path)
    other = Daemon(tmp_path / "process.json", tmp_path / "server.log")
    assert other.pid() == daemon.pid() is not None


def test_stop_ends_the_process_and_may_be_repeated(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(["sleep", "60"], tmp_path)
    pid = daemon.pid()
    assert pid is not None
    daemon.stop()
    daemon.stop()
    assert daemon.pid() is None and start_time(pid) is None


def test_a_process_that_ignores_sigterm_is_killed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start([sys.executable, "-c", _IGNORE_SIGTERM], tmp_path)
    wait_until(lambda: daemon.log_tail() == "on", 20.0, "the handler")
    daemon.stop(0.2)
    assert daemon.pid() is None


def test_a_reused_pid_is_neither_reported_nor_killed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(["sleep", "60"], tmp_path)
    pid = daemon.pid()
    assert pid is not None
    record = tmp_path / "other.json"
    record.write_text(json.dumps({"pid": pid, "start_time": (start_time(pid) or 0) - 1}))
    impostor = Daemon(record, tmp_path / "other.log")
    assert impostor.pid() is None
    impostor.kill()
    impostor.stop()
    assert daemon.pid() == pid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "null"])
def test_a_damaged_record_means_not_running(tmp_path: Path, text: str) -> None:
    record = tmp_path / "process.json"
    record.write_text(text)
    assert Daemon(record, tmp_path / "log").pid() is None


def test_a_crash_is_noticed(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(["sleep", "60"], tmp_path)
    os.kill(daemon.pid() or -1, signal.SIGKILL)
    wait_until(lambda: daemon.pid() is None, 10.0, "the crash noticed")


def test_a_free_port_is_none_that_somebody_listens_on() -> None:
    with socket.socket() as server:
        port = free_port()
        server.bind(("127.0.0.1", port))
        server.listen()
        assert not port_is_free(port)
        assert free_port() != port
    assert port not in (free_port(exclude=[port]),)
