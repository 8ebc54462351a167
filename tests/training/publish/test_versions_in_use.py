"""Which versions stay on disk: what agents report, and what a rollback holds."""

import json
import time

import pytest
from google.protobuf import json_format

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topics import Topics
from millrace.training.publish.published import known_event, read_published
from millrace.training.publish.versions_in_use import versions_in_use

pytestmark = pytest.mark.service


def status(model: str, target: int, available: list[int], namespace: str = "default") -> bytes:
    fields = {"model_name": model, "bzid": namespace, "target_version": target, "available_versions": available}
    return json.dumps(fields).encode()


def event(kind: ModelEvent.Kind, version: int = 0, model: str = "m", **fields: object) -> bytes:
    made = ModelEvent(kind=kind, version=version, model_name=model, bzid="default", **fields)  # type: ignore[arg-type]
    return json_format.MessageToJson(made, preserving_proto_field_name=True).encode()


def key_of(value: bytes) -> bytes:
    """The key of an event; what is no event has one of the model."""
    event = known_event(value)
    return f"{event.bzid}/{event.model_name}/x".encode() if event else b"default/m/x"


def send(kafka: KafkaConnection, topic: str, values: list[bytes], age_ms: int = 0) -> None:
    at_ms = time.time_ns() // 1_000_000 - age_ms
    producer = make_producer(kafka)
    for value in values:
        producer.produce(topic, value, key=key_of(value), partition=0, timestamp=at_ms)
    flush_or_raise(producer)


def test_versions_that_agents_reported_lately_and_one_that_is_held_are_in_use(
    kafka: KafkaConnection, topics: Topics
) -> None:
    ensure_topic(kafka, topics.model_events, config={"cleanup.policy": "compact"})
    assert versions_in_use(kafka, topics, "m", "default") == set()  # no agent has ever reported
    ensure_topic(kafka, topics.serving_status)
    send(kafka, topics.serving_status, [status("m", 1, [1])], 600_000)
    send(
        kafka,
        topics.serving_status,
        [
            b"no JSON",
            b"[" * 100_000,
            status("m", 5, [4]),
            status("m", 5, [4]).replace(b"5", b"1e400"),
            status("m", 4, [3, 4]),
            status("other", 8, [8]),
            status("m", 9, [9], "ns"),
        ],
    )
    assert versions_in_use(kafka, topics, "m", "default") == {3, 4, 5}
    send(kafka, topics.model_events, [event(ModelEvent.ROLLBACK, 2), event(ModelEvent.ROLLBACK, 7, "other"), b"{"])
    assert versions_in_use(kafka, topics, "m", "default") == {2, 3, 4, 5}
    send(kafka, topics.model_events, [event(ModelEvent.RELEASE)])
    assert versions_in_use(kafka, topics, "m", "default") == {3, 4, 5}


def test_what_a_guard_does_leaves_the_version_that_a_user_holds_in_use(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.model_events)
    for kind, by, number, in_use in (
        (ModelEvent.ROLLBACK, "user", 5, {5}),
        (ModelEvent.ROLLBACK, "guard", 7, {5, 7}),
        (ModelEvent.RELEASE, "guard", 0, {5}),
        (ModelEvent.ROLLBACK, "guard", 8, {5, 8}),
        (ModelEvent.RELEASE, "user", 0, set()),
        (ModelEvent.ROLLBACK, "guard", 9, {9}),
    ):
        send(kafka, topics.model_events, [event(kind, number, held_by=by)])
        assert versions_in_use(kafka, topics, "m", "default") == in_use


def test_nothing_is_known_of_what_is_in_use_while_the_broker_is_away() -> None:
    assert versions_in_use(KafkaConnection("127.0.0.1:1"), Topics("t."), "m", "default") is None


def test_what_readers_know_of_a_model_is_its_newest_announcement_whoever_else_writes_there(
    kafka: KafkaConnection, topics: Topics
) -> None:
    ensure_topic(kafka, topics.model_events, config={"cleanup.policy": "compact"})
    ensure_topic(kafka, topics.deltas("m"))
    assert not read_published(kafka, topics, "m", "default").known
    send(
        kafka,
        topics.model_events,
        [
            event(ModelEvent.EXPORT, 7, lineage="a", epoch=3, created_at_ms=5),
            event(ModelEvent.CHECKPOINT, lineage="b", epoch=4, created_at_ms=4),
            event(ModelEvent.EXPORT, 99, "other", lineage="c", epoch=9),
            b"no event",
        ],
    )
    # No trainer could take an epoch above these.
    send(kafka, topics.model_events, [event(ModelEvent.EXPORT, 8, lineage="d", epoch=(1 << 63) - 1, created_at_ms=9)])
    send(kafka, topics.deltas("m"), [ModelDelta(model_name="m", sequence=9, epoch=1 << 62).SerializeToString()])
    found = read_published(kafka, topics, "m", "default")
    assert (found.known, found.saved, found.lineage, found.epoch, found.newest_epoch, found.version) == (
        True, True, "b", 4, 4, 7,
    )  # fmt: skip
