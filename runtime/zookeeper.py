"""A ZooKeeper session that is made anew when it is lost, with its ephemeral nodes and watches.

Only this module touches kazoo. Paths are absolute (`/millrace/serving/...`), data are bytes.
"""

import importlib.util
import logging
import threading
from collections.abc import Callable
from typing import Any

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import ConfigurationError as KazooConfigurationError
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.protocol.states import KeeperState
from kazoo.retry import KazooRetry
from kazoo.security import CREATOR_ALL_ACL

from millrace.runtime.errors import UnreachableError, UserError
from millrace.runtime.kafka_client import read_properties

_LOG = logging.getLogger(__name__)
# Watches wake the session at once; it also looks this often, in case an event of a watch was lost.
_CHECK_SECONDS = 1.0
_REQUEST_SECONDS = 5.0


class ZooKeeperError(RuntimeError):
    """A request failed: the server is away or refused it."""


class ZooKeeperSession:
    """One client of ZooKeeper, connected from construction to `close`.

    What was registered or watched stays so: after an outage of any length, ephemeral nodes are made again and watchers
    hear what they missed. Callbacks run one at a time on a thread of the session; one that raises is logged. Requests
    (`set`, `get`, `delete`, `children`) raise ZooKeeperError while the server is away.

    Args:
      address: `host:port[,host:port]`.
      timeout_seconds: of the session: how long after a crash its ephemeral nodes stay.
      connect_seconds: how long to wait for the first connection.
      field_name: the flag that an error names.
      properties_file: TLS and credentials, one `key=value` per line (docs/running.md); never logged. With credentials
        the session's nodes are open to them alone.

    Raises:
      UserError: the properties are wrong, or the server refuses the credentials.
      UnreachableError: no server answers within `connect_seconds`; a process that runs for ever waits
        (`millrace.runtime.outage`).
    """

    def __init__(
        self,
        address: str,
        timeout_seconds: float = 4.0,
        connect_seconds: float = 10.0,
        field_name: str = "--zookeeper",
        properties_file: str | None = None,
    ) -> None:
        # kazoo repeats every attempt of a reconnect, and shows credentials that it sends.
        logging.getLogger("kazoo").setLevel(logging.ERROR)
        security = _security(properties_file) if properties_file else {}
        self._client = _client(address, timeout_seconds, security, properties_file)
        self._registered: dict[str, bytes] = {}
        self._unregistered: set[str] = set()
        self._watches: list[_Watch] = []
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closed = self._refused = False
        self._client.add_listener(self._state_changed)
        try:
            self._client.start(connect_seconds)
        except KazooTimeoutError as error:
            self._client.close()
            if self._refused:
                raise UserError(
                    "--zookeeper-properties", properties_file, "the server refuses the credentials", "correct them"
                ) from error
            raise UnreachableError(
                field_name,
                address,
                f"no ZooKeeper answers within {connect_seconds:g} s",
                "start one with `millrace dev up` or name another address",
            ) from error
        self._thread = threading.Thread(target=self._loop, name="zookeeper-session", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    def register(self, path: str, data: bytes) -> None:
        """Makes the ephemeral node `path` with its (persistent) parents, or changes its data; again when it is lost.

        A node that another session left there is replaced: give each process a path of its own. While the server is
        away this returns at once, and the node follows.
        """
        with self._lock:
            self._registered[path] = data
            self._unregistered.discard(path)
            try:
                self._make(path, data)
            except ZooKeeperError as error:
                _LOG.warning("%s is registered once ZooKeeper is back (%s)", path, error)

    def claim(self, path: str, data: bytes) -> bytes | None:
        """Makes the ephemeral node `path` unless another session has one there.

        Unlike `register` it replaces no node of another session, and makes none again: call it now and then.

        Returns: the data of the other session's node; None when the node is this session's, with `data`.
        Raises: ZooKeeperError while the server is away.
        """
        answer = self._request(lambda: self._client.get_async(path))
        if answer is not None:
            present, stat = answer
            if stat.ephemeralOwner != self._client.client_id[0]:
                return bytes(present)
            if present != data:
                self._request(lambda: self._client.set_async(path, data))
            return None
        try:
            self._request(lambda: self._client.create_async(path, data, ephemeral=True, makepath=True))
        except ZooKeeperError as error:
            if isinstance(error.__cause__, NodeExistsError):  # another session was faster
                return self.get(path) or b""
            raise
        return None

    def unregister(self, path: str) -> None:
        """Removes an ephemeral node made by `register`; once the server is back if it is away."""
        with self._lock:
            self._registered.pop(path, None)
            self._unregistered.add(path)
            try:
                self._remove(path)
            except ZooKeeperError as error:
                _LOG.warning("%s is removed once ZooKeeper is back (%s)", path, error)

    def set(self, path: str, data: bytes) -> None:
        """Writes a persistent node, with its parents when needed."""
        self._request(lambda: self._client.ensure_path_async(path))
        self._request(lambda: self._client.set_async(path, data))

    def get(self, path: str) -> bytes | None:
        """Data of `path`, None when there is no such node."""
        answer = self._request(lambda: self._client.get_async(path))
        return None if answer is None else bytes(answer[0])

    def delete(self, path: str) -> None:
        """Removes the node `path`, which has no children; nothing happens when it is not there."""
        self._request(lambda: self._client.delete_async(path))

    def children(self, path: str) -> list[str]:
        """Names below `path`, sorted; empty when there is no such node."""
        return sorted(self._request(lambda: self._client.get_children_async(path)) or ())

    def watch_children(self, path: str, callback: Callable[[list[str]], None]) -> None:
        """Calls `callback(sorted names below path)` soon, and after every change; [] while there is no such node."""
        self._add_watch(_Watch(path, lambda: self._read_children(path), callback))

    def watch_data(self, path: str, callback: Callable[[bytes | None], None]) -> None:
        """Calls `callback(data)` soon, and after every change; None while there is no such node."""
        self._add_watch(_Watch(path, lambda: self._read_data(path), callback))

    def close(self) -> None:
        """Ends the session: its ephemeral nodes are gone when this returns, if the server is there."""
        self._closed = True
        self._wake.set()
        self._thread.join(_REQUEST_SECONDS * 2)
        self._client.stop()
        self._client.close()

    def __enter__(self) -> "ZooKeeperSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_watch(self, watch: "_Watch") -> None:
        with self._lock:
            self._watches.append(watch)
        self._wake.set()

    def _state_changed(self, state: str) -> None:
        # Runs on kazoo's connection thread, where a request would wait for itself: the session's thread acts.
        _LOG.info("ZooKeeper session: %s", state.lower())
        self._refused = self._refused or self._client.client_state == KeeperState.AUTH_FAILED
        if state == KazooState.CONNECTED:
            self._wake.set()

    def _on_event(self, _event: object) -> None:
        self._wake.set()

    def _request(self, send: Callable[[], Any]) -> Any:
        """Result of an asynchronous kazoo call, None when the node is not there."""
        if not self.connected:
            raise ZooKeeperError("no connection")  # kazoo would queue the request until there is one
        try:
            return send().get(timeout=_REQUEST_SECONDS)
        except NoNodeError:
            return None
        except (KazooException, KazooTimeoutError) as error:
            raise ZooKeeperError(f"{type(error).__name__} {error}".strip()) from error

    def _make(self, path: str, data: bytes) -> None:
        """Makes the ephemeral node unless this session has it with the same data."""
        answer = self._request(lambda: self._client.get_async(path))
        if answer is not None:
            present, stat = answer
            if stat.ephemeralOwner == self._client.client_id[0]:
                if present != data:
                    self._request(lambda: self._client.set_async(path, data))
                return
            self.delete(path)
        try:
            self._request(lambda: self._client.create_async(path, data, ephemeral=True, makepath=True))
        except ZooKeeperError as error:
            if not isinstance(error.__cause__, NodeExistsError):
                raise

    def _remove(self, path: str) -> None:
        self.delete(path)
        self._unregistered.discard(path)

    def _read_children(self, path: str) -> list[str]:
        names = self._request(lambda: self._client.get_children_async(path, watch=self._on_event))
        if names is None:
            self._request(lambda: self._client.exists_async(path, watch=self._on_event))
        return sorted(names or ())

    def _read_data(self, path: str) -> bytes | None:
        answer = self._request(lambda: self._client.get_async(path, watch=self._on_event))
        if answer is None:
            self._request(lambda: self._client.exists_async(path, watch=self._on_event))
            return None
        return bytes(answer[0])

    def _loop(self) -> None:
        while not self._closed:
            try:
                self._check()
            except ZooKeeperError as error:
                _LOG.debug("ZooKeeper is away (%s)", error)
            self._wake.wait(_CHECK_SECONDS)
            self._wake.clear()

    def _check(self) -> None:
        """Makes lost nodes again and tells watchers what changed."""
        with self._lock:
            for path, data in self._registered.items():
                self._make(path, data)
            for path in list(self._unregistered):
                self._remove(path)
            watches = list(self._watches)
        for watch in watches:
            watch.check()


# Key of a properties file -> argument of kazoo's client.
_TLS = {
    "ssl.ca": "ca",
    "ssl.certificate": "certfile",
    "ssl.key": "keyfile",
    "ssl.key.password": "keyfile_password",
}
_SASL = ("sasl.mechanism", "sasl.username", "sasl.password")
_DIGEST = ("digest.username", "digest.password")


def _security(path: str) -> dict[str, Any]:
    """Arguments of kazoo's client for TLS, credentials and the access to nodes."""
    flag = "--zookeeper-properties"
    given = read_properties(path, flag)
    known = {*_TLS, *_SASL, *_DIGEST}
    for name in given:
        if name not in known:
            raise UserError(flag, path, f"{name} is unknown", f"choose from {', '.join(sorted(known))}")
    for group in (_SASL, _DIGEST):
        missing = [name for name in group if name not in given]
        if 0 < len(missing) < len(group):
            raise UserError(flag, path, f"{missing[0]} is missing", f"give {', '.join(group)}")
    settings: dict[str, Any] = {argument: given[name] for name, argument in _TLS.items() if name in given}
    if settings:
        settings |= {"use_ssl": True, "check_hostname": True}
    if _DIGEST[0] in given:
        settings["auth_data"] = [("digest", ":".join(given[name] for name in _DIGEST))]
    if _SASL[0] in given:
        if importlib.util.find_spec("puresasl") is None:
            raise UserError(flag, path, "SASL needs the package pure-sasl", "install it, or give digest.username")
        settings["sasl_options"] = {name.removeprefix("sasl."): given[name] for name in _SASL}
    if _DIGEST[0] in given or _SASL[0] in given:
        settings["default_acl"] = CREATOR_ALL_ACL
    return settings


def _client(address: str, timeout_seconds: float, security: dict[str, Any], properties_file: str | None) -> KazooClient:
    retry = KazooRetry(max_tries=-1, delay=0.1, backoff=2, max_delay=1.0)
    try:
        return KazooClient(hosts=address, timeout=timeout_seconds, connection_retry=retry, **security)
    except KazooConfigurationError:
        # No text of kazoo here: it may hold a password.
        raise UserError("--zookeeper-properties", properties_file, "kazoo refuses a value", "correct it") from None


class _Watch:
    """Calls back when what `read` returns is not what it returned before."""

    def __init__(self, path: str, read: Callable[[], Any], callback: Callable[[Any], None]) -> None:
        self._path, self._read, self._callback = path, read, callback
        self._last: tuple[Any] | None = None

    def check(self) -> None:
        value = self._read()
        if self._last == (value,):
            return
        self._last = (value,)
        try:
            self._callback(value)
        except Exception:
            _LOG.exception("a watcher of %s failed", self._path)
