"""The agent beside a model server: learns versions from Kafka, tells the server, reports to ZooKeeper and Kafka."""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.runtime import telemetry
from millrace.runtime.topic_reader import Record
from millrace.runtime.topics import may_be_event_of
from millrace.serving.agent.desired_state import DesiredState, Target
from millrace.serving.agent.gate import ExportGate
from millrace.serving.agent.model_events import EventError
from millrace.serving.agent.reconciler import Phase, Plan, make_plan
from millrace.serving.agent.registry import Registry
from millrace.serving.agent.state_file import Memory, StateFile
from millrace.serving.agent.version_chooser import Choice, VersionChooser
from millrace.serving.server import model_source
from millrace.serving.server.errors import ServerDownError
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus

_LOG = logging.getLogger(__name__)
_STATUS_SCHEMA_VERSION = 1
_LOG_SECONDS = 10.0  # between two lines that say the same wait goes on
# They change with every report: a new value alone is no reason to send one.
_AGES = ("model_age_ms", "delta_lag_ms")

_EVENTS = telemetry.counter("agent_events", "Events of the model, by outcome.", ("outcome",))
_RELOADS = telemetry.counter("agent_reloads", "Configurations sent to the server, by result.", ("result",))
_TARGET = telemetry.gauge("agent_target_version", "Version that should run, 0 for none.", ("model",))
_HELD_BACK = telemetry.gauge("agent_held_back_version", "Newest version while the gate refuses it, else 0.", ("model",))
_IS_HELD = telemetry.gauge("agent_is_held", "1 while a rollback holds the model at a version.", ("model",))


@dataclass(frozen=True)
class AgentConfig:
    """Settings of one agent.

    Args:
      server: `host:port` of the model server's gRPC.
      replica_id: name of this replica, unique among those of the model.
      namespace: name space of models.
      gate: what a version must meet to go in service by itself.
      pin: version that runs whatever is announced; None for none.
      reconcile_seconds: time between two comparisons of what the server has with what it should have.
      report_seconds: time after which an unchanged status is sent again.
    """

    server: str
    model: str
    replica_id: str
    namespace: str = "default"
    gate: ExportGate = field(default_factory=ExportGate)
    pin: int | None = None
    reconcile_seconds: float = 0.25
    report_seconds: float = 10.0


class EventSource(Protocol):
    """The part of `millrace.runtime.topic_reader.TopicReader` that is used here."""

    def read(self, max_records: int = ..., seconds: float = ...) -> list[Record]: ...

    def reached_end(self) -> bool: ...


class Server(Protocol):
    """`millrace.serving.agent.server_control.ServerControl`, or a fake."""

    def configure(self, plan: ModelPlan) -> ModelState: ...


class Agent:
    """Follows the events of one model and keeps one server in line with them.

    Until the events are read to their end, it keeps the server at what the state file remembers.

    Args:
      events: the model events from the beginning of the (compacted) topic.
      server: the model server.
      registry: the replica's nodes in ZooKeeper.
      send_status: takes one JSON status; must not block.
      memory: what an earlier process of this agent knew.
      clock: monotonic seconds.
      versions_in: {version: folder} below a base path.
    """

    def __init__(
        self,
        config: AgentConfig,
        events: EventSource,
        server: Server,
        registry: Registry,
        send_status: Callable[[bytes], None],
        memory: StateFile,
        clock: Callable[[], float] = time.monotonic,
        versions_in: Callable[[Path], dict[int, str]] = model_source.versions_in,
    ) -> None:
        self._config = config
        self._events = events
        self._server = server
        self._registry = registry
        self._send_status = send_status
        self._memory = memory
        self._clock = clock
        self._folders = _Folders(versions_in, clock)
        known = memory.load()
        self._desired = DesiredState(config.namespace, config.model, known.announced)
        self._announced = known.announced
        self._chooser = VersionChooser(config.gate, config.pin, known.admitted, known.in_service)
        self._choice = Choice(None)
        self._sent: ModelPlan | None = None
        self._state = ModelState()
        self._next_reconcile = self._next_report = self._next_rival_log = 0.0
        self._last_report: dict[str, object] = {}

    def run(self, stop: threading.Event, heartbeat: telemetry.Heartbeat) -> None:
        """Works until `stop` is set."""
        while not stop.is_set():
            heartbeat.beat()
            self.step()
        if not self._has_rival():  # whose status it would be
            self._report(Plan(Phase.STOPPED, None), [])

    def step(self) -> None:
        """Reads the events that are there; reconciles if one changed something or `reconcile_seconds` are over."""
        changed = [self._apply(record) for record in self._events.read(500, self._config.reconcile_seconds / 4)]
        if self._events.reached_end():
            # Before that what is read is old: versions would be loaded only to be dropped.
            self._announced = self._desired.announced
        now = self._clock()
        if any(changed) or now >= self._next_reconcile:
            self._next_reconcile = now + self._config.reconcile_seconds
            self.reconcile()

    def reconcile(self) -> None:
        """Compares the server with the target once, tells it what is missing, and reports."""
        if self._registry.is_awaited() or self._has_rival():
            return
        self._choose()
        try:
            sent = self._tell(self._plan())
            plan = self._plan()
            if plan.versions not in (None, sent):  # what the server said changes what it should have
                self._tell(plan)
            plan = self._with_state(plan)
        except ServerDownError as error:
            self._state = ModelState()
            plan = Plan(Phase.SERVER_DOWN, None, str(error))
        self._note()
        self._memory.save(Memory(self._announced, self._chooser.admitted, self._chooser.in_service))
        self._report(plan, self._available())

    def _has_rival(self) -> bool:
        """Whether another agent has the replica's name: two would tell the server different things."""
        rival = self._registry.claim()
        if rival and self._clock() >= self._next_rival_log:
            self._next_rival_log = self._clock() + _LOG_SECONDS
            _LOG.warning(
                "replica %s of %s belongs to another agent (%s); waiting until it ends: stop it, or give this one "
                "another --replica-id",
                self._config.replica_id, self._config.model, rival,
            )  # fmt: skip
        return bool(rival)

    def _apply(self, record: Record) -> bool:
        if record.value is None:  # a tombstone: the topic drops the model's old events, which changes nothing here
            return False
        if not may_be_event_of(record.key, self._config.namespace, self._config.model):
            return False
        try:
            changed = self._desired.apply(record.value)
        except EventError as error:
            _EVENTS.labels("malformed").inc()
            _LOG.warning("event at offset %d passed over: %s", record.offset, error)
            return False
        _EVENTS.labels("changed" if changed else "ignored").inc()
        return changed

    def _note(self) -> None:
        """Notes which version answers, once the server has said."""
        if self._state.versions:
            self._chooser.note(self._choice.target, self._available(), self._folders)

    def _choose(self) -> None:
        """Decides what should run, and says so when it is news."""
        model, before = self._config.model, self._choice
        self._choice = choice = self._chooser.choose(self._announced, self._folders)
        target = choice.target
        if choice == before:
            return
        if choice.held_back and choice.held_back != before.held_back:
            _LOG.warning("version %d of %s is not put in service: %s", choice.held_back, model, choice.reason)
        if target != before.target:
            words = f"{target.version}{_hold_words(target)}" if target else "nothing"
            _LOG.info("target of %s is %s", model, words)
        _TARGET.labels(model).set(target.version if target else 0)
        _HELD_BACK.labels(model).set(choice.held_back)
        _IS_HELD.labels(model).set(int(bool(target and target.is_held)))

    def _plan(self) -> Plan:
        """What the server should have, from what it said last."""
        target, on_disk = self._choice.target, set[int]()
        if target:
            base = target.path.parent
            there = self._folders(base, target.version)
            on_disk = {v for v in there if v == target.version or self._chooser.is_usable(base / str(v))}
        rows = [VersionStatus(row.version, State(row.state), row.error) for row in self._state.versions]
        plan = make_plan(target, self._announced.retired, rows, on_disk)
        if target is None and self._choice.held_back:
            return Plan(Phase.HELD_BACK, plan.versions, self._choice.reason)
        return plan

    def _tell(self, plan: Plan) -> tuple[int, ...] | None:
        """Sends `plan`, or the last one when it leaves the server as it is; takes what the server says.

        A plan that the server has changes nothing there, so it is sent at each look: a server that was restarted is
        told again, and says how old its weights are. Returns the versions that were sent.
        """
        target, message = self._choice.target, self._sent
        if plan.versions is not None:
            message = ModelPlan(
                model_name=self._config.model,
                base_path=str(target.path.parent) if target else "",
                versions=plan.versions,
                is_held=bool(target and target.is_held),
                as_of_ms=target.as_of_ms if target else 0,
            )
        if message is None:
            return None
        try:
            self._state = self._server.configure(message)
        except ServerDownError:
            _RELOADS.labels("failed").inc()
            raise
        if message != self._sent:
            _RELOADS.labels("ok").inc()
            _LOG.info("%s told to serve %s%s", self._config.server, list(message.versions), _hold_words(target))
        self._sent = message
        return tuple(message.versions)

    def _with_state(self, plan: Plan) -> Plan:
        """`plan` as the server's own words make it: loading anew to be held, or stale."""
        version, target = self._target_state(), self._choice.target
        if plan.phase is not Phase.AVAILABLE or version is None or target is None:
            return plan
        if version.is_held != target.is_held:
            return Plan(Phase.LOADING, plan.versions)
        if self._choice.held_back:
            return Plan(Phase.HELD_BACK, plan.versions, self._choice.reason)
        if version.is_stale:
            return Plan(Phase.STALE, plan.versions, version.error)
        return plan

    def _available(self) -> list[int]:
        return sorted(row.version for row in self._state.versions if row.state == State.AVAILABLE)

    def _target_state(self) -> ModelState.Version | None:
        target = self._choice.target
        return next((v for v in self._state.versions if target and v.version == target.version), None)

    def _report(self, plan: Plan, available: list[int]) -> None:
        config, choice, hold = self._config, self._choice, self._announced.rollback or self._announced.hold
        state = self._target_state() or ModelState.Version(model_age_ms=-1, delta_lag_ms=-1)
        target = choice.target
        report: dict[str, object] = {
            "schema_version": _STATUS_SCHEMA_VERSION,
            "bzid": config.namespace,
            "model_name": config.model,
            "replica_id": config.replica_id,
            "server": config.server,
            "state": plan.phase.value,
            "target_version": target.version if target else 0,
            "available_versions": available,
            "is_held": bool(target and target.is_held),
            "as_of_ms": target.as_of_ms if target else 0,
            "held_back_version": choice.held_back,
            "error": plan.error or choice.reason,
            "resync_required": state.resync_required,
            "is_stale": state.is_stale,
            "hold_event_id": hold.event_id if hold else "",
            "model_event_id": self._announced.last.event_id if self._announced.last else "",
        }
        now = self._clock()
        # The words for STALE hold its age: that it grows is nothing new.
        facts = report | {"error": ""} if plan.phase is Phase.STALE else report
        if facts == self._last_report and now < self._next_report:
            return
        if facts != self._last_report:
            level = logging.WARNING if report["error"] else logging.INFO
            _LOG.log(level, "%s %s available=%s %s", config.model, plan.phase.value, available, report["error"])
        self._last_report, self._next_report = facts, now + config.report_seconds
        self._registry.report(available, plan.phase.value, str(report["error"]))
        ages = {name: getattr(state, name) for name in _AGES}
        self._send_status(json.dumps(report | ages | {"time_ms": time.time_ns() // 1_000_000}).encode())


class _Folders:
    """The versions in folders; one that cannot be listed counts as it was, so that a disk that fails ends nothing."""

    def __init__(self, versions_in: Callable[[Path], dict[int, str]], clock: Callable[[], float]) -> None:
        self._versions_in, self._clock = versions_in, clock
        self._known: dict[Path, frozenset[int]] = {}
        self._next_log = 0.0

    def __call__(self, base: Path, *if_unknown: int) -> Collection[int]:
        """The versions in `base`; `if_unknown` when it was never listed: the server may be able to read them."""
        try:
            self._known = {base: frozenset(self._versions_in(base))}
        except OSError as error:
            if self._clock() >= self._next_log:
                self._next_log = self._clock() + _LOG_SECONDS
                _LOG.warning("%s cannot be listed (%s); going on with what is known of it", base, error)
            return self._known.get(base, frozenset(if_unknown)) | set(if_unknown)
        return self._known[base]


def _hold_words(target: Target | None) -> str:
    if target is None or not target.is_held:
        return ""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(target.as_of_ms / 1000))
    return f", held as it was at {moment}"
