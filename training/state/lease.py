"""The right to write into a model directory: one process has it at a time, and it ends with the process.

`<model_dir>/lease.lock` is locked by its owner; `<model_dir>/lease.json` says who that is, of which lineage the model
is, and the epoch, which grows with each owner.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from millrace.runtime.atomic_file import write_text
from millrace.runtime.errors import FOREIGN_JSON_ERRORS, StoppedError, UserError
from millrace.runtime.topics import NUMBER_LIMIT

_LOG = logging.getLogger(__name__)
_LOCK, _OWNER = "lease.lock", "lease.json"
_MOST_MS = 1 << 53  # the year 287,000
_POLL_SECONDS = 0.05  # how soon a spare takes over after its predecessor has ended


class LeaseLostError(RuntimeError):
    """The lease is another process's now, or may be: this process must write nothing more."""


@dataclass(frozen=True)
class Owner:
    """What `lease.json` says.

    Attributes:
      lineage: id of the model from its birth; empty before the first trainer.
      epoch: number of the owner; 0 before the first trainer.
      host, pid: of the owner's process.
      since_ms: when it took the lease, Unix milliseconds.
    """

    lineage: str = ""
    epoch: int = 0
    host: str = ""
    pid: int = 0
    since_ms: int = 0

    def __str__(self) -> str:
        if not self.pid:
            return "a process that has not said its name yet"
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since_ms / 1000))
        return f"process {self.pid} on {self.host} since {since}"


class Lease:
    """The lease of one model directory, from construction to `close` or the end of the process.

    Args:
      model_dir: is created if it is missing.
      wait: wait for another owner's end, instead of refusing.
      stopped: asked while waiting; true ends the wait.

    Attributes:
      before: what `lease.json` said when the lease was taken.

    Raises:
      UserError: another process has the lease, or the file system has no locks.
      StoppedError: `stopped` ended the wait.
    """

    def __init__(self, model_dir: Path, wait: bool = False, stopped: Callable[[], bool] = lambda: False) -> None:
        self._folder = model_dir
        model_dir.mkdir(parents=True, exist_ok=True)
        self._file = _lock(model_dir, wait, stopped)
        self.before = read_owner(model_dir)
        self._since_ms = time.time_ns() // 1_000_000
        self.raise_to(self.before.lineage, self.before.epoch)

    def raise_to(self, lineage: str, epoch: int) -> None:
        """Makes it durable that this process writes lineage `lineage` as epoch `epoch`."""
        self.owner = Owner(lineage, epoch, socket.gethostname(), os.getpid(), self._since_ms)
        write_text(self._folder / _OWNER, json.dumps(asdict(self.owner)) + "\n")

    def check(self) -> None:
        """Raises LeaseLostError when the lock's file was removed or replaced, so that another process may have one.

        A file system that does not answer decides nothing.
        """
        try:
            there = os.stat(self._folder / _LOCK)
        except FileNotFoundError:
            there = None
        except OSError:
            return
        if there is None or not os.path.samestat(there, os.fstat(self._file.fileno())):
            raise LeaseLostError(f"{self._folder / _LOCK} was removed or replaced: another trainer may use the folder")

    def close(self) -> None:
        """Lets the next owner in."""
        self._file.close()


def check_not_in_use(model_dir: Path) -> None:
    """Raises UserError while another process has the lease, so that a command can say so before it loads anything."""
    if model_dir.is_dir():
        _lock(model_dir, False, lambda: False).close()


def _lock(folder: Path, wait: bool, stopped: Callable[[], bool]) -> IO[bytes]:
    waits_for = ""
    while True:
        file = _try_lock(folder)
        if file is not None:
            return file
        owner = str(read_owner(folder))
        if not wait:
            raise UserError(
                "--model-dir",
                folder,
                f"it is in use by {owner}",
                "stop that process, or name another folder; a trainer with --wait-for-lease waits for its end",
            )
        if owner != waits_for:
            _LOG.info("waiting for the lease of %s: it is in use by %s", folder, owner)
            waits_for = owner
        if stopped():
            raise StoppedError(f"stopped while waiting for the lease of {folder}")
        time.sleep(_POLL_SECONDS)


def _try_lock(folder: Path) -> IO[bytes] | None:
    """The locked file; None while another process has it, or when the file was replaced in between."""
    path = folder / _LOCK
    file = open(path, "ab")  # noqa: SIM115 (it stays open as long as the lease is held)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            return file
    except BlockingIOError:
        pass
    except OSError as error:
        file.close()
        problem = f"its file system cannot lock files ({error.strerror})"
        raise UserError("--model-dir", folder, problem, "name a folder of another file system") from error
    file.close()
    return None


def read_owner(model_dir: Path) -> Owner:
    """The newest owner of the model directory; an empty one when there was none.

    Raises:
      UserError: the file is damaged. What it knew of the model is lost, and guessing could publish another one.
    """
    path = model_dir / _OWNER
    try:
        fields = json.loads(path.read_text("utf-8"))
        owner = Owner(
            str(fields["lineage"]), int(fields["epoch"]), str(fields["host"]), int(fields["pid"]),
            int(fields["since_ms"]),
        )  # fmt: skip
        if not (0 <= owner.epoch < NUMBER_LIMIT and 0 <= owner.since_ms < _MOST_MS):
            raise ValueError(f"epoch {owner.epoch} since {owner.since_ms}")
        return owner
    except FileNotFoundError:
        return Owner()
    except FOREIGN_JSON_ERRORS as error:
        problem = f"not a lease ({type(error).__name__}: {error})"
        raise UserError("--model-dir", path, problem, "remove this file; checkpoints know the lineage too") from error
