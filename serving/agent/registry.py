"""What a replica shows in ZooKeeper, as ephemeral nodes.

    /<namespace>/agent/<model>/<replica>                            which agent has the replica's name: {"host", ...}
    /<namespace>/container_service/<cluster>:<replica>              where it answers: {"grpc", "agent", ...}
    /<namespace>/binding/<model>/standalone:<cluster>:<replica>     what it answers: {"versions": [...], "state", ...}

The binding exists only while a version is AVAILABLE, so its parent lists the replicas that can be asked.
"""

import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from millrace.runtime.errors import FOREIGN_JSON_ERRORS, UserError
from millrace.runtime.zookeeper import ZooKeeperError
from millrace.serving.agent.model_events import SUB_GRAPH

_LOG = logging.getLogger(__name__)
# ":" joins names inside a node's name, so it cannot be part of one.
_NAME = re.compile(r"[-_.0-9A-Za-z]+")
_CLUSTER = "default"
_CLAIM_SECONDS = 1.0  # a name that is free is taken this soon
_PATIENCE_SECONDS = 5.0  # a ZooKeeper that is there answers a new session within this time


class Nodes(Protocol):
    """The part of `millrace.runtime.zookeeper.ZooKeeperSession` that is used here."""

    def claim(self, path: str, data: bytes) -> bytes | None: ...

    def register(self, path: str, data: bytes) -> None: ...

    def unregister(self, path: str) -> None: ...


def check_name(field: str, name: str) -> str:
    """`name`, or a UserError when it cannot be part of a node's name."""
    if not _NAME.fullmatch(name):
        raise UserError(field, name, "is not a name", "use letters, digits, '-', '_' and '.'")
    return name


def agent_path(namespace: str, model: str, replica_id: str) -> str:
    return f"/{namespace}/agent/{model}/{replica_id}"


def service_path(namespace: str, replica_id: str) -> str:
    return f"/{namespace}/container_service/{_CLUSTER}:{replica_id}"


def bindings_path(namespace: str, model: str) -> str:
    """The parent of the model's bindings."""
    return f"/{namespace}/binding/{model}"


def binding_path(namespace: str, model: str, replica_id: str) -> str:
    return f"{bindings_path(namespace, model)}/{SUB_GRAPH}:{_CLUSTER}:{replica_id}"


class Registry:
    """The nodes of one replica of one model.

    Agents of several models beside one server share its node of `container_service`: the first that comes makes it.

    Args:
      nodes: the session; None while no ZooKeeper has answered yet.
      grpc_address, agent_address: where the replica's server and agent answer.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        nodes: Callable[[], Nodes | None],
        namespace: str,
        model: str,
        replica_id: str,
        grpc_address: str,
        agent_address: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes, self._clock = nodes, clock
        self._agent = agent_path(namespace, model, replica_id)
        self._service = service_path(namespace, replica_id)
        self._binding = binding_path(namespace, model, replica_id)
        self._identity = {"host": socket.gethostname(), "pid": os.getpid(), "server": grpc_address}
        self._data = json.dumps(self._identity | {"id": uuid.uuid4().hex}).encode()
        info = {"grpc": grpc_address, "http": None, "archon": None, "agent": agent_address, "idc": None}
        self._info = json.dumps(info | {"debug_info": None}).encode()
        self._began = clock()
        self._next_claim = 0.0
        self._rival = ""
        self._unshown: tuple[list[int], str, str] | None = None

    def is_awaited(self) -> bool:
        """Whether ZooKeeper may still say who has the name: 5 s after the start one that is silent counts as away."""
        return self._nodes() is None and self._clock() - self._began < _PATIENCE_SECONDS

    def claim(self) -> str:
        """Takes the replica's name. Returns "" once it is ours or while ZooKeeper is away, else who has it."""
        nodes, now = self._nodes(), self._clock()
        if nodes is None or now < self._next_claim:
            return self._rival
        self._next_claim = now + _CLAIM_SECONDS
        try:
            other = nodes.claim(self._agent, self._data)
            self._rival = "" if other is None else _words(other)
            if other is None:
                nodes.claim(self._service, self._info)
                if self._unshown:
                    self.report(*self._unshown)
        except ZooKeeperError as error:
            _LOG.debug("names are looked at once ZooKeeper is back (%s)", error)
        return self._rival

    def report(self, versions: list[int], state: str, error: str) -> None:
        """Shows which versions can be asked; none removes the binding."""
        nodes = self._nodes()
        self._unshown = (versions, state, error) if nodes is None else None
        if nodes is None:
            return
        if versions:
            nodes.register(self._binding, json.dumps({"versions": versions, "state": state, "error": error}).encode())
        else:
            nodes.unregister(self._binding)


def _words(data: bytes) -> str:
    """Whose node it is, for people."""
    try:
        fields = json.loads(data)
        return f"process {fields['pid']} on {fields['host']}, beside server {fields['server']}"
    except FOREIGN_JSON_ERRORS:
        return "unknown"
