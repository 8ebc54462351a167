"""What an agent remembers on disk, so that it knows what to load while Kafka and ZooKeeper are away."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.atomic_file import write_text
from millrace.runtime.errors import FOREIGN_JSON_ERRORS
from millrace.serving.agent.desired_state import Announced, Target
from millrace.serving.agent.gate import ExportFacts
from millrace.serving.agent.model_events import event_to_json
from millrace.serving.agent.version_chooser import InService

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 1
_EVENTS = ("last", "newest", "hold", "guard_hold")


@dataclass(frozen=True)
class Memory:
    """What an agent knew: the newest events of its model, and what it had put in service."""

    announced: Announced = dataclasses.field(default_factory=Announced)
    admitted: Target | None = None
    in_service: InService | None = None


class StateFile:
    """The memory of one agent in a file: written beside, synced and renamed.

    Args:
      owner: names what the memory is of (topic, name space, model, replica); a file of another owner is not used.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._owner = path, owner
        self._written: Memory | None = None

    def load(self) -> Memory:
        """What was saved last; an empty memory when there is none that can be read."""
        try:
            fields = json.loads(self._path.read_text("utf-8"))
            if fields["schema_version"] != _SCHEMA_VERSION or fields["owner"] != self._owner:
                raise ValueError(f"it is of {fields['owner']}, schema_version {fields['schema_version']}")
            self._written = _memory(fields)
        except FileNotFoundError:
            return Memory()
        except (OSError, json_format.ParseError, *FOREIGN_JSON_ERRORS) as error:
            _LOG.warning("%s is not used: %s", self._path, error)
            return Memory()
        return self._written

    def save(self, memory: Memory) -> None:
        """Writes `memory` if it is not what was written last; after a failure, which is logged, it is tried again."""
        if memory == self._written:
            return
        fields = {"schema_version": _SCHEMA_VERSION, "owner": self._owner} | _fields(memory)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(fields, indent=1) + "\n")
        except OSError as error:
            _LOG.warning("%s cannot be written (%s): a restart without Kafka would load nothing", self._path, error)
            return
        self._written = memory


def _fields(memory: Memory) -> dict[str, Any]:
    events = {name: getattr(memory.announced, name) for name in _EVENTS}
    served = memory.in_service
    return {
        **{name: json.loads(event_to_json(event)) if event else None for name, event in events.items()},
        "admitted": _of_target(memory.admitted),
        "in_service": _of_target(served.target) | {"facts": dataclasses.asdict(served.facts)} if served else None,
    }


def _of_target(target: Target | None) -> dict[str, Any]:
    return dataclasses.asdict(target) | {"path": str(target.path)} if target else {}


def _memory(fields: dict[str, Any]) -> Memory:
    events = {name: json_format.ParseDict(fields[name], ModelEvent()) for name in _EVENTS if fields.get(name)}
    served = fields["in_service"]
    return Memory(
        Announced(**events),
        _to_target(fields["admitted"]) if fields["admitted"] else None,
        InService(_to_target(served), _facts(served["facts"])) if served else None,
    )


def _to_target(fields: dict[str, Any]) -> Target:
    return Target(int(fields["version"]), Path(fields["path"]), bool(fields["is_held"]), int(fields["as_of_ms"]))


def _facts(fields: dict[str, Any]) -> ExportFacts:
    return ExportFacts(fields["quality"], fields["inputs"], tuple(fields["outputs"]), fields["cut_at_ms"])
