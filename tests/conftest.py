"""Factories that the tests share: servers, topics, processes."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.kafka_client import KafkaConnection, make_admin
from millrace.runtime.servers.artifacts import cache_folder
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics

REPOSITORY = Path(__file__).resolve().parents[1]
_CLI_SECONDS = 60

StartProcess = Callable[..., ChildProcess]
RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


# A busy machine is no failure: no test asserts a wall-clock time.
hypothesis.settings.register_profile("millrace", deadline=None)
hypothesis.settings.load_profile("millrace")


def pytest_configure() -> None:
    # A terminated run (a time-out of CI) tears its fixtures down too: no server and no child is left behind.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    """Takes back what a test, or code that it ran, set in the environment: later tests start processes with it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServers]:
    """The Kafka and ZooKeeper of the whole run, shared by the workers of pytest-xdist; the last one stops them."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    folder = folder / "servers"
    folder.mkdir(exist_ok=True)
    servers = DevServers(folder)
    with _UserCount(folder, +1):
        servers.up()
    try:
        yield servers
    finally:
        with _UserCount(folder, -1) as left:
            if not left.count:
                servers.down()
                shutil.rmtree(folder, ignore_errors=True)


class _UserCount:
    """Holds a lock on `folder` while the number of its users changes by `change`."""

    def __init__(self, folder: Path, change: int) -> None:
        self._lock_path, self._change = folder.with_name(f"{folder.name}.lock"), change
        self.count = 0

    def __enter__(self) -> "_UserCount":
        self._file = open(self._lock_path, "a+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        self.count = int(self._file.read() or 0) + self._change
        self._file.truncate(0)
        self._file.write(str(self.count))
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.fixture(scope="session")
def kafka(shared_servers: DevServers) -> KafkaConnection:
    """A broker that other tests use too: topics of one's own come from `topics`."""
    return KafkaConnection(shared_servers.kafka_address)


@pytest.fixture(scope="session")
def zookeeper(shared_servers: DevServers) -> str:
    """`host:port` of a ZooKeeper that other tests use too: take paths of one's own."""
    return shared_servers.zookeeper_address


@pytest.fixture
def topics(kafka: KafkaConnection) -> Iterator[Topics]:
    """Topic names that no other test has; what was created of them is deleted afterwards."""
    names = Topics(f"t{uuid.uuid4().hex[:10]}.")
    yield names
    admin = make_admin(kafka)
    created = [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(names.prefix)]
    for future in admin.delete_topics(created, operation_timeout=10).values() if created else ():
        future.result()


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[DevServers]:
    """A Kafka and a ZooKeeper of this test alone, for tests that stop, kill or restart them."""
    servers = DevServers(tmp_path / "servers")
    try:
        for server in servers.servers:
            server.start()
        yield servers
    finally:
        servers.down()


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """start_process(args, name, env=None, ready=True) -> ChildProcess, started; stopped when the test ends.

    `ready`: the command takes --ready-file, so that `wait_ready(seconds)` works. Logs: <tmp_path>/<name>.log.
    """
    started: list[ChildProcess] = []

    def start(args: Sequence[str], name: str, env: Mapping[str, str] | None = None, ready: bool = True) -> ChildProcess:
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        folders = f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        base = {"PATH": path, "PYTHONPATH": folders, "MILLRACE_STATE": str(tmp_path / "state")}
        child = ChildProcess(name, args, tmp_path, base | {**(env or {})}, ready)
        started.append(child)
        child.start()
        return child

    yield start
    for child in reversed(started):
        child.stop()


@pytest.fixture
def start_millrace(start_process: StartProcess) -> StartProcess:
    """start_millrace("serve", "--port", "0", name="serve", env=None, ready=True) -> ChildProcess, started."""

    def start(
        command: str, *flags: str, name: str = "", env: Mapping[str, str] | None = None, ready: bool = True
    ) -> ChildProcess:
        return start_process([sys.executable, "-m", "millrace.cli.main", command, *flags], name or command, env, ready)

    return start


@pytest.fixture
def run_millrace(tmp_path: Path) -> RunCli:
    """run_millrace("dev", "status", env=None, timeout=60) -> CompletedProcess with text output, cwd tmp_path.

    The developer's own servers are out of reach: state lies under tmp_path, MILLRACE_* addresses are unset.
    """

    def run(
        *args: str, env: Mapping[str, str] | None = None, timeout: float = _CLI_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        base = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        base |= {
            "MILLRACE_CACHE": str(cache_folder()),
            "PYTHONPATH": str(REPOSITORY),
            "MILLRACE_STATE": str(tmp_path / "state"),
            **(env or {}),
        }
        return subprocess.run(
            [sys.executable, "-m", "millrace.cli.main", *args],
            cwd=tmp_path,
            env=base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def assert_user_error(run_millrace: RunCli) -> Callable[..., str]:
    """assert_user_error("serve", "--port", "x", mentions=["--port", "x"]) runs the command and returns the line.

    It must print exactly one line on stderr that starts with `millrace` and holds every word of `mentions`, nothing on
    stdout, and exit with code 2.
    """

    def check(*args: str, mentions: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
        done = run_millrace(*args, env=env)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("millrace") and ": error: " in lines[0]
        for word in mentions:
            assert word in lines[0], lines[0]
        return lines[0]

    return check
