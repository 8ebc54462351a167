"""A ZooKeeper session whose ephemeral nodes outlive lost sessions and restarts of the server."""

import logging
import threading
from collections.abc import Mapping

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.retry import KazooRetry

from runtime.errors import UserError

_LOG = logging.getLogger(__name__)
_SESSION_SECONDS = 10.0
_CONNECT_SECONDS = 10.0
# Nodes are looked at again this often even when nothing seems to have happened: another process may have removed them.
_ASSERT_SECONDS = 5.0
_RETRY_SECONDS = 0.5


class ZooKeeperSession:
    """Publishes ephemeral nodes and puts them back whenever they are lost.

    `publish` and `withdraw` never block and never fail: a thread of the session's own brings ZooKeeper in line with
    what was last asked, as soon as there is a server.

    Args:
      address: `host:port[,host:port]`.
    """

    def __init__(
        self, address: str, session_seconds: float = _SESSION_SECONDS, assert_seconds: float = _ASSERT_SECONDS
    ) -> None:
        self._assert_seconds = assert_seconds
        self._lock = threading.Lock()
        self._wanted: dict[str, bytes] = {}
        self._unwanted: set[str] = set()
        self._wake = threading.Event()
        self._stopped = False
        self._client = KazooClient(
            hosts=address,
            timeout=session_seconds,
            connection_retry=KazooRetry(max_tries=-1, delay=0.1, backoff=2, max_delay=1.0),
        )
        self._client.add_listener(self._state_changed)
        self._thread = threading.Thread(target=self._run, name="zookeeper", daemon=True)

    def start(self) -> None:
        """Connects in the background."""
        self._client.start_async()
        self._thread.start()

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    def publish(self, path: str, data: bytes) -> None:
        """Wants an ephemeral node of this session at `path`; parents are created as needed."""
        with self._lock:
            if self._wanted.get(path) == data:
                return
            self._wanted[path] = data
            self._unwanted.discard(path)
        self._wake.set()

    def withdraw(self, path: str) -> None:
        """Wants no node at `path` that was published here."""
        with self._lock:
            if self._wanted.pop(path, None) is None:
                return
            self._unwanted.add(path)
        self._wake.set()

    def children(self, path: str) -> dict[str, bytes]:
        """{name: data} of the nodes below `path`; {} when there is none. Raises KazooException without a server."""
        try:
            names = self._client.get_children(path)
        except NoNodeError:
            return {}
        found = {}
        for name in names:
            try:
                found[name] = self._client.get(f"{path}/{name}")[0]
            except NoNodeError:  # gone between the two reads
                continue
        return found

    def close(self) -> None:
        """Ends the session, and with it the nodes."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=_CONNECT_SECONDS)
        self._client.stop()
        self._client.close()

    def _state_changed(self, state: str) -> None:
        # Runs on kazoo's thread, which must not block: only wake the session's own.
        _LOG.info("session %s", state.lower())
        if state == KazooState.CONNECTED:
            self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._assert_seconds)
            self._wake.clear()
            if self._stopped or not self._client.connected:
                continue
            try:
                self._assert_nodes()
            except (KazooException, KazooTimeoutError) as error:
                _LOG.warning("nodes not published (%s); trying on", type(error).__name__)
                threading.Event().wait(_RETRY_SECONDS)
                self._wake.set()

    def _assert_nodes(self) -> None:
        with self._lock:
            wanted: Mapping[str, bytes] = dict(self._wanted)
            unwanted = set(self._unwanted)
        for path in unwanted:
            try:
                self._client.delete(path)
            except NoNodeError:
                pass
            with self._lock:
                self._unwanted.discard(path)
        for path, data in wanted.items():
            self._assert_node(path, data)

    def _assert_node(self, path: str, data: bytes) -> None:
        try:
            self._client.create(path, data, ephemeral=True, makepath=True)
            return
        except NodeExistsError:
            pass
        try:
            found, stat = self._client.get(path)
            session_id = self._client.client_id[0] if self._client.client_id else 0
            if stat.ephemeralOwner != session_id:
                # A predecessor's node vanishes when its session expires; data written into it would go with it.
                self._client.delete(path)
                self._client.create(path, data, ephemeral=True, makepath=True)
            elif found != data:
                self._client.set(path, data)
        except (NoNodeError, NodeExistsError):  # someone else was at it; the next round sees how it ended
            self._wake.set()


def check_zookeeper(address: str, field: str = "--zookeeper", seconds: float = _CONNECT_SECONDS) -> None:
    """Raises UserError unless a ZooKeeper server accepts a session."""
    client = KazooClient(hosts=address, timeout=seconds)
    try:
        client.start(timeout=seconds)
    except KazooTimeoutError as error:
        remedy = "start one with `millrace dev up` or name another address"
        raise UserError(field, address, "no ZooKeeper answers", remedy) from error
    finally:
        client.stop()
        client.close()
