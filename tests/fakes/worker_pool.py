"""Beam's Python workers outside the feed, which a test can kill one by one."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.servers.daemon import free_port

_START_SECONDS = 120.0  # as long as the Flink beside it may take to start


class WorkerPool:
    """Starts Beam's Python workers in processes of their own; Flink recovers when one of them is killed.

    Submit with `--environment_type=EXTERNAL --environment_config=<address>`.

    Args:
      folder: logs of the pool and of the workers; created when needed.
      env: variables of the workers, besides those of this process.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder, self._env = folder.absolute(), env or {}
        self._process: ChildProcess | None = None
        self.address = ""

    def start(self) -> None:
        """Returns when it accepts connections; raises UserError when it does not start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = [sys.executable, "-m", "millrace.cli.main", "workers", "--port", str(port)]
        environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), **self._env}
        self._process = ChildProcess("workers", command, self.folder, environment, ready=False)
        self._process.start()
        self._process.wait_listening(port, _START_SECONDS, "--runner", "flink")
        self.address = f"127.0.0.1:{port}"

    def worker_pids(self) -> list[int]:
        """Pids of the workers that run now."""
        if self._process is None or not self._process.running():
            return []
        # Linux lists a child under the thread that started it, and the pool starts workers from its gRPC threads.
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return sorted(int(pid) for children in threads for pid in children.read_text("ascii").split())

    def stop(self) -> None:
        """Stops the pool and its workers."""
        workers = self.worker_pids()
        if self._process is not None:
            self._process.stop()
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __enter__(self) -> "WorkerPool":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
