"""The lease of a model among trainers of several hosts and folders: an ephemeral node of ZooKeeper."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from millrace.runtime.errors import FOREIGN_JSON_ERRORS, StoppedError, UserError
from millrace.runtime.zookeeper import ZooKeeperError, ZooKeeperSession
from millrace.training.state.lease import LeaseLostError

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2  # how soon a spare takes over after the node of its predecessor is gone
_LOG_SECONDS = 10.0


class SharedLease:
    """Holds `/<namespace>/trainer/<model>` from construction to `close`; a crash frees it after the session's time-out.

    Args:
      session: is closed with the lease.
      namespace, model: of the node; a topic prefix is part of the model's name.
      model_dir: its own lease is held already. A node of this host that names it is therefore of a dead process, and
        is replaced at once.
      wait: wait for another owner's end, instead of refusing.
      stopped: asked while waiting; true ends the wait.

    Raises:
      UserError: another trainer has the node.
      StoppedError: `stopped` ended the wait.
    """

    def __init__(
        self,
        session: ZooKeeperSession,
        namespace: str,
        model: str,
        model_dir: Path,
        wait: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._session, self._path = session, f"/{namespace}/trainer/{model}"
        self._place = {"host": socket.gethostname(), "model_dir": str(model_dir.resolve())}
        self._data = json.dumps(self._place | {"pid": os.getpid(), "since_ms": time.time_ns() // 1_000_000}).encode()
        try:
            self._take(wait, stopped)
        except BaseException:
            session.close()
            raise

    def holds(self) -> bool:
        """Whether this process may publish now: it has the node, and ZooKeeper says so at this moment.

        While ZooKeeper is away nobody may: the node may go with the session, and another trainer may have it then.

        Raises:
          LeaseLostError: another trainer has the node.
        """
        try:
            other = self._session.claim(self._path, self._data)
        except ZooKeeperError as error:
            _LOG.debug("the lease is not certain: %s", error)
            return False
        if other is not None:
            raise LeaseLostError(f"{_owner(other)} has taken over; this trainer has published nothing since")
        return True

    def close(self) -> None:
        """Lets the next owner in."""
        self._session.close()

    def _take(self, wait: bool, stopped: Callable[[], bool]) -> None:
        quiet_until = 0.0
        while True:
            problem = self._attempt(wait)
            if not problem:
                return
            if time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + _LOG_SECONDS
                _LOG.info("waiting for %s: %s", self._path, problem)
            if stopped():
                raise StoppedError(f"stopped while waiting for {self._path}")
            time.sleep(_POLL_SECONDS)

    def _attempt(self, wait: bool) -> str:
        """Claims the node; returns why it could not, empty when this process has it."""
        try:
            other = self._session.claim(self._path, self._data)
            if other is not None and self._is_dead(other):
                self._session.delete(self._path)
                other = self._session.claim(self._path, self._data)
        except ZooKeeperError as error:
            return str(error)
        if other is None:
            return ""
        if not wait:
            raise UserError(
                "--zookeeper",
                self._path,
                f"the model is trained by {_owner(other)}",
                "stop that process, or give --wait-for-lease to take over when it ends",
            )
        return f"the model is trained by {_owner(other)}"

    def _is_dead(self, other: bytes) -> bool:
        fields = _fields(other)
        return {name: fields.get(name) for name in self._place} == self._place


def _fields(data: bytes) -> dict[str, object]:
    try:
        fields = json.loads(data)
    except FOREIGN_JSON_ERRORS:
        return {}
    return fields if isinstance(fields, dict) else {}


def _owner(data: bytes) -> str:
    fields = _fields(data)
    return f"process {fields.get('pid')} on {fields.get('host')} in {fields.get('model_dir')}"
