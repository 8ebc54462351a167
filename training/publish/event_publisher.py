"""Announcements on `model.events`: one event for each checkpoint and each export that has become durable."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.telemetry import counter
from millrace.runtime.topics import GUARD, Topics
from millrace.training.publish.delta_publisher import PUBLISH_FAILURES
from millrace.training.publish.exporter import Export
from millrace.training.publish.outbox import Outbox
from millrace.training.publish.published import ModelWriter
from millrace.training.publish.transactions import NewRecord, TransactionalProducer

_LOG = logging.getLogger(__name__)
_EXPORTS = counter("exports_published", "versions announced")
_RETRY_SECONDS = 2.0  # between attempts to announce what no broker acknowledged
# Apart from users' holds (".../hold"), whose place a guard's event would take at compaction.
_GUARD_HOLD = "hold/guard"
_SCHEMA_VERSION = 2


class EventPublisher:
    """Announces on `model.events` what has become durable, again and again until a broker has it.

    `export` and `checkpoint` return at once and may be called from any thread; `poll` is for one thread.

    Args:
      outbox: sends the events.
      namespace: of models, the first part of the key under which agents look for the model.
      version: newest version that is announced already, 0 without one.
      clock: seconds, monotonic.

    Attributes:
      version: newest announced version.
    """

    def __init__(
        self,
        outbox: Outbox,
        topics: Topics,
        writer: ModelWriter,
        namespace: str = "default",
        version: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox, self._topic, self._writer, self._namespace = outbox, topics.model_events, writer, namespace
        self.version, self._clock = version, clock
        self._waiting: dict[str, ModelEvent] = {}  # the newest of each key
        self._lock = threading.Lock()
        self._sent: tuple[str, ModelEvent, Future[list[int]]] | None = None
        self._retry_at = 0.0

    def export(self, export: Export, ckpt_name: str) -> None:
        """Has a version announced, all of whose files are durable.

        Args:
          ckpt_name: name of the newest checkpoint, empty if there is none.
        """
        sub_graph = ModelEvent.SubGraph(path=str(export.path.resolve()), size_bytes=export.size_bytes)
        self._put(
            f"{self._namespace}/{self._writer.model}",
            kind=ModelEvent.EXPORT,
            version=export.version,
            global_step=export.global_step,
            ckpt_name=ckpt_name,
            export_base=str(export.path.resolve().parent),
            sub_graphs={"standalone": sub_graph},
            quality=export.quality,
            delta_sequence=export.delta_sequence,
            event_time_ms=export.event_time_ms,
        )

    def checkpoint(self, global_step: int, folder: Path) -> None:
        """Has a checkpoint announced whose manifest is in place.

        The event's key is not that of exports: compaction would replace the last export by a checkpoint.
        """
        key = f"{self._namespace}/{self._writer.model}/checkpoint"
        self._put(key, kind=ModelEvent.CHECKPOINT, global_step=global_step, ckpt_name=folder.name)

    def rollback(self, version: int, base: Path, as_of_ms: int, reason: str) -> None:
        """Has servers held at a version in the folder `base`, with deltas made up to `as_of_ms`, Unix milliseconds."""
        path = base.resolve() / str(version)
        self._put(
            f"{self._namespace}/{self._writer.model}/{_GUARD_HOLD}",
            kind=ModelEvent.ROLLBACK,
            version=version,
            export_base=str(path.parent),
            sub_graphs={"standalone": ModelEvent.SubGraph(path=str(path))},
            as_of_ms=as_of_ms,
            reason=reason,
            held_by=GUARD,
        )

    def release(self, reason: str) -> None:
        """Has a hold ended: servers follow the newest version again."""
        key = f"{self._namespace}/{self._writer.model}/{_GUARD_HOLD}"
        self._put(key, kind=ModelEvent.RELEASE, reason=reason, held_by=GUARD)

    @property
    def export_waits(self) -> bool:
        """Whether a version is on disk of which nobody has heard yet."""
        with self._lock:
            return any(event.kind == ModelEvent.EXPORT for event in self._waiting.values())

    def poll(self) -> None:
        """Takes the result of the event on its way, and sends the next one that waits."""
        if self._sent is not None and self._sent[2].done():
            self._settle()
        if self._sent is None and self._clock() >= self._retry_at:
            with self._lock:
                key, event = next(iter(self._waiting.items()), ("", None))
            if event is not None:
                self._send(key, event)

    def flush(self, seconds: float) -> None:
        """Sends what waits; returns when a broker has all of it, or after `seconds`."""
        until = self._clock() + seconds
        self._retry_at = 0.0
        self.poll()
        while self._sent is not None and self._clock() < until:
            wait([self._sent[2]], until - self._clock())
            self.poll()
        if self._waiting:
            _LOG.warning("not announced: %s", ", ".join(self._waiting))

    def _put(self, key: str, **fields: Any) -> None:
        event = ModelEvent(
            event_id=uuid.uuid4().hex,
            bzid=self._namespace,
            model_name=self._writer.model,
            num_ps=1,
            created_at_ms=time.time_ns() // 1_000_000,
            schema_version=_SCHEMA_VERSION,
            lineage=self._writer.lineage,
            epoch=self._writer.epoch,
            **fields,
        )
        with self._lock:
            self._waiting[key] = event

    def _send(self, key: str, event: ModelEvent) -> None:
        text = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None)
        record = NewRecord(self._topic, text.encode(), key.encode(), 0)  # agents read one partition

        def send(producer: TransactionalProducer) -> list[int]:
            return producer.send([record])

        self._sent = key, event, self._outbox.submit(send)

    def _settle(self) -> None:
        if self._sent is None:
            return
        (key, event, future), self._sent = self._sent, None
        error = future.exception()
        if error is not None:
            PUBLISH_FAILURES.labels("event").inc()
            _LOG.warning("%s is not announced (%s); will be tried again", key, error)
            self._retry_at = self._clock() + _RETRY_SECONDS
            return
        if event.kind == ModelEvent.EXPORT:
            self.version = event.version
            _EXPORTS.inc()
        with self._lock:
            if self._waiting.get(key) is event:
                del self._waiting[key]
