"""What a replica shows in ZooKeeper, as ephemeral nodes.

    /<bzid>/container_service/<cluster>:<replica>                   where it answers: {"grpc", "agent", ...}
    /<bzid>/binding/<model>/standalone:<cluster>:<replica>          what it answers: {"versions": [...], "state", ...}

The binding exists only while a version is AVAILABLE, so its parent lists the replicas that can be asked.
"""

import json
import re
from typing import Protocol

from millrace.runtime.errors import UserError
from millrace.serving.agent.desired_state import SUB_GRAPH

# ":" joins names inside a node's name, so it cannot be part of one.
_NAME = re.compile(r"[-_.0-9A-Za-z]+")
_CLUSTER = "default"


class Nodes(Protocol):
    """The part of `millrace.runtime.zookeeper.ZooKeeperSession` that is used here."""

    def register(self, path: str, data: bytes) -> None: ...

    def unregister(self, path: str) -> None: ...


def check_name(field: str, name: str) -> str:
    """`name`, or a UserError when it cannot be part of a node's name."""
    if not _NAME.fullmatch(name):
        raise UserError(field, name, "is not a name", "use letters, digits, '-', '_' and '.'")
    return name


def service_path(bzid: str, replica_id: str) -> str:
    return f"/{bzid}/container_service/{_CLUSTER}:{replica_id}"


def bindings_path(bzid: str, model: str) -> str:
    """The parent of the model's bindings."""
    return f"/{bzid}/binding/{model}"


def binding_path(bzid: str, model: str, replica_id: str) -> str:
    return f"{bindings_path(bzid, model)}/{SUB_GRAPH}:{_CLUSTER}:{replica_id}"


class Registry:
    """The nodes of one replica of one model."""

    def __init__(self, nodes: Nodes, bzid: str, model: str, replica_id: str) -> None:
        self._nodes = nodes
        self._service = service_path(bzid, replica_id)
        self._binding = binding_path(bzid, model, replica_id)

    def register(self, grpc_address: str, agent_address: str) -> None:
        """Shows where the replica's server and agent answer."""
        info = {"grpc": grpc_address, "http": None, "archon": None, "agent": agent_address, "idc": None}
        self._nodes.register(self._service, json.dumps(info | {"debug_info": None}).encode())

    def report(self, versions: list[int], state: str, error: str) -> None:
        """Shows which versions can be asked; none removes the binding."""
        if not versions:
            self._nodes.unregister(self._binding)
            return
        data = {"versions": versions, "state": state, "error": error}
        self._nodes.register(self._binding, json.dumps(data).encode())
