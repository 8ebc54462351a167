"""A child process with a log file, a ready file, and a clean end."""

import ctypes
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError

_TERMINATE_SECONDS = 20.0
_LOG_TAIL_BYTES = 2000
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_libc = ctypes.CDLL(None)


class ChildProcessError(RuntimeError):
    """A child ended when it should not have, or did not get ready."""


class ChildProcess:
    """Starts `args` with stdout and stderr in `<folder>/<name>.log`.

    A process that takes `--ready-file` gets `<folder>/<name>.ready.json`; `ready` holds its content after
    `wait_ready`. Restarting is `start()` again: the log goes on, the ready file is new. With `ends_with_parent` the
    kernel kills it when the thread that started it ends, by SIGKILL too.
    """

    def __init__(
        self,
        name: str,
        args: Sequence[str],
        folder: Path,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        ends_with_parent: bool = False,
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.ready_path = folder / f"{name}.ready.json"
        self.args = [*args, "--ready-file", str(self.ready_path)] if ready else list(args)
        self.ready: dict[str, object] = {}
        self._env = {**os.environ, **(env or {})}
        self._before_exec = end_with_parent if ends_with_parent else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ChildProcessError(f"{self.name} was never started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.ready_path.unlink(missing_ok=True)
        self.ready = {}
        with open(self.log_path, "ab") as log:
            # A session of its own: a Ctrl-C at the terminal reaches the parent, which stops its children in order.
            self._process = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
                preexec_fn=self._before_exec,
            )

    def wait_ready(self, seconds: float) -> dict[str, object]:
        """Returns the ready file's content; raises ChildProcessError when the child ends first."""

        def is_ready() -> bool:
            if not self.running():
                raise ChildProcessError(f"{self.name} exited with {self.exit_code}: {self.log_tail()}")
            return self.ready_path.exists()

        wait_until(is_ready, seconds, f"{self.name} ready ({self.log_path})")
        self.ready = json.loads(self.ready_path.read_text("utf-8"))
        return self.ready

    def wait_listening(self, port: int, seconds: float, flag: str, value: str) -> None:
        """Returns when localhost:`port` accepts connections.

        Raises:
          UserError: the child has ended, or was too slow and is stopped; `flag` and `value` say what asked for it.
        """

        def is_listening() -> bool:
            if not self.running():
                raise UserError(flag, value, f"{self.name} ended: {self.log_tail()[-200:]}", f"read {self.log_path}")
            try:
                socket.create_connection(("localhost", port), timeout=1.0).close()
            except OSError:
                return False
            return True

        try:
            wait_until(is_listening, seconds, f"{self.name} on port {port}")
        except TimeoutError as error:
            self.stop()
            raise UserError(flag, value, str(error), f"read {self.log_path}") from error

    def kill(self) -> None:
        """SIGKILL, and reaps."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = _TERMINATE_SECONDS) -> int | None:
        """SIGTERM, then SIGKILL after `seconds`; returns the exit code (None if it never ran)."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def wait(self, seconds: float) -> int:
        """Waits for it to end by itself; raises subprocess.TimeoutExpired."""
        if self._process is None:
            raise ChildProcessError(f"{self.name} was never started")
        return self._process.wait(seconds)

    def log_tail(self) -> str:
        data = self.log_path.read_bytes() if self.log_path.exists() else b""
        return data[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()


def end_with_parent(parent: int | None = None) -> None:
    """From now on the kernel kills this process when the thread that started it ends, by SIGKILL too.

    Args:
      parent: pid of the process that started it: this one ends at once if that has ended already.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
