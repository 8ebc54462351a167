"""The agent beside a model server: learns versions from Kafka, tells the server, reports to ZooKeeper and Kafka."""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from millrace.runtime import telemetry
from millrace.runtime.topic_reader import Record
from millrace.serving.agent.desired_state import DesiredState, EventError
from millrace.serving.agent.reconciler import Phase, Plan, make_plan
from millrace.serving.agent.registry import Registry
from millrace.serving.server import model_source
from millrace.serving.server.errors import ServerDownError
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus

_LOG = logging.getLogger(__name__)
_STATUS_SCHEMA_VERSION = 1
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0

_EVENTS = telemetry.counter("agent_events", "Events of the model, by outcome.", ("outcome",))
_RELOADS = telemetry.counter("agent_reloads", "Configurations sent to the server, by result.", ("result",))
_TARGET = telemetry.gauge("agent_target_version", "Version that should run, 0 for none.", ("model",))


@dataclass(frozen=True)
class AgentConfig:
    """Settings of one agent.

    Args:
      server: `host:port` of the model server's gRPC.
      replica_id: name of this replica, unique among those of the model.
      bzid: business id, the name space of models.
      reconcile_seconds: time between two comparisons of what the server has with what it should have.
      report_seconds: time after which an unchanged status is sent again.
    """

    server: str
    model: str
    replica_id: str
    bzid: str = "default"
    reconcile_seconds: float = 0.25
    report_seconds: float = 10.0


class EventSource(Protocol):
    """The part of `millrace.runtime.topic_reader.TopicReader` that is used here."""

    def read(self, max_records: int = ..., seconds: float = ...) -> list[Record]: ...

    def reached_end(self) -> bool: ...


class Server(Protocol):
    """`millrace.serving.agent.server_control.ServerControl`, or a fake."""

    def statuses(self) -> list[VersionStatus]: ...

    def configure(self, base_path: str, versions: tuple[int, ...]) -> None: ...


@dataclass
class _Backoff:
    """The time at which a failed attempt may be repeated."""

    clock: Callable[[], float]
    seconds: float = 0.0
    not_before: float = field(default=0.0)

    def ready(self) -> bool:
        return self.clock() >= self.not_before

    def failed(self) -> None:
        self.seconds = min(_LAST_RETRY_SECONDS, self.seconds * 2 or _FIRST_RETRY_SECONDS)
        self.not_before = self.clock() + self.seconds

    def reset(self) -> None:
        self.seconds = self.not_before = 0.0


class Agent:
    """Follows the events of one model and keeps one server in line with them.

    Args:
      events: the model events from the beginning of the (compacted) topic.
      server: the model server.
      registry: the replica's nodes in ZooKeeper.
      send_status: takes one JSON status; must not block.
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
        clock: Callable[[], float] = time.monotonic,
        versions_in: Callable[[Path], dict[int, str]] = model_source.versions_in,
    ) -> None:
        self._config = config
        self._events = events
        self._server = server
        self._registry = registry
        self._send_status = send_status
        self._clock = clock
        self._versions_in = versions_in
        self._desired = DesiredState(config.bzid, config.model)
        self._is_live = False
        self._sent: tuple[str, tuple[int, ...]] | None = None
        self._retry = _Backoff(clock)
        self._next_reconcile = 0.0
        self._next_report = 0.0
        self._last_report: dict[str, object] = {}

    def run(self, stop: threading.Event, heartbeat: telemetry.Heartbeat) -> None:
        """Works until `stop` is set."""
        while not stop.is_set():
            heartbeat.beat()
            self.step()

    def step(self) -> None:
        """Reads the events that are there; reconciles if one changed the target or `reconcile_seconds` are over."""
        changed = [self._apply(record) for record in self._events.read(500, self._config.reconcile_seconds / 4)]
        if not self._is_live:
            # Until the topic is read to its end the target is an old one: versions would be loaded only to be dropped.
            self._is_live = self._events.reached_end()
        now = self._clock()
        if self._is_live and (any(changed) or now >= self._next_reconcile):
            self._next_reconcile = now + self._config.reconcile_seconds
            self.reconcile()

    def reconcile(self) -> None:
        """Compares the server with the target once, tells it what is missing, and reports."""
        try:
            statuses = self._server.statuses()
            plan = self._plan(statuses)
            self._tell(plan, statuses)
        except ServerDownError as error:
            self._sent = None  # the next server that answers may be another process, which was not told
            statuses, plan = [], Plan(Phase.SERVER_DOWN, None, str(error))
        self._report(plan, sorted(s.version for s in statuses if s.state is State.AVAILABLE))

    def _apply(self, record: Record) -> bool:
        if record.value is None:  # a tombstone: the topic drops the model's old events, which changes nothing here
            return False
        try:
            changed = self._desired.apply(record.value)
        except EventError as error:
            _EVENTS.labels("malformed").inc()
            _LOG.warning("event at offset %d passed over: %s", record.offset, error)
            return False
        _EVENTS.labels("changed" if changed else "ignored").inc()
        target = self._desired.target
        if changed:
            _LOG.info("target of %s is %s", self._config.model, target.version if target else "nothing")
            _TARGET.labels(self._config.model).set(target.version if target else 0)
            self._retry.reset()
        return changed

    def _plan(self, statuses: list[VersionStatus]) -> Plan:
        target = self._desired.target
        on_disk = self._versions_in(target.path.parent) if target else {}
        return make_plan(target, self._desired.retired, statuses, on_disk)

    def _tell(self, plan: Plan, statuses: list[VersionStatus]) -> None:
        """Sends `plan` if the server may not have it: it is another, the server was away, or sending failed."""
        if plan.versions is None:
            return
        target = self._desired.target
        message = (str(target.path.parent) if target else "", plan.versions)
        is_known = {status.version for status in statuses} >= set(plan.versions)
        is_failed = plan.phase is Phase.FAILED
        if message == self._sent and is_known and not (is_failed and self._retry.ready()):
            return
        if is_failed:
            self._retry.failed()
        try:
            self._server.configure(*message)
        except ServerDownError:
            _RELOADS.labels("failed").inc()
            raise
        _RELOADS.labels("ok").inc()
        _LOG.info("%s told to serve %s", self._config.server, list(plan.versions))
        self._sent = message

    def _report(self, plan: Plan, available: list[int]) -> None:
        config, target = self._config, self._desired.target
        report: dict[str, object] = {
            "schema_version": _STATUS_SCHEMA_VERSION,
            "bzid": config.bzid,
            "model_name": config.model,
            "replica_id": config.replica_id,
            "server": config.server,
            "state": plan.phase.value,
            "target_version": target.version if target else 0,
            "available_versions": available,
            "error": plan.error,
        }
        now = self._clock()
        if report == self._last_report and now < self._next_report:
            return
        if report != self._last_report:
            level = logging.WARNING if plan.error else logging.INFO
            _LOG.log(level, "%s %s available=%s %s", config.model, plan.phase.value, available, plan.error)
        self._last_report, self._next_report = report, now + config.report_seconds
        self._registry.report(available, plan.phase.value, plan.error)
        self._send_status(json.dumps(report | {"time_ms": time.time_ns() // 1_000_000}).encode())
