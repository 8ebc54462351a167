"""Trainers of several folders keep each other out by a node of ZooKeeper."""

import json
import threading
from pathlib import Path

import pytest

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import StoppedError, UserError
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.zookeeper import ZooKeeperSession
from millrace.training.state.lease import LeaseLostError
from millrace.training.state.shared_lease import SharedLease

pytestmark = pytest.mark.service

SECONDS = 60.0


def session(address: str) -> ZooKeeperSession:
    return ZooKeeperSession(address, timeout_seconds=2.0)


def test_a_second_trainer_is_told_who_trains_the_model_or_waits_for_its_end(zookeeper: str, tmp_path: Path) -> None:
    first = SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "a")
    assert first.holds()
    with pytest.raises(UserError, match=rf"the model is trained by process \d+ on .* in {tmp_path / 'a'}"):
        SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "b")
    with pytest.raises(StoppedError):
        SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "b", wait=True, stopped=lambda: True)
    taken: list[SharedLease] = []
    spare = threading.Thread(
        target=lambda: taken.append(SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "b", wait=True))
    )
    spare.start()
    first.close()
    spare.join(SECONDS)
    assert taken[0].holds()
    taken[0].close()


def test_the_node_of_a_dead_process_of_this_folder_is_replaced_at_once(zookeeper: str, tmp_path: Path) -> None:
    dead = session(zookeeper)  # its session is open yet, as after a SIGKILL
    first = SharedLease(dead, tmp_path.name, "m", tmp_path)
    second = SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path)
    assert second.holds()
    with pytest.raises(LeaseLostError, match="has taken over"):
        first.holds()
    first.close()
    second.close()


def test_nobody_may_publish_while_zookeeper_is_away_and_the_owner_goes_on_when_it_is_back(
    own_servers: DevServers, tmp_path: Path
) -> None:
    lease = SharedLease(session(own_servers.zookeeper_address), "ns", "m", tmp_path)
    own_servers.zookeeper.stop()
    wait_until(lambda: not lease.holds(), SECONDS, "the lease is uncertain")
    own_servers.zookeeper.start()
    wait_until(lease.holds, SECONDS, "the lease is certain again")
    lease.close()


def test_a_trainer_whose_session_ran_out_publishes_nothing_once_another_one_has_begun(
    zookeeper: str, tmp_path: Path
) -> None:
    first = SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "a")
    observer = session(zookeeper)
    observer.delete(f"/{tmp_path.name}/trainer/m")  # as ZooKeeper does when a session runs out
    second = SharedLease(session(zookeeper), tmp_path.name, "m", tmp_path / "b")
    assert json.loads(observer.get(f"/{tmp_path.name}/trainer/m") or b"")["model_dir"] == str(tmp_path / "b")
    with pytest.raises(LeaseLostError, match=f"in {tmp_path / 'b'} has taken over"):
        first.holds()
    for each in (first, second, observer):
        each.close()
