"""One process at a time writes into a model directory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from millrace.runtime.errors import StoppedError, UserError
from millrace.training.state.lease import Lease, LeaseLostError, Owner, read_owner
from tests.conftest import REPOSITORY

_HOLD = """
import sys
from pathlib import Path
from millrace.training.state.lease import Lease
lease = Lease(Path(sys.argv[1]))
lease.raise_to("abc", 7)
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    """A process that has the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_has_the_lease(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(UserError, match=rf"in use by process {process.pid} on .* since 20"):
            Lease(tmp_path)
        assert (read_owner(tmp_path).lineage, read_owner(tmp_path).epoch) == ("abc", 7)
    finally:
        process.kill()
        process.wait()


def test_a_killed_owner_leaves_the_lease_to_a_spare_that_waits(tmp_path: Path) -> None:
    process = hold(tmp_path)
    taken: list[Lease] = []
    spare = threading.Thread(target=lambda: taken.append(Lease(tmp_path, wait=True)))
    spare.start()
    assert not taken
    process.kill()
    process.wait()
    spare.join(30.0)
    assert taken[0].before.epoch == 7
    assert taken[0].owner.pid == os.getpid()
    taken[0].close()


def test_a_spare_that_is_stopped_stops_waiting(tmp_path: Path) -> None:
    held = Lease(tmp_path)
    with pytest.raises(StoppedError, match="stopped while waiting"):
        Lease(tmp_path, wait=True, stopped=lambda: True)
    held.close()
    Lease(tmp_path).close()


def test_two_leases_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    held = Lease(tmp_path)
    with pytest.raises(UserError, match="in use"):
        Lease(tmp_path)
    held.close()


def test_a_lock_that_was_removed_is_lost(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.check()
    (tmp_path / "lease.lock").unlink()
    other = Lease(tmp_path)
    with pytest.raises(LeaseLostError, match="removed or replaced"):
        lease.check()
    other.check()
    lease.close()
    other.close()


def test_a_folder_that_nobody_owned_has_an_empty_owner_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert read_owner(tmp_path) == Owner()
    whole = '{"lineage": "a", "epoch": %s, "host": "h", "pid": 1, "since_ms": %s}'
    for damaged in ("{", "[" * 100_000, whole % (1 << 63, 0), whole % ("1e999", 0), whole % (1, "1e300")):
        (tmp_path / "lease.json").write_text(damaged)
        with pytest.raises(UserError, match="not a lease"):
            Lease(tmp_path)
