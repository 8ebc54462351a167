"""What commands send for what is known of a model, and when a replica follows."""

import json
from pathlib import Path
from typing import Any

import pytest

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topics import Topics
from millrace.serving.agent.desired_state import Announced, Target
from millrace.serving.agent.model_commands import KnownModel, Replicas, follows, rollback_event
from millrace.serving.agent.model_events import event_key, folder_of, make_event

_NOW = 9_000


def _export(version: int, base: Path = Path("/m"), created_at_ms: int = 0) -> ModelEvent:
    return make_event(ModelEvent.EXPORT, "ns", "m", version=version, export_base=str(base), lineage="l")


def _known(*versions: int, base: Path = Path("/m"), on_disk: dict[int, Path] | None = None) -> KnownModel:
    exports = {version: _export(version, base) for version in versions}
    for version, event in exports.items():
        event.created_at_ms = version * 1000
    newest = exports[max(versions)]
    return KnownModel(Announced(newest, newest), exports, on_disk)


def _write_manifest(folder: Path, **fields: Any) -> Path:
    (folder / "assets.extra").mkdir(parents=True)
    (folder / "assets.extra" / "millrace.json").write_text(json.dumps(fields))
    return folder


def test_a_rollback_takes_deltas_up_to_the_cut_of_the_version_after() -> None:
    event = rollback_event(_known(1, 3, 4), 1, None, "bad labels", _NOW)
    assert (event.version, event.as_of_ms, event.reason, event.held_by) == (1, 3000, "bad labels", "user")
    assert (event.lineage, event.schema_version, folder_of(event)) == ("l", 2, Path("/m/1"))
    assert event_key(event) == "ns/m/hold"
    assert rollback_event(_known(1, 3, 4), 4, None, "", _NOW).as_of_ms == _NOW
    # The trainer's clock stamps deltas: with one that is behind, those of the next minutes would be taken too.
    assert rollback_event(_known(1, 3, 4), 4, None, "", _NOW, _NOW - 60_000).as_of_ms == _NOW - 60_000
    assert rollback_event(_known(1, 3, 4), 4, _NOW + 60_000, "", _NOW, _NOW + 60_000).as_of_ms == _NOW + 60_000


def test_a_time_to_come_holds_nothing_and_is_refused() -> None:
    with pytest.raises(UserError, match=rf"--as-of={_NOW + 1}: is to come: .*; it is {_NOW} now"):
        rollback_event(_known(1, 3), 1, _NOW + 1, "", _NOW)


def test_the_cut_of_a_version_is_in_its_manifest(tmp_path: Path) -> None:
    folders = {
        2: _write_manifest(tmp_path / "2", cut_at_ms=1900, created_at_ms=2000),
        3: _write_manifest(tmp_path / "3", created_at_ms=2900),
    }
    known = _known(4, base=tmp_path, on_disk=folders)
    assert rollback_event(known, 2, None, "", _NOW).as_of_ms == 2900
    assert folder_of(rollback_event(known, 3, None, "", _NOW)) == tmp_path / "3"
    assert rollback_event(known, 2, 1900, "", _NOW).as_of_ms == 1900
    with pytest.raises(UserError, match="--as-of=1899: version 2 was cut later, at 1900"):
        rollback_event(known, 2, 1899, "", _NOW)


def test_a_version_that_is_not_there_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="--to=2: there is no such version; choose one of 1, 3, 4"):
        rollback_event(_known(1, 4, on_disk={3: Path("/m/3"), 4: Path("/m/4")}), 2, None, "", _NOW)


def test_a_version_whose_folder_is_gone_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match="--to=1: /m/1 is gone; choose one of 3, 4"):
        rollback_event(_known(1, 4, on_disk={3: Path("/m/3"), 4: Path("/m/4")}), 1, None, "", _NOW)


def test_a_folder_that_cannot_be_seen_from_here_is_believed() -> None:
    assert folder_of(rollback_event(_known(4), 2, None, "", _NOW)) == Path("/m/2")


def test_a_retired_model_cannot_be_rolled_back() -> None:
    known = KnownModel(Announced(make_event(ModelEvent.RETIRE, "ns", "m"), _export(1)), {1: _export(1)})
    with pytest.raises(UserError, match="--model=m: it is retired"):
        rollback_event(known, 1, None, "", _NOW)


_HELD = {"state": "AVAILABLE", "target_version": 5, "is_held": True, "hold_event_id": "e"}
_FREE = {"state": "AVAILABLE", "target_version": 7, "is_held": False, "hold_event_id": "e"}


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        (ModelEvent.ROLLBACK, _HELD, True),
        (ModelEvent.ROLLBACK, _HELD | {"state": "LOADING"}, False),
        (ModelEvent.ROLLBACK, _HELD | {"hold_event_id": "older"}, False),
        (ModelEvent.ROLLBACK, _HELD | {"target_version": 4}, False),  # pinned
        (ModelEvent.ROLLBACK, _HELD | {"is_held": False}, False),
        (ModelEvent.RELEASE, _FREE, True),
        (ModelEvent.RELEASE, _FREE | {"state": "STALE"}, True),
        (ModelEvent.RELEASE, _FREE | {"state": "HELD_BACK"}, True),
        (ModelEvent.RELEASE, _FREE | {"state": "FAILED"}, False),
        (ModelEvent.RELEASE, _HELD, False),
        (ModelEvent.RETIRE, {"state": "RETIRED", "model_event_id": "e"}, True),
        (ModelEvent.RETIRE, {"state": "RETIRED", "model_event_id": "older"}, False),
        (ModelEvent.RETIRE, {}, False),
    ],
)
def test_a_replica_follows_when_it_has_the_event_in_force(
    kind: ModelEvent.Kind, status: dict[str, Any], expected: bool
) -> None:
    assert follows(ModelEvent(kind=kind, event_id="e", version=5), status) is expected


def test_what_a_version_is_known_by_comes_from_its_event_first() -> None:
    assert _known(4, on_disk={4: Path("/elsewhere/4")}).folder(4) == Path("/m/4")
    assert Announced(newest=_export(4)).export == Target(4, Path("/m/4"))


@pytest.mark.service
def test_a_status_of_somebody_else_ends_no_wait(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.serving_status)
    replicas = Replicas(kafka, topics.serving_status, "ns", "m")
    producer = make_producer(kafka)
    own = {"bzid": "ns", "model_name": "m", "replica_id": "0", "state": "RETIRED", "model_event_id": "e"}
    for value in (b"[" * 100_000, b"[]", b"\xff", json.dumps(own | {"bzid": "x"}).encode(), json.dumps(own).encode()):
        producer.produce(topics.serving_status, value)
    flush_or_raise(producer)
    try:
        assert replicas.wait(ModelEvent(kind=ModelEvent.RETIRE, event_id="e"), 60.0, lambda _: None)
        assert list(replicas.statuses) == ["0"]
    finally:
        replicas.close()
