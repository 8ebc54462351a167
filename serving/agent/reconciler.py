"""What to tell the model server: a pure function of the target, what the server has and what is on disk."""

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from millrace.serving.agent.desired_state import Target
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus


class Phase(enum.StrEnum):
    """State of a replica, as it is reported in ZooKeeper and `serving.status`."""

    NO_EVENT = "NO_EVENT"  # nothing was announced yet
    WAITING_FOR_FILES = "WAITING_FOR_FILES"  # the announced folder is not there (yet)
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    STALE = "STALE"  # the target answers, with weights older than its server allows
    HELD_BACK = "HELD_BACK"  # the newest version does not pass the gate; an older version may be AVAILABLE
    FAILED = "FAILED"  # the server refused the target; an older version may be AVAILABLE
    RETIRED = "RETIRED"
    SERVER_DOWN = "SERVER_DOWN"
    NAME_TAKEN = "NAME_TAKEN"  # another agent has this replica's name: the server is told nothing
    STOPPED = "STOPPED"  # the agent has ended; its server goes on with what it has


@dataclass(frozen=True)
class Plan:
    """`versions` is what the server should be configured with, newest first; None leaves it as it is."""

    phase: Phase
    versions: tuple[int, ...] | None
    error: str = ""


def make_plan(
    target: Target | None, retired: bool, statuses: Sequence[VersionStatus], on_disk: Collection[int]
) -> Plan:
    """The target, plus what keeps answering until the target does.

    That is the newest AVAILABLE version; or, when nothing is AVAILABLE and the target was refused or is not there, the
    newest older version on disk that was not refused. A held target comes alone, because a plan holds all of its
    versions: the server unloads what runs only when the target answers.

    Args:
      statuses: the server's versions of the model.
      on_disk: versions with a folder beside the target's that may run, the target itself included when it is there.
    """
    if target is None:
        return Plan(Phase.RETIRED, ()) if retired else Plan(Phase.NO_EVENT, None)
    by_version = {status.version: status for status in statuses}
    status = by_version.get(target.version)
    if status and status.state is State.AVAILABLE:
        return Plan(Phase.AVAILABLE, (target.version,))
    error = status.error if status else ""
    is_there = target.version in on_disk
    keep = [s.version for s in statuses if s.state is State.AVAILABLE]
    if not keep and (error or not is_there):
        keep = [v for v in on_disk if v < target.version and not (v in by_version and by_version[v].error)]
    elif target.is_held:
        keep = []
    versions = (*([target.version] if is_there else []), *sorted(v for v in keep if v in on_disk)[-1:])
    if error:
        return Plan(Phase.FAILED, versions or None, error)
    if not is_there:
        return Plan(Phase.WAITING_FOR_FILES, versions or None, f"{target.path} does not exist")
    return Plan(Phase.LOADING, versions)
