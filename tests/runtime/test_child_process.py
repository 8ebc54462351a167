"""Child processes with a log, a ready file and a clean end."""

import json
import sys
from pathlib import Path

import pytest

from millrace.runtime.child_process import ChildProcess, ChildProcessError
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.servers.daemon import free_port, start_time

_READY = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("hello", flush=True)
path = sys.argv[sys.argv.index("--ready-file") + 1]
open(path + ".new", "w").write(json.dumps({"pid": os.getpid(), "port": 7}))
os.rename(path + ".new", path)
time.sleep(60)
"""


@pytest.fixture
def script(tmp_path: Path):
    made: list[ChildProcess] = []

    def start(code: str, ready: bool = True) -> ChildProcess:
        child = ChildProcess("child", [sys.executable, "-c", code], tmp_path, ready=ready)
        made.append(child)
        child.start()
        return child

    yield start
    for child in made:
        child.stop(0.5)


def test_a_child_is_ready_when_it_says_so_and_ends_with_code_zero(script, tmp_path: Path) -> None:
    child = script(_READY)
    assert child.wait_ready(30.0) == {"pid": child.pid, "port": 7}
    assert child.log_path.read_text() == "hello\n"
    assert child.stop() == 0
    assert not child.running()


def test_a_child_that_dies_before_it_is_ready_is_an_error_with_its_last_words(script) -> None:
    child = script("import sys; print('cannot bind', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ChildProcessError, match=r"child exited with 3: cannot bind"):
        child.wait_ready(30.0)


def test_a_restart_goes_on_in_the_log_and_needs_a_new_ready_file(script) -> None:
    child = script(_READY)
    child.wait_ready(30.0)
    first = child.pid
    child.kill()
    child.start()
    assert child.wait_ready(30.0)["pid"] == child.pid != first
    assert child.log_path.read_text() == "hello\nhello\n"
    assert json.loads(child.ready_path.read_text())["pid"] == child.pid


def test_a_child_that_ignores_sigterm_is_killed(script) -> None:
    child = script(_READY.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN"))
    child.wait_ready(30.0)
    assert child.stop(0.2) == -9
    assert start_time(child.pid) is None


def test_a_child_is_waited_for_until_it_listens(script) -> None:
    port = free_port()
    listen = "import socket, time; s = socket.create_server(('localhost', {})); time.sleep(60)"
    child = script(listen.format(port), ready=False)
    child.wait_listening(port, 30.0, "--runner", "prism")
    assert child.running()


def test_a_child_that_ends_before_it_listens_is_a_users_error_with_its_last_words(script) -> None:
    child = script("raise SystemExit('no luck')", ready=False)
    with pytest.raises(UserError, match="--runner=prism: child ended: no luck; read .*child.log"):
        child.wait_listening(free_port(), 30.0, "--runner", "prism")


def test_a_child_that_never_listens_is_stopped(script) -> None:
    child = script("import time; time.sleep(60)", ready=False)
    with pytest.raises(UserError, match="child on port"):
        child.wait_listening(free_port(), 0.3, "--runner", "prism")
    assert not child.running()


def test_workers_of_a_pool_end_when_their_parent_is_killed(script) -> None:
    pool = (
        "import concurrent.futures, multiprocessing, os, time\n"
        "from millrace.runtime.child_process import end_with_parent\n"
        "pool = concurrent.futures.ProcessPoolExecutor(\n"
        "    1, multiprocessing.get_context('spawn'), initializer=end_with_parent, initargs=(os.getpid(),))\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 60)\n"
        "time.sleep(60)\n"
    )
    child = script(pool, ready=False)
    wait_until(lambda: child.log_tail().isdigit(), 30.0, "a worker")
    worker = int(child.log_tail())
    assert start_time(worker) is not None
    child.kill()
    wait_until(lambda: start_time(worker) is None, 10.0, "the end of the worker")
