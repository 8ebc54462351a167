"""What readers of a model know of it already: its lineage and epoch, newest version and newest delta."""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topic_range import newest_record, read_messages, resolve_range
from millrace.runtime.topics import NUMBER_LIMIT, Topics, may_be_event_of


@dataclass(frozen=True)
class ModelWriter:
    """Who publishes: the lineage of the model, and the epoch of the trainer's lease."""

    model: str
    lineage: str = ""
    epoch: int = 0


@dataclass(frozen=True)
class Published:
    """Of one model, from `model.events` and `model.deltas`.

    Attributes:
      known: whether a checkpoint or a version was ever announced.
      saved: whether a checkpoint of the newest lineage was.
      lineage, epoch: of the newest announcement; empty and 0 without one, or for one from before there were lineages.
      newest_epoch: the highest of all announcements and the newest delta.
      version: newest announced version, 0 without one.
    """

    known: bool = False
    saved: bool = False
    lineage: str = ""
    epoch: int = 0
    newest_epoch: int = 0
    version: int = 0


def read_published(connection: KafkaConnection, topics: Topics, model: str, namespace: str) -> Published:
    """Reads both topics as they are now; they exist.

    Raises:
      KafkaException, KafkaReadError: brokers do not answer.
    """
    sent = [
        event for event in _events(connection, topics.model_events, namespace, model)
        if (event.model_name, event.bzid or "default") == (model, namespace)
        and event.kind in (ModelEvent.EXPORT, ModelEvent.CHECKPOINT)
        and event.epoch < NUMBER_LIMIT
    ]  # fmt: skip
    delta, _ = newest_delta(connection, topics.deltas(model), model)
    newest = max(sent, key=lambda event: (event.epoch, event.created_at_ms), default=None)
    return Published(
        known=newest is not None,
        saved=any(event.kind == ModelEvent.CHECKPOINT and event.lineage == newest.lineage for event in sent if newest),
        lineage=newest.lineage if newest else "",
        epoch=newest.epoch if newest else 0,
        newest_epoch=max([event.epoch for event in sent] + [delta.epoch if delta else 0]),
        version=max((event.version for event in sent if event.kind == ModelEvent.EXPORT), default=0),
    )


def newest_delta(connection: KafkaConnection, topic: str, model: str) -> tuple[ModelDelta | None, int]:
    """(Newest delta of the model, offset after the topic's last); records of others are passed over.

    Raises:
      KafkaException, KafkaReadError: brokers do not answer. UserError: no such topic.
    """

    def parse(value: bytes) -> ModelDelta | None:
        try:
            delta = ModelDelta.FromString(value)
        except DecodeError:
            return None
        return (
            delta
            if delta.model_name == model and 0 < delta.sequence < NUMBER_LIMIT and delta.epoch < NUMBER_LIMIT
            else None
        )

    return newest_record(connection, topic, 0, parse)


def known_event(value: bytes) -> ModelEvent | None:
    """The event of a record of `model.events`; None if it is none."""
    try:
        return json_format.Parse(value, ModelEvent(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError):
        return None


def _events(connection: KafkaConnection, topic: str, namespace: str, model: str) -> Iterator[ModelEvent]:
    for messages in read_messages(resolve_range(connection, topic)):
        for message in messages:
            if not may_be_event_of(message.key(), namespace, model):
                continue
            event = known_event(message.value() or b"")
            if event is not None:
                yield event
