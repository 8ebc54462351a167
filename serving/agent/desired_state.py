"""What the events of a model say should run: a reducer that gives the same after compaction and after a restart."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.topics import GUARD
from millrace.serving.agent.model_events import HOLDS, folder_of, parse_event

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A version that should run.

    Attributes:
      path: absolute folder, named like the version.
      is_held: it takes deltas created up to `as_of_ms` (Unix milliseconds) and none later.
    """

    version: int
    path: Path
    is_held: bool = False
    as_of_ms: int = 0


@dataclass(frozen=True)
class Announced:
    """What is left of the events of a model: the newest of each key, as compaction keeps them.

    Attributes:
      last: the last EXPORT or RETIRE that counted.
      newest: the newest EXPORT; it stays after a RETIRE.
      hold: the last ROLLBACK or RELEASE of a user.
      guard_hold: the last ROLLBACK or RELEASE of a trainer's guard; None once a user's RELEASE came after it.
    """

    last: ModelEvent | None = None
    newest: ModelEvent | None = None
    hold: ModelEvent | None = None
    guard_hold: ModelEvent | None = None

    @property
    def retired(self) -> bool:
        return self.last is not None and self.last.kind == ModelEvent.RETIRE

    @property
    def export(self) -> Target | None:
        """The newest version; None before the first."""
        return Target(self.newest.version, folder_of(self.newest)) if self.newest else None

    @property
    def rollback(self) -> ModelEvent | None:
        """The ROLLBACK in force: a user's until a user's RELEASE, else a guard's until either releases it.

        A guard's ends with its model: it says nothing about another lineage that has taken over.
        """
        user, guard = self.hold, self.guard_hold
        if user and user.kind == ModelEvent.ROLLBACK:
            return user
        is_of_model = guard is not None and (self.newest is None or guard.lineage in ("", self.newest.lineage))
        return guard if guard and is_of_model and guard.kind == ModelEvent.ROLLBACK else None

    @property
    def held(self) -> Target | None:
        """The version to which the model was rolled back; one without `as_of_ms` takes deltas up to the event."""
        event = self.rollback
        if event is None:
            return None
        return Target(event.version, folder_of(event), True, event.as_of_ms or event.created_at_ms)


class DesiredState:
    """Folds the events of one model into `announced`.

    EXPORT moves forward only, within (lineage, epoch, version): a version that is not above the newest one is a
    duplicate or late. One of another lineage is a new model under the old name; it takes over if its epoch is higher,
    as that of a trainer which has read of the other, or if it was announced later.
    ROLLBACK holds its version until RELEASE, whatever else comes; what a guard does leaves a user's ROLLBACK in force.
    RETIRE leaves nothing to run until the next EXPORT.

    Exports and holds have keys of their own, and neither looks at the order of the other. Whether a user's RELEASE or a
    guard's ROLLBACK came later, the topic says, which compaction does not reorder: their clocks are of two hosts. So
    compaction and repeated reading from the beginning change nothing.

    Args:
      announced: what an earlier process had read.
    """

    def __init__(self, namespace: str, model: str, announced: Announced | None = None) -> None:
        self._model = (namespace, model)
        self.announced = announced or Announced()

    def apply(self, value: bytes) -> bool:
        """Applies one event; returns whether `announced` changed. EventError for a malformed one."""
        event = parse_event(value)
        if (event.bzid, event.model_name) != self._model:
            return False
        before = self.announced
        if event.kind in HOLDS:
            self._take_hold(event)
        elif event.kind in (ModelEvent.EXPORT, ModelEvent.RETIRE):
            self._take_version(event)
        return self.announced != before

    def _take_hold(self, event: ModelEvent) -> None:
        if event.held_by == GUARD:
            self.announced = replace(self.announced, guard_hold=event)
        elif event.kind == ModelEvent.RELEASE:
            self.announced = replace(self.announced, hold=event, guard_hold=None)
        else:
            self.announced = replace(self.announced, hold=event)

    def _take_version(self, event: ModelEvent) -> None:
        newest = self.announced.newest
        if event.kind == ModelEvent.RETIRE:
            self.announced = replace(self.announced, last=event)
        elif newest is None or _is_newer(event, newest):
            if newest and event.lineage != newest.lineage:
                _LOG.warning(
                    "%s: version %d of lineage '%s' takes over from version %d of lineage '%s': it is newer",
                    event.model_name, event.version, event.lineage, newest.version, newest.lineage,
                )  # fmt: skip
            self.announced = replace(self.announced, last=event, newest=event)
        elif self.announced.retired and _rank(event) == _rank(newest):
            # As after compaction, which would have dropped the RETIRE.
            self.announced = replace(self.announced, last=event)
        elif event.lineage != newest.lineage:
            _LOG.warning(
                "%s: version %d of lineage '%s' is ignored: version %d of lineage '%s' is newer",
                event.model_name, event.version, event.lineage, newest.version, newest.lineage,
            )  # fmt: skip


def _rank(event: ModelEvent) -> tuple[str, int, int]:
    return event.lineage, event.epoch, event.version


def _is_newer(event: ModelEvent, newest: ModelEvent) -> bool:
    if event.lineage != newest.lineage:
        return event.epoch > newest.epoch or event.created_at_ms > newest.created_at_ms
    return _rank(event) > _rank(newest)
