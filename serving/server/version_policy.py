"""What to do next with the versions of one model: a pure function from a snapshot to at most one action."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from millrace.serving.server.servable import State


@dataclass(frozen=True)
class VersionSnapshot:
    version: int
    state: State
    is_aspired: bool


class ActionKind(enum.Enum):
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Action:
    kind: ActionKind
    version: int


def next_action(versions: Sequence[VersionSnapshot]) -> Action | None:
    """The availability-preserving policy: a version is loaded before the one that it replaces is unloaded.

    Loads every aspired version, newest first. Unloads what is no longer aspired, oldest first, but only once an
    aspired version is AVAILABLE or nothing is aspired at all: a model that was AVAILABLE stays so through a change of
    version, even when the new version cannot be loaded. Idempotent: a snapshot whose action is under way (LOADING,
    UNLOADING) does not ask for it again.
    """
    new = [snapshot.version for snapshot in versions if snapshot.is_aspired and snapshot.state is State.START]
    if new:
        return Action(ActionKind.LOAD, max(new))
    any_aspired = any(snapshot.is_aspired for snapshot in versions)
    aspired_available = any(snapshot.is_aspired and snapshot.state is State.AVAILABLE for snapshot in versions)
    stale = [s.version for s in versions if not s.is_aspired and s.state is State.AVAILABLE]
    if stale and (aspired_available or not any_aspired):
        return Action(ActionKind.UNLOAD, min(stale))
    return None
