"""What commands do to a model in service: look up its versions, send an event, wait until every replica follows."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.deadline import Deadline
from millrace.runtime.errors import FOREIGN_JSON_ERRORS, UserError
from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError, flush_or_raise, make_producer
from millrace.runtime.kafka_positions import resolve_start
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topics import may_be_event_of
from millrace.serving.agent.desired_state import Announced, DesiredState
from millrace.serving.agent.export_facts import read_facts
from millrace.serving.agent.model_events import EventError, event_key, event_to_json, folder_of, make_event, parse_event
from millrace.serving.server.model_source import versions_in

_DELIVERY_SECONDS = 30.0
# Agents send an unchanged status every 10 s: one that has sent none in this time has ended.
_STATUS_SECONDS = 25.0
_STOPPED = "STOPPED"
_SHOWN_VERSIONS = 10


@dataclass(frozen=True)
class KnownModel:
    """What `model.events` and the folder of the exports tell of a model.

    Attributes:
      exports: {version: the event that announced it}, of those that compaction has left.
      on_disk: {version: folder} beside the newest one; None where the folder cannot be seen from here.
    """

    announced: Announced
    exports: dict[int, ModelEvent] = field(default_factory=dict)
    on_disk: dict[int, Path] | None = None

    def folder(self, version: int) -> Path | None:
        """The folder of `version`; None when nothing tells of it."""
        if version in self.exports:
            return folder_of(self.exports[version])
        if self.on_disk is not None:
            return self.on_disk.get(version)
        newest = self.announced.export
        return newest.path.parent / str(version) if newest else None

    def cut_ms(self, version: int) -> int:
        """Unix milliseconds of the version's cut, or of its announcement; 0 if unknown."""
        folder = self.folder(version)
        facts = read_facts(folder) if folder else None
        if facts and facts.cut_at_ms:
            return facts.cut_at_ms
        return int(self.exports[version].created_at_ms) if version in self.exports else 0

    @property
    def versions(self) -> list[int]:
        """Numbers of all that is known, ascending."""
        return sorted({*self.exports, *(self.on_disk or {})})


def read_model(connection: KafkaConnection, topic: str, namespace: str, model: str) -> KnownModel:
    """Reads all events of a model.

    Raises:
      UserError: nothing of the model was ever announced.
    """
    state, exports = DesiredState(namespace, model), {}
    for messages in read_messages(resolve_range(connection, topic)):
        for message in messages:
            if not may_be_event_of(message.key(), namespace, model):
                continue
            try:
                event = parse_event(message.value() or b"")
            except EventError:
                continue
            state.apply(message.value())
            if event.kind == ModelEvent.EXPORT and (event.bzid, event.model_name) == (namespace, model):
                exports[int(event.version)] = event
    newest = state.announced.export
    if newest is None:
        raise UserError(
            "--model", model, f"{topic} has no version of it in the name space '{namespace}'",
            "check --model, --namespace and --topic-prefix",
        )  # fmt: skip
    return KnownModel(state.announced, exports, _on_disk(newest.path.parent))


def _on_disk(base: Path) -> dict[int, Path] | None:
    try:
        return {version: Path(folder) for version, folder in versions_in(base).items()} if base.is_dir() else None
    except OSError:
        return None


def rollback_event(
    known: KnownModel, version: int, as_of_ms: int | None, reason: str, now_ms: int, newest_delta_ms: int = 0
) -> ModelEvent:
    """The event that holds a model at `version` with deltas up to `as_of_ms`.

    Without `as_of_ms`, that is the cut of the version after it, or the newest delta when there is none.

    Args:
      now_ms: by this host's clock.
      newest_delta_ms: when the newest delta was made, by its trainer's clock; 0: it is not known.

    Raises:
      UserError: the version is unknown or gone, or was cut after `as_of_ms`, which must not be to come, or the model is
        retired.
    """
    newest, folder = known.announced.newest, known.folder(version)
    assert newest is not None  # `read_model` refuses a model without versions
    if known.announced.retired:
        raise UserError("--model", newest.model_name, "it is retired", "start its trainer: an export revives it")
    if folder is None:
        raise UserError("--to", version, "there is no such version", f"choose one of {_shown(known.versions)}")
    if known.on_disk is not None and folder.parent == folder_of(newest).parent and version not in known.on_disk:
        raise UserError("--to", version, f"{folder} is gone", f"choose one of {_shown(sorted(known.on_disk))}")
    cut = known.cut_ms(version)
    if as_of_ms is None:
        after = [known.cut_ms(each) for each in known.versions if each > version]
        as_of_ms = next((moment for moment in after if moment), newest_delta_ms or now_ms)
    elif as_of_ms > max(now_ms, newest_delta_ms):
        problem = "is to come: until then the model would take all deltas"
        raise UserError("--as-of", as_of_ms, problem, f"give a time that is over; it is {now_ms} now")
    elif as_of_ms < cut:
        raise UserError("--as-of", as_of_ms, f"version {version} was cut later, at {cut}", "give a later time")
    announced = known.exports.get(version, newest)
    return make_event(
        ModelEvent.ROLLBACK,
        newest.bzid,
        newest.model_name,
        version=version,
        export_base=str(folder.parent),
        sub_graphs={"standalone": ModelEvent.SubGraph(path=str(folder))},
        as_of_ms=as_of_ms,
        lineage=announced.lineage,
        reason=reason,
        held_by="user",
    )


def _shown(versions: list[int]) -> str:
    return ", ".join(map(str, versions[-_SHOWN_VERSIONS:])) or "none"


def send_event(connection: KafkaConnection, topic: str, event: ModelEvent) -> None:
    """Sends `event` under the key of its sort; returns when the broker has it.

    Raises:
      UserError: it was not acknowledged within 30 s.
    """
    producer = make_producer(connection)
    failures: list[str] = []

    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            failures.append(str(error))

    producer.produce(topic, event_to_json(event).encode(), key=event_key(event), on_delivery=delivered)
    try:
        flush_or_raise(producer, _DELIVERY_SECONDS)
    except UndeliveredError as error:
        failures.append(str(error))
    if failures:
        raise UserError(
            "--kafka", connection.bootstrap_servers, f"the event was not taken ({failures[0]})", "see the broker's log"
        )


def follows(event: ModelEvent, status: dict[str, Any]) -> bool:
    """Whether the replica that sent `status` has what `event` asks for in force."""
    state, is_held = status.get("state"), bool(status.get("is_held"))
    if event.kind == ModelEvent.RETIRE:
        return state == "RETIRED" and status.get("model_event_id") == event.event_id
    if status.get("hold_event_id") != event.event_id:
        return False
    if event.kind == ModelEvent.ROLLBACK:
        return state == "AVAILABLE" and is_held and status.get("target_version") == event.version
    return state in ("AVAILABLE", "STALE", "HELD_BACK") and not is_held


class Replicas:
    """The replicas of a model that are alive, by what their agents say on `serving.status`."""

    def __init__(self, connection: KafkaConnection, topic: str, namespace: str, model: str) -> None:
        since = int((time.time() - _STATUS_SECONDS) * 1000)
        start = resolve_start(connection, topic, f"time:{since}", "millrace-commands")
        self._reader = TopicReader(connection, topic, start)
        self._model = (namespace, model)
        self.statuses: dict[str, dict[str, Any]] = {}

    def wait(
        self,
        event: ModelEvent,
        seconds: float,
        progress: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> bool:
        """Whether, within `seconds`, there is a replica and every one follows `event`; tells each change of one."""
        deadline, told = Deadline(seconds, clock), dict[str, str]()
        while not self._all_follow(event):
            if deadline.expired():
                return False
            for record in self._reader.read(500, min(0.2, deadline.remaining())):
                self._take(record.value or b"{}")
            for replica, status in sorted(self.statuses.items()):
                words = status_words(event, status)
                if told.get(replica) != words:
                    told[replica] = words
                    progress(f"{replica}: {words}")
        return True

    def close(self) -> None:
        self._reader.close()

    def _all_follow(self, event: ModelEvent) -> bool:
        return bool(self.statuses) and all(follows(event, status) for status in self.statuses.values())

    def _take(self, value: bytes) -> None:
        try:
            status = json.loads(value)
            model, replica = (status["bzid"], status["model_name"]), str(status["replica_id"])
        except FOREIGN_JSON_ERRORS:
            return
        if model != self._model:
            return
        self.statuses[replica] = status
        if status.get("state") == _STOPPED:
            del self.statuses[replica]


def status_words(event: ModelEvent, status: dict[str, Any]) -> str:
    """What a replica does about `event`, for people."""
    words = "follows" if follows(event, status) else "not yet"
    held = " held" if status.get("is_held") else ""
    error = f" ({status['error']})" if status.get("error") else ""
    return f"{words}: {status.get('state')} {status.get('target_version')}{held}{error}"
