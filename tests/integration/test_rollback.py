"""Agents, servers, Kafka and ZooKeeper together: what holds a version, what ends it, and who shares a server."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.cli import main
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.telemetry import Heartbeat
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import Topics
from millrace.serving.agent.agent import AgentConfig
from millrace.serving.agent.agent_process import run_agent
from millrace.serving.agent.gate import parse_gate
from millrace.serving.agent.model_events import event_key, event_to_json, make_event, parse_event
from millrace.serving.client.predict_client import PredictClient
from millrace.serving.server.model_server import ModelServer, ServerConfig
from tests.fakes.exports import write_table_export

pytestmark = pytest.mark.service
_SECONDS = 90.0
_ITEM = 7
# Brokers compact what is older than 100 ms as soon as one record of it is superseded, at their next look.
_COMPACTED_SOON = {
    "cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.0001",
    "min.compaction.lag.ms": "0", "max.compaction.lag.ms": "100",
}  # fmt: skip


@dataclass
class _Trainer:
    """Writes exports and deltas of one model; delta n is created at 1000 * n, a cut is 500 ms after its last delta."""

    kafka: KafkaConnection
    topics: Topics
    base: Path
    model: str = field(default_factory=lambda: f"tiny-{uuid.uuid4().hex[:8]}")
    sequence: int = 0

    def __post_init__(self) -> None:
        self._producer = make_producer(self.kafka)
        ensure_topic(self.kafka, self.topics.deltas(self.model))

    def export(self, version: int, click: float, **fields: Any) -> None:
        cut = {"delta_offset": self.sequence, "delta_sequence": self.sequence}
        write_table_export(
            self.base, version, {_ITEM: click}, self.topics.deltas(self.model), **cut, model=self.model,
            cut_at_ms=1000 * self.sequence + 500,
        )  # fmt: skip
        self.announce(version, quality={"rows": 10.0}, **fields)

    def announce(self, version: int, **fields: Any) -> None:
        event = make_event(
            ModelEvent.EXPORT, "default", self.model, version=version, export_base=str(self.base), **fields
        )
        self.send(self.topics.model_events, event_to_json(event), event_key(event))

    def delta(self, click: float) -> None:
        self.sequence += 1
        delta = ModelDelta(model_name=self.model, sequence=self.sequence, schema_version=1)
        delta.created_at_ms = 1000 * self.sequence
        values = np.array([click], "<f4").tobytes()
        delta.tables.add(name="item", dim=1, fids=np.array([_ITEM], "<i8").tobytes(), values=values)
        self.send(self.topics.deltas(self.model), delta.SerializeToString(), None)

    def send(self, topic: str, value: str | bytes, key: str | None) -> None:
        self._producer.produce(topic, value, key=key)
        flush_or_raise(self._producer)


@dataclass
class _Replica:
    """A server and agents beside it, in this process."""

    kafka: KafkaConnection
    topics: Topics
    zookeeper: str
    folder: Path
    agents: dict[str, tuple[threading.Thread, threading.Event]] = field(default_factory=dict)

    def start_server(self) -> None:
        self.server = ModelServer(ServerConfig(kafka=self.kafka))
        self.server.start()

    def start_agent(self, model: str, require: str | None = None, kafka: KafkaConnection | None = None) -> None:
        stop = threading.Event()
        config = AgentConfig(self.server.address, model, "r1", gate=parse_gate(require))
        arguments = (
            config, self.server.control_address, kafka or self.kafka, self.topics, self.zookeeper, "127.0.0.1:1",
            self.folder / f"{model}.json", stop, Heartbeat("reconciling"),
        )  # fmt: skip
        thread = threading.Thread(target=run_agent, args=arguments)
        thread.start()
        self.agents[model] = thread, stop

    def stop_agent(self, model: str) -> None:
        thread, stop = self.agents.pop(model)
        stop.set()
        thread.join()

    def stop(self) -> None:
        for model in list(self.agents):
            self.stop_agent(model)
        self.server.stop()

    def restart(self, model: str) -> None:
        """Agent and server end and come back, on other ports."""
        self.stop()
        self.start_server()
        self.start_agent(model)

    def answer(self, model: str) -> bytes | None:
        """The bytes of the prediction; None while nothing is loaded."""
        try:
            with PredictClient(self.server.address, model) as client:
                return client.predict({"item_id": np.array([_ITEM])})["click"].tobytes()
        except Exception:
            return None

    def wait(self, model: str, click: float) -> bytes:
        expected = np.array([click], np.float32).tobytes()
        wait_until(lambda: self.answer(model) == expected, _SECONDS, f"{model} answers {click}", 0.1)
        return expected


@pytest.fixture
def trainer(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> _Trainer:
    ensure_topic(kafka, topics.model_events, config=_COMPACTED_SOON)
    (tmp_path / "exports").mkdir()
    return _Trainer(kafka, topics, tmp_path / "exports")


@pytest.fixture
def replica(kafka: KafkaConnection, topics: Topics, zookeeper: str, tmp_path: Path) -> Iterator[_Replica]:
    replica = _Replica(kafka, topics, zookeeper, tmp_path / "state")
    replica.start_server()
    yield replica
    replica.stop()


@pytest.fixture
def command(kafka: KafkaConnection, topics: Topics, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """command("rollback", "--model", "m", ...) -> (exit code, what it printed as JSON)."""

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        flags = ["--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--reason", "test", "--json"]
        code = main.main([*words, *flags])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else {}

    return run


def _statuses(kafka: KafkaConnection, topics: Topics, model: str) -> list[dict[str, Any]]:
    found = [
        json.loads(message.value())
        for messages in read_messages(resolve_range(kafka, topics.serving_status))
        for message in messages
    ]
    return [status for status in found if status["model_name"] == model]


def _wait_status(trainer: _Trainer, expected: Callable[[dict[str, Any]], bool], what: str) -> None:
    def is_last() -> bool:
        found = _statuses(trainer.kafka, trainer.topics, trainer.model)
        return bool(found) and expected(found[-1])

    wait_until(is_last, _SECONDS, what, 0.2)


def _heard_of(trainer: _Trainer) -> str:
    """Id of the newest EXPORT of the model that was sent."""
    return [event.event_id for event in _events(trainer) if event.kind == ModelEvent.EXPORT][-1]


def _events(trainer: _Trainer) -> list[ModelEvent]:
    found = [
        parse_event(message.value())
        for messages in read_messages(resolve_range(trainer.kafka, trainer.topics.model_events))
        for message in messages
    ]
    return [event for event in found if event.model_name == trainer.model]


def test_a_rollback_holds_through_exports_restarts_and_compaction_until_it_is_released(
    trainer: _Trainer, replica: _Replica, command: Callable[..., Any]
) -> None:
    model = trainer.model
    trainer.export(1, 0.25)
    replica.start_agent(model)
    replica.wait(model, 0.25)
    trainer.delta(0.5)
    replica.wait(model, 0.5)
    trainer.export(2, 0.5)
    trainer.delta(9.0)  # what a bad model says
    replica.wait(model, 9.0)

    code, told = command("rollback", "--model", model, "--to", "1")
    assert (code, told["in_force"], told["as_of_ms"]) == (0, True, 1500)
    assert [row["follows"] for row in told["replicas"]] == [True]
    held = replica.wait(model, 0.5)

    for version in range(3, 8):
        trainer.export(version, float(version))
        trainer.delta(version + 0.5)
        _wait_status(trainer, lambda status: status["model_event_id"] == _heard_of(trainer), f"export {version} read")
        assert replica.answer(model) == held
    replica.restart(model)
    assert replica.wait(model, 0.5) == held

    def is_compacted() -> bool:
        trainer.announce(7, quality={"rows": 10.0})  # the newest segment of a topic is never compacted
        return sum(event.kind == ModelEvent.EXPORT and event.version < 7 for event in _events(trainer)) == 0

    wait_until(is_compacted, _SECONDS, "the topic is compacted", 1.0)
    (replica.folder / f"{model}.json").unlink()  # nothing but the topic is left to say so
    replica.restart(model)
    assert replica.wait(model, 0.5) == held

    code, told = command("release", "--model", model)
    assert (code, told["in_force"]) == (0, True)
    replica.wait(model, 7.5)
    assert command("release", "--model", model)[0] == 2  # nothing is left to release


def test_two_models_with_an_agent_each_share_a_server_and_one_is_retired(
    trainer: _Trainer, replica: _Replica, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = _Trainer(trainer.kafka, trainer.topics, tmp_path / "other")
    trainer.export(1, 1.0)
    other.export(1, 2.0)
    replica.start_agent(trainer.model)
    replica.start_agent(other.model)
    replica.wait(trainer.model, 1.0)
    replica.wait(other.model, 2.0)
    trainer.export(2, 3.0)
    replica.wait(trainer.model, 3.0)
    replica.wait(other.model, 2.0)
    code, told = command("retire", "--model", trainer.model)
    assert (code, told["in_force"]) == (0, True)
    wait_until(lambda: replica.answer(trainer.model) is None, _SECONDS, "the retired model is gone")
    replica.wait(other.model, 2.0)


def test_a_second_agent_of_the_same_name_tells_its_server_nothing_until_the_first_has_ended(
    trainer: _Trainer, replica: _Replica, tmp_path: Path
) -> None:
    trainer.export(1, 0.25)
    replica.start_agent(trainer.model)
    replica.wait(trainer.model, 0.25)
    second = _Replica(replica.kafka, replica.topics, replica.zookeeper, tmp_path / "second")
    second.start_server()
    try:
        second.start_agent(trainer.model)
        trainer.export(2, 0.5)
        replica.wait(trainer.model, 0.5)
        assert second.server.available(trainer.model) == []
        replica.stop_agent(trainer.model)
        wait_until(lambda: second.server.available(trainer.model) == [2], _SECONDS, "the second takes over")
    finally:
        second.stop()


def test_an_agent_without_kafka_and_zookeeper_tells_the_server_what_it_remembers(
    trainer: _Trainer, replica: _Replica
) -> None:
    trainer.export(1, 0.25)
    replica.start_agent(trainer.model)
    replica.wait(trainer.model, 0.25)
    replica.stop()
    replica.start_server()
    zookeeper, replica.zookeeper = replica.zookeeper, "127.0.0.1:1"
    replica.start_agent(trainer.model, kafka=KafkaConnection("127.0.0.1:1"))
    replica.wait(trainer.model, 0.25)
    replica.zookeeper = zookeeper


def test_a_blank_model_and_one_of_another_signature_are_kept_out_of_service(
    trainer: _Trainer, replica: _Replica, tmp_path: Path
) -> None:
    trainer.export(1, 0.25)
    replica.start_agent(trainer.model)
    replica.wait(trainer.model, 0.25)
    blank = tmp_path / "blank"
    blank.mkdir()
    write_table_export(blank, 2, {_ITEM: 0.0}, model=trainer.model, global_step=0)
    later = make_event(
        ModelEvent.EXPORT, "default", trainer.model, version=2, export_base=str(blank), lineage="another"
    )
    later.created_at_ms = time.time_ns() // 1_000_000 + 1000
    trainer.send(trainer.topics.model_events, event_to_json(later), event_key(later))
    _wait_status(trainer, lambda status: status["held_back_version"] == 2, "the blank model is held back")
    signature = {"inputs": {"item_id": "int64", "hour": "int64"}, "outputs": ["click"]}
    write_table_export(blank, 3, {_ITEM: 3.0}, model=trainer.model, signature=signature)
    later.version, later.quality["rows"] = 3, 10.0
    trainer.send(trainer.topics.model_events, event_to_json(later), event_key(later))
    _wait_status(trainer, lambda status: status["held_back_version"] == 3, "another signature is held back")
    status = _statuses(trainer.kafka, trainer.topics, trainer.model)[-1]
    assert (status["state"], status["target_version"]) == ("HELD_BACK", 1)
    assert "it needs hour, which they do not send" in status["error"]
    replica.wait(trainer.model, 0.25)


def test_a_command_that_nobody_follows_ends_with_code_1_and_stays_sent(
    trainer: _Trainer, command: Callable[..., Any], kafka: KafkaConnection, topics: Topics
) -> None:
    ensure_topic(kafka, topics.serving_status)
    trainer.export(1, 0.25)
    code, told = command("rollback", "--model", trainer.model, "--to", "1", "--timeout", "0.5")
    assert (code, told["in_force"], told["replicas"]) == (1, False, [])
    assert command("rollback", "--model", trainer.model, "--to", "1", "--no-wait")[0] == 0
    assert command("rollback", "--model", trainer.model, "--to", "5")[0] == 2
    assert command("rollback", "--model", "absent", "--to", "5")[0] == 2
    assert [event.kind for event in _events(trainer)][-1] == ModelEvent.ROLLBACK
