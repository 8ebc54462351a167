"""Which version of a model should run: a reducer over the events of the model."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from millrace.protos import model_event_pb2

SUB_GRAPH = "standalone"
_SCHEMA_VERSION = 1


class EventError(ValueError):
    """A model event that cannot be understood; it is counted and passed over."""


@dataclass(frozen=True)
class Target:
    """The version that should run and the folder that holds it, named like the version."""

    version: int
    path: Path


class DesiredState:
    """Folds events in the order of the topic into one target.

    EXPORT moves forward only: a version that is not above the newest seen is a duplicate or late. ROLLBACK always
    wins; a later EXPORT above the newest seen resumes. RETIRE leaves no target.
    """

    def __init__(self, bzid: str, model: str) -> None:
        self._bzid = bzid
        self._model = model
        self.target: Target | None = None
        self.retired = False
        self.newest_seen = 0

    def apply(self, value: bytes) -> bool:
        """Applies one event; returns whether the target changed. EventError for a malformed one."""
        event = _parse(value)
        if (event.bzid or "default", event.model_name) != (self._bzid, self._model):
            return False
        before = (self.target, self.retired)
        if event.kind == model_event_pb2.ModelEvent.RETIRE:
            self.target, self.retired = None, True
        elif event.kind in (model_event_pb2.ModelEvent.EXPORT, model_event_pb2.ModelEvent.ROLLBACK):
            target = _target(event)
            if event.kind == model_event_pb2.ModelEvent.ROLLBACK or target.version > self.newest_seen:
                self.target, self.retired = target, False
                self.newest_seen = max(self.newest_seen, target.version)
        return (self.target, self.retired) != before


def _parse(value: bytes) -> model_event_pb2.ModelEvent:
    event = model_event_pb2.ModelEvent()
    try:
        json_format.Parse(value, event, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise EventError(f"not a model event: {error}") from error
    if event.schema_version != _SCHEMA_VERSION:
        raise EventError(f"schema_version is {event.schema_version}, this agent reads {_SCHEMA_VERSION}")
    if not event.model_name or event.kind == model_event_pb2.ModelEvent.KIND_UNSPECIFIED:
        raise EventError("model_name or kind is missing")
    return event


def _target(event: model_event_pb2.ModelEvent) -> Target:
    if event.version <= 0:
        raise EventError(f"version is {event.version}, must be positive")
    if SUB_GRAPH in event.sub_graphs:
        path = Path(event.sub_graphs[SUB_GRAPH].path)
    else:
        path = Path(event.export_base) / str(event.version)
    if not path.is_absolute() or path.name != str(event.version):
        raise EventError(f"path '{path}' is not an absolute path that ends in the version {event.version}")
    return Target(event.version, path)
