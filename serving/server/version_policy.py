"""What to do next with the versions of one model: pure functions of a snapshot of them."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from millrace.serving.server.servable import State


@dataclass(frozen=True)
class VersionSnapshot:
    """One version as it is; two have the same number while one with another folder or hold replaces the other."""

    version: int
    state: State
    is_aspired: bool


class ActionKind(enum.Enum):
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Action:
    """What to do with the version at place `index` of the snapshot."""

    kind: ActionKind
    index: int


def best(versions: Sequence[VersionSnapshot]) -> int | None:
    """Place of the version that answers requests for no version in particular; None when none is AVAILABLE.

    The target, the newest aspired version, answers as soon as it is AVAILABLE. Until then it is the version nearest to
    it: the newest of those before it, or, in a rollback, the oldest of those after it.
    """
    available = [index for index, snapshot in enumerate(versions) if snapshot.state is State.AVAILABLE]
    target = max((snapshot.version for snapshot in versions if snapshot.is_aspired), default=None)

    def nearness(index: int) -> tuple[bool, int, bool]:
        snapshot = versions[index]
        is_before = target is None or snapshot.version <= target
        return is_before, snapshot.version if is_before else -snapshot.version, snapshot.is_aspired

    return max(available, key=nearness, default=None)


def next_action(versions: Sequence[VersionSnapshot]) -> Action | None:
    """The availability-preserving policy: a version is loaded before the one that it replaces is unloaded.

    Unloads what is no longer aspired, oldest first, except the `best` version while anything is aspired: so a model
    that was AVAILABLE stays so, and a load that took longer than the time between two versions is not in vain. Loads
    aspired versions, newest first, one at a time and only when nothing is being unloaded: each further one would be a
    further copy in memory. Idempotent: a snapshot whose action is under way (LOADING, UNLOADING) does not ask for it
    again.
    """
    any_aspired = any(snapshot.is_aspired for snapshot in versions)
    spared = best(versions) if any_aspired else None
    gone = [
        index
        for index, snapshot in enumerate(versions)
        if snapshot.state is State.AVAILABLE and not snapshot.is_aspired and index != spared
    ]
    if gone:
        return Action(ActionKind.UNLOAD, min(gone, key=lambda index: versions[index].version))
    if any(snapshot.state in (State.LOADING, State.UNLOADING) for snapshot in versions):
        return None
    new = [index for index, snapshot in enumerate(versions) if snapshot.is_aspired and snapshot.state is State.START]
    if new:
        return Action(ActionKind.LOAD, max(new, key=lambda index: versions[index].version))
    return None
