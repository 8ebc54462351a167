"""Folders in the making, whose names say which process makes them: so what a dead process left can be told apart."""

import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_PREFIX = "temp-"
_NAME = re.compile(r"temp-(?P<stem>[^.]+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.(?P<start>\d+)\.[0-9a-f]{8}")
# A writer on another host cannot be asked. One that lives changes its folder every few seconds; a stopped host or a
# slow disk may take minutes.
_QUIET_SECONDS = 600.0


def temporary_name(stem: str) -> str:
    """`temp-<stem>.<host>.<pid>.<start of the process>.<8 hex digits>`, unique; `stem` has no dot."""
    return f"{_PREFIX}{stem}.{_host()}.{os.getpid()}.{_started(os.getpid())}.{uuid.uuid4().hex[:8]}"


def remove_leftovers(folder: Path, clock: Callable[[], float] = time.time) -> list[Path]:
    """Removes the temporary folders in `folder` whose process is gone; returns them. Those of a live one stay.

    A process of another host counts as gone when nothing in its folder has changed for ten minutes by `clock`, in Unix
    seconds. So does one that gave its folder a name of another form.
    """
    gone = [path for path in sorted(folder.glob(f"{_PREFIX}*")) if not _is_made(path, clock())]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _is_made(path: Path, now: float) -> bool:
    """Whether the process that makes `path` lives, as far as can be told."""
    name = _NAME.fullmatch(path.name)
    if name is not None and name["host"] == _host():
        return _started(int(name["pid"])) == int(name["start"])
    return now - _newest_change(path) < _QUIET_SECONDS


def _newest_change(path: Path) -> float:
    times = []
    for each in (path, *path.rglob("*")):
        try:
            times.append(each.stat().st_mtime)
        except FileNotFoundError:  # it was finished or removed in this moment
            continue
    return max(times, default=0.0)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"


def _started(pid: int) -> int:
    """When a process of this host started, in clock ticks since the host did; 0 when there is none.

    Together with its number this names a process: numbers are used again, and in a container each main process has 1.
    """
    try:
        # The second field is the program's name in parentheses, and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
