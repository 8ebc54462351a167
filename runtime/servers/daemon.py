"""A server process that goes on when its starter ends: later commands find it by pid and start time, and stop no
other."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from millrace.runtime.atomic_file import write_text
from millrace.runtime.deadline import wait_until

# Below the range from which Linux takes the local port of outgoing connections: a server that restarts finds its
# former port free.
_PORTS = range(20_000, 32_000)


def free_port(exclude: Sequence[int] = ()) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, outside the range of outgoing connections."""
    start = int.from_bytes(os.urandom(4), "little")
    for step in range(len(_PORTS)):
        port = _PORTS[(start + step) % len(_PORTS)]
        if port not in exclude and port_is_free(port):
            return port
    raise OSError("no free TCP port on 127.0.0.1")


def port_is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of `pid`; None when no such process runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


class Daemon:
    """One background process whose identity is kept in `record` (JSON: pid, start_time).

    A pid alone can be another process by now; with its start time it cannot.
    """

    def __init__(self, record: Path, log: Path) -> None:
        self._record = record
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        if self._child is not None:
            self._child.poll()  # reaps it, if it is ours and dead
        try:
            record = json.loads(self._record.read_text("utf-8"))
            pid, started = int(record["pid"]), int(record["start_time"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if start_time(pid) == started else None

    def start(self, command: Sequence[str], cwd: Path) -> None:
        """Starts it in a session of its own, its output appended to the log."""
        with open(self.log, "ab") as log:
            self._child = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        record = {"pid": self._child.pid, "start_time": start_time(self._child.pid)}
        write_text(self._record, json.dumps(record) + "\n")

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, SIGKILL after `seconds`; returns when it is gone. Nothing happens when it does not run."""
        self._signal(signal.SIGTERM)
        try:
            wait_until(lambda: self.pid() is None, seconds, "stopped process gone")
        except TimeoutError:
            pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: self.pid() is None, 10.0, "killed process gone")
        self._record.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def log_tail(self, size: int = 2000) -> str:
        """The last `size` bytes of the log."""
        data = self.log.read_bytes() if self.log.exists() else b""
        return data[-size:].decode("utf-8", "replace").strip()
