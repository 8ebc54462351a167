"""A session against a real ZooKeeper, through restarts of the server."""

import socket
import uuid

import pytest

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.zookeeper import ZooKeeperError, ZooKeeperSession

_SECONDS = 20.0


@pytest.fixture
def root() -> str:
    return f"/test-{uuid.uuid4().hex[:10]}"


@pytest.mark.service
def test_an_ephemeral_node_is_there_until_its_session_closes(zookeeper: str, root: str) -> None:
    with ZooKeeperSession(zookeeper) as reader:
        with ZooKeeperSession(zookeeper) as owner:
            owner.register(f"{root}/replicas/a", b"one")
            assert reader.children(f"{root}/replicas") == ["a"]
            owner.register(f"{root}/replicas/a", b"two")
            assert reader.get(f"{root}/replicas/a") == b"two"
        assert reader.children(f"{root}/replicas") == []
        assert reader.get(f"{root}/replicas/a") is None


@pytest.mark.service
def test_an_unregistered_node_does_not_come_back(zookeeper: str, root: str) -> None:
    with ZooKeeperSession(zookeeper) as session:
        session.register(f"{root}/a", b"")
        session.unregister(f"{root}/a")
        session.unregister(f"{root}/a")
        session._check()
        assert session.children(root) == []


@pytest.mark.service
def test_a_claimed_node_belongs_to_one_session_until_that_closes(zookeeper: str, root: str) -> None:
    path = f"{root}/replicas/a"
    with ZooKeeperSession(zookeeper) as second:
        with ZooKeeperSession(zookeeper) as first:
            assert first.claim(path, b"first") is None
            assert second.claim(path, b"second") == b"first"
            assert first.claim(path, b"changed") is None
            assert second.claim(path, b"second") == b"changed"
        assert second.claim(path, b"second") is None
        assert second.get(path) == b"second"


@pytest.mark.service
def test_a_node_that_somebody_deleted_is_made_again(zookeeper: str, root: str) -> None:
    with ZooKeeperSession(zookeeper) as owner, ZooKeeperSession(zookeeper) as other:
        owner.register(f"{root}/a", b"data")
        other.delete(f"{root}/a")
        wait_until(lambda: other.get(f"{root}/a") == b"data", _SECONDS, "the node made again")


@pytest.mark.service
def test_watchers_hear_of_every_state_from_absent_to_absent(zookeeper: str, root: str) -> None:
    names: list[list[str]] = []
    data: list[bytes | None] = []
    with ZooKeeperSession(zookeeper) as watcher, ZooKeeperSession(zookeeper) as writer:
        watcher.watch_children(root, names.append)
        watcher.watch_data(f"{root}/a", data.append)
        wait_until(lambda: names == [[]] and data == [None], _SECONDS, "first calls")
        writer.set(f"{root}/a", b"1")
        wait_until(lambda: names[-1] == ["a"] and data[-1] == b"1", _SECONDS, "the new node")
        writer.set(f"{root}/a", b"2")
        wait_until(lambda: data[-1] == b"2", _SECONDS, "the new data")
        writer.delete(f"{root}/a")
        wait_until(lambda: names[-1] == [] and data[-1] is None, _SECONDS, "the deletion")


@pytest.mark.service
def test_a_watcher_that_raises_does_not_stop_the_others(zookeeper: str, root: str) -> None:
    heard: list[bytes | None] = []

    def fail(_: bytes | None) -> None:
        raise RuntimeError("watcher")

    with ZooKeeperSession(zookeeper) as session:
        session.watch_data(f"{root}/a", fail)
        session.watch_data(f"{root}/a", heard.append)
        session.set(f"{root}/a", b"1")
        wait_until(lambda: heard[-1:] == [b"1"], _SECONDS, "the second watcher")


@pytest.mark.service
def test_nodes_and_watches_outlive_a_restart_of_the_server(own_servers: DevServers, root: str) -> None:
    server = own_servers.zookeeper
    address = own_servers.zookeeper_address
    names: list[list[str]] = []
    with ZooKeeperSession(address, timeout_seconds=1.0) as session:
        session.register(f"{root}/a", b"data")
        session.watch_children(root, names.append)
        wait_until(lambda: names == [["a"]], _SECONDS, "the first call")
        server.kill()
        wait_until(lambda: not session.connected, _SECONDS, "the connection lost")
        with pytest.raises(ZooKeeperError):
            session.get(f"{root}/a")
        session.register(f"{root}/b", b"made while the server is away")
        server.restart()
        wait_until(lambda: names[-1:] == [["a", "b"]], _SECONDS, "both nodes back")
        assert own_servers.zookeeper_address == address


def test_an_unreachable_server_is_a_user_error_that_names_the_flag() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match="--zookeeper=127.0.0.1:.*no ZooKeeper answers"):
            ZooKeeperSession(address, connect_seconds=0.5)
