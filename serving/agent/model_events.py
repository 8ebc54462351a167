"""Messages of `model.events`: read, so that each mistake has a name, and made for commands."""

import time
import uuid
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.topics import GUARD, NUMBER_LIMIT

SUB_GRAPH = "standalone"
_SCHEMA_VERSIONS = (1, 2)
HOLDS = (ModelEvent.ROLLBACK, ModelEvent.RELEASE)
_WITH_FOLDER = (ModelEvent.EXPORT, ModelEvent.ROLLBACK)


class EventError(ValueError):
    """A model event that cannot be understood; it is counted and passed over."""


def parse_event(value: bytes) -> ModelEvent:
    """The event in `value`; EventError when it is malformed. An empty name space becomes `default`."""
    event = ModelEvent()
    try:
        json_format.Parse(value, event, ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise EventError(f"not a model event: {error}") from error
    if event.schema_version not in _SCHEMA_VERSIONS:
        raise EventError(f"schema_version is {event.schema_version}, this program reads {_SCHEMA_VERSIONS}")
    if not event.model_name or event.kind == ModelEvent.KIND_UNSPECIFIED:
        raise EventError("model_name or kind is missing")
    if event.epoch >= NUMBER_LIMIT:
        raise EventError(f"epoch is {event.epoch}, must be below 2^62")
    event.bzid = event.bzid or "default"
    if event.kind in _WITH_FOLDER:
        folder_of(event)
    return event


def folder_of(event: ModelEvent) -> Path:
    """The folder of the version that `event` names; EventError unless it is absolute and named like the version."""
    if event.version <= 0:
        raise EventError(f"version is {event.version}, must be positive")
    if SUB_GRAPH in event.sub_graphs:
        path = Path(event.sub_graphs[SUB_GRAPH].path)
    else:
        path = Path(event.export_base) / str(event.version)
    if not path.is_absolute() or path.name != str(event.version):
        raise EventError(f"path '{path}' is not an absolute path that ends in the version {event.version}")
    return path


def make_event(kind: ModelEvent.Kind, namespace: str, model: str, **fields: Any) -> ModelEvent:
    """A new event of a command, created now; `fields` are those of the message."""
    return ModelEvent(
        event_id=uuid.uuid4().hex,
        bzid=namespace,
        model_name=model,
        kind=kind,
        created_at_ms=time.time_ns() // 1_000_000,
        schema_version=_SCHEMA_VERSIONS[-1],
        **fields,
    )


def event_key(event: ModelEvent) -> str:
    """The key under which compaction keeps the newest event of its sort."""
    key = f"{event.bzid}/{event.model_name}"
    if event.kind not in HOLDS:
        return key
    return f"{key}/hold/{GUARD}" if event.held_by == GUARD else f"{key}/hold"


def event_to_json(event: ModelEvent) -> str:
    return str(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None))
