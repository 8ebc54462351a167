"""Announcements on `model.events`: one event for each checkpoint and each export that has become durable."""

import time
import uuid
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.kafka_client import (
    KafkaConnection,
    UndeliveredError,
    flush_or_raise,
    make_producer,
)
from millrace.runtime.topic_setup import ensure_model_events
from millrace.runtime.topics import Topics
from millrace.training.publish.delta_publisher import PUBLISH_FAILURES
from millrace.training.publish.exporter import Export

_DELIVERY_SECONDS = 30  # an announcement may wait for a new leader of its partition
_SCHEMA_VERSION = 1
_HOLD_SCHEMA_VERSION = 2  # the first that has holds


class EventPublisher:
    """Announces on `model.events` what has become durable. To be called from one thread.

    Args:
      bzid: business id, the first part of the key under which agents look for the model.
    """

    def __init__(self, connection: KafkaConnection, topics: Topics, model_name: str, bzid: str = "default") -> None:
        self._topic, self._model_name, self._bzid = topics.model_events, model_name, bzid
        ensure_model_events(connection, self._topic)
        self._producer = make_producer(connection)

    def export(self, export: Export, ckpt_name: str) -> None:
        """Announces a version all of whose files are durable.

        Args:
          ckpt_name: name of the newest checkpoint, empty if there is none.

        Raises:
          UndeliveredError: no broker acknowledged the event.
        """
        sub_graph = ModelEvent.SubGraph(path=str(export.path.resolve()), size_bytes=export.size_bytes)
        self._send(
            f"{self._bzid}/{self._model_name}",
            self._event(
                kind=ModelEvent.EXPORT,
                version=export.version,
                global_step=export.global_step,
                ckpt_name=ckpt_name,
                export_base=str(export.path.resolve().parent),
                sub_graphs={"standalone": sub_graph},
            ),
        )

    def checkpoint(self, global_step: int, folder: Path) -> None:
        """Announces a checkpoint whose manifest is in place.

        The event's key is not that of exports: compaction would replace the last export by a checkpoint.

        Raises:
          UndeliveredError: no broker acknowledged the event.
        """
        event = self._event(kind=ModelEvent.CHECKPOINT, global_step=global_step, ckpt_name=folder.name)
        self._send(f"{self._bzid}/{self._model_name}/checkpoint", event)

    def rollback(self, version: int, base: Path, as_of_ms: int, reason: str) -> None:
        """Holds servers at a version in the folder `base`, with deltas made up to `as_of_ms`, Unix milliseconds.

        Raises:
          UndeliveredError: no broker acknowledged the event.
        """
        path = base.resolve() / str(version)
        event = self._event(
            kind=ModelEvent.ROLLBACK,
            version=version,
            export_base=str(path.parent),
            sub_graphs={"standalone": ModelEvent.SubGraph(path=str(path))},
            as_of_ms=as_of_ms,
            reason=reason,
            held_by="guard",
        )
        event.schema_version = _HOLD_SCHEMA_VERSION
        self._send(f"{self._bzid}/{self._model_name}/hold", event)

    def release(self, reason: str) -> None:
        """Ends a hold: servers follow the newest version again.

        Raises:
          UndeliveredError: no broker acknowledged the event.
        """
        event = self._event(kind=ModelEvent.RELEASE, reason=reason)
        event.schema_version = _HOLD_SCHEMA_VERSION
        self._send(f"{self._bzid}/{self._model_name}/hold", event)

    def _event(self, **fields: Any) -> ModelEvent:
        return ModelEvent(
            event_id=uuid.uuid4().hex,
            bzid=self._bzid,
            model_name=self._model_name,
            num_ps=1,
            created_at_ms=time.time_ns() // 1_000_000,
            schema_version=_SCHEMA_VERSION,
            **fields,
        )

    def _send(self, key: str, event: ModelEvent) -> None:
        text = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None)
        failures: list[str] = []

        def delivered(error: Any, _: Any) -> None:
            if error is not None:
                failures.append(str(error))

        self._producer.produce(self._topic, text.encode(), key=key.encode(), on_delivery=delivered)
        flush_or_raise(self._producer, _DELIVERY_SECONDS)
        if failures:
            PUBLISH_FAILURES.labels("event").inc()
            raise UndeliveredError(f"{self._topic}: {failures[0]}")
