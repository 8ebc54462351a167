"""Kafka, ZooKeeper, agent and server die while a client predicts: only the server's own death may be felt."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.servers.daemon import free_port
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topic_reader import Record, TopicReader
from millrace.runtime.topics import Topics
from millrace.runtime.zookeeper import ZooKeeperError, ZooKeeperSession
from millrace.serving.agent.registry import binding_path
from millrace.serving.client.predict_client import PredictClient
from tests.fakes.exports import MODEL, write_table_export

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]
_SECONDS = 60.0
_ITEM = 7
_REPLICA = "r1"


class _Client:
    """Asks without pause; keeps the newest answer and when each failure happened."""

    def __init__(self, address: str) -> None:
        self.version = 0
        self.click = 0.0
        self.answers = 0
        self.failures: list[tuple[float, str]] = []
        self._client = PredictClient(address, MODEL)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            try:
                outputs, self.version = self._client.predict_with_version({"item_id": np.array([_ITEM])})
                self.click = round(float(outputs["click"][0]), 4)
                self.answers += 1
            except Exception as error:
                self.failures.append((time.monotonic(), str(error)))

    def wait(self, version: int, click: float) -> None:
        seen = self.answers
        wait_until(
            lambda: self.answers > seen + 1 and (self.version, self.click) == (version, click),
            _SECONDS,
            f"click {click} of version {version}; the last answer was {self.click} of {self.version}",
        )


class _Trainer:
    """What a trainer says on Kafka: versions and deltas."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, base_path: Path) -> None:
        self._base_path = base_path
        self._topics = topics
        self._producer = make_producer(kafka)
        self._sequence = 0

    def export(self, version: int, click: float) -> None:
        """Publishes a version that holds all deltas so far."""
        path = write_table_export(
            self._base_path,
            version,
            {_ITEM: click},
            self._topics.deltas(MODEL),
            delta_offset=self._sequence,
            delta_sequence=self._sequence,
        )
        event = {
            "event_id": f"e{version}",
            "bzid": "default",
            "model_name": MODEL,
            "kind": "EXPORT",
            "version": str(version),
            "export_base": str(self._base_path),
            "sub_graphs": {"standalone": {"path": str(path), "size_bytes": "1"}},
            "schema_version": 1,
        }
        self._producer.produce(self._topics.model_events, json.dumps(event), key=f"default/{MODEL}")
        flush_or_raise(self._producer, _SECONDS)

    def delta(self, click: float) -> None:
        self._sequence += 1
        delta = ModelDelta(model_name=MODEL, sequence=self._sequence, schema_version=1, created_at_ms=1)
        values = np.array([click], "<f4").tobytes()
        delta.tables.add(name="item", dim=1, fids=np.array([_ITEM], "<i8").tobytes(), values=values)
        self._producer.produce(self._topics.deltas(MODEL), delta.SerializeToString())
        flush_or_raise(self._producer, _SECONDS)


@pytest.fixture
def trainer(own_servers: DevServers, tmp_path: Path) -> _Trainer:
    kafka, topics = KafkaConnection(own_servers.kafka_address), Topics()
    ensure_topic(kafka, topics.model_events, config={"cleanup.policy": "compact"})
    ensure_topic(kafka, topics.deltas(MODEL))
    (tmp_path / "exports").mkdir()
    return _Trainer(kafka, topics, tmp_path / "exports")


@pytest.fixture
def server(start_millrace: Callable[..., ChildProcess], own_servers: DevServers) -> ChildProcess:
    ports = ["--port", str(free_port()), "--control-port", str(free_port())]
    server = start_millrace("serve", *ports, "--model-name", MODEL, "--kafka", own_servers.kafka_address)
    server.wait_ready(_SECONDS)
    return server


@pytest.fixture
def agent(start_millrace: Callable[..., ChildProcess], own_servers: DevServers, server: ChildProcess) -> ChildProcess:
    servers = ["--kafka", own_servers.kafka_address, "--zookeeper", own_servers.zookeeper_address]
    address = ["--server", str(server.ready["address"]), "--control", str(server.ready["control"])]
    flags = [*address, "--model", MODEL, "--replica-id", _REPLICA, *servers]
    agent = start_millrace("agent", *flags)
    agent.wait_ready(_SECONDS)
    return agent


@pytest.fixture
def client(server: ChildProcess, agent: ChildProcess, trainer: _Trainer) -> Iterator[_Client]:
    """Asks for version 1, whose item scores 0.25."""
    trainer.export(1, 0.25)
    with PredictClient(str(server.ready["address"]), MODEL) as first:
        wait_until(lambda: _answers(first), _SECONDS, "version 1")
    client = _Client(str(server.ready["address"]))
    client.wait(1, 0.25)
    yield client
    client.close()


def _answers(client: PredictClient) -> bool:
    try:
        client.predict({"item_id": np.array([_ITEM])})
    except Exception:  # nothing is loaded yet
        return False
    return True


def _bound_versions(address: str) -> list[int]:
    """Versions that the replica's binding in ZooKeeper names."""
    try:
        with ZooKeeperSession(address) as session:
            data = session.get(binding_path("default", MODEL, _REPLICA))
    except ZooKeeperError:
        return []
    return list(json.loads(data)["versions"]) if data else []


def _wait_bound(servers: DevServers, version: int) -> None:
    wait_until(
        lambda: _bound_versions(servers.zookeeper_address) == [version], _SECONDS, f"a binding for {version}", 0.2
    )


def _told(kafka_address: str) -> list[tuple[str, int]]:
    """(state, target version) of each status that the agent sent."""
    reader = TopicReader(KafkaConnection(kafka_address), Topics().serving_status, {0: 0})
    records: list[Record] = []

    def read() -> bool:
        records.extend(reader.read())
        return reader.reached_end()

    try:
        wait_until(read, _SECONDS, "the status topic read")
    finally:
        reader.close()
    assert {record.key for record in records} == {f"default/{MODEL}/{_REPLICA}".encode()}
    statuses = [json.loads(record.value or b"{}") for record in records]
    return [(status["state"], status["target_version"]) for status in statuses]


def test_a_client_feels_nothing_but_the_death_of_the_server(
    own_servers: DevServers, trainer: _Trainer, server: ChildProcess, agent: ChildProcess, client: _Client
) -> None:
    _wait_bound(own_servers, 1)

    # ZooKeeper dies, and comes back without any memory: the session is lost, its nodes are made again.
    own_servers.zookeeper.kill()
    trainer.export(2, 0.5)
    client.wait(2, 0.5)
    shutil.rmtree(own_servers.zookeeper.data)
    own_servers.zookeeper.restart()
    _wait_bound(own_servers, 2)

    # Kafka dies: what is loaded goes on answering; after its return versions and deltas go on.
    own_servers.kafka.kill()
    client.wait(2, 0.5)
    own_servers.kafka.restart()
    trainer.delta(0.75)
    client.wait(2, 0.75)
    trainer.export(3, 1.0)
    client.wait(3, 1.0)

    # The agent dies: deltas do not need it; a version announced meanwhile is served after its return.
    agent.kill()
    trainer.delta(1.25)
    client.wait(3, 1.25)
    trainer.export(4, 1.5)
    agent.start()
    client.wait(4, 1.5)
    _wait_bound(own_servers, 4)
    assert client.failures == []

    # The server dies: the client feels it, until the agent has told the new one what to serve.
    died = time.monotonic()
    server.kill()
    server.start()
    client.wait(4, 1.5)
    recovered = time.monotonic()
    assert all(died <= moment <= recovered for moment, _ in client.failures)
    trainer.delta(1.75)
    client.wait(4, 1.75)
    _wait_bound(own_servers, 4)
    assert all(moment <= recovered for moment, _ in client.failures)
    assert client.answers > 100

    assert agent.stop() == 0
    assert server.stop() == 0
    assert _bound_versions(own_servers.zookeeper_address) == []
    told = _told(own_servers.kafka_address)
    assert told[0] == ("NO_EVENT", 0)
    assert {("AVAILABLE", 1), ("AVAILABLE", 2), ("AVAILABLE", 4), ("SERVER_DOWN", 4)} <= set(told)
