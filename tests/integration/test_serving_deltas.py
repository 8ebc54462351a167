"""A server that reads the deltas of its versions from a real broker."""

import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import numpy as np
import prometheus_client
import pytest

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_admin, make_producer
from millrace.runtime.topics import Topics
from millrace.serving.client.predict_client import PredictClient
from millrace.serving.server.model_server import ModelServer, ServerConfig
from tests.fakes.exports import write_table_export

pytestmark = pytest.mark.service
_SECONDS = 30.0


class _Deltas:
    """Produces deltas of table "item" with ascending sequence numbers, the first one 1."""

    def __init__(self, kafka: KafkaConnection, topic: str, model: str) -> None:
        self.topic = topic
        self.model = model
        self.sequence = 0
        self._producer = make_producer(kafka)

    def put(self, rows: Mapping[int, float], bias: float | None = None, skip: int = 0) -> None:
        self.sequence += 1 + skip
        delta = ModelDelta(
            model_name=self.model, sequence=self.sequence, schema_version=1, created_at_ms=self.sequence * 1000
        )
        delta.tables.add(
            name="item",
            dim=1,
            fids=np.array(list(rows), "<i8").tobytes(),
            values=np.array(list(rows.values()), "<f4").tobytes(),
        )
        if bias is not None:
            delta.dense.add(name="bias", dtype="float32", shape=[1], data=np.array([bias], "<f4").tobytes())
        self._producer.produce(self.topic, delta.SerializeToString())
        flush_or_raise(self._producer)

    def put_bytes(self, value: bytes) -> None:
        self._producer.produce(self.topic, value)
        flush_or_raise(self._producer)


@pytest.fixture
def model() -> str:
    """Stores are known by name in the process, so no two tests may share a model's name."""
    return f"tiny-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def deltas(kafka: KafkaConnection, topics: Topics, model: str) -> _Deltas:
    ensure_topic(kafka, topics.deltas(model))
    return _Deltas(kafka, topics.deltas(model), model)


@pytest.fixture
def server(kafka: KafkaConnection, model: str, tmp_path: Path) -> Iterator[ModelServer]:
    """Follows tmp_path/exports."""
    (tmp_path / "exports").mkdir()
    config = ServerConfig(model_name=model, base_path=str(tmp_path / "exports"), kafka=kafka, poll_seconds=0.1)
    server = ModelServer(config)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: ModelServer, model: str) -> Iterator[PredictClient]:
    with PredictClient(server.address, model) as client:
        yield client


def _wait_version(server: ModelServer, model: str, version: int) -> None:
    wait_until(lambda: server.available(model) == [version], _SECONDS, f"version {version}")


def _click(client: PredictClient, item: int) -> float:
    return round(float(client.predict({"item_id": np.array([item])})["click"][0]), 4)


def test_scores_follow_the_deltas(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    assert _click(client, 7) == 0.25
    deltas.put({7: 0.5, 8: 1.5})
    wait_until(lambda: _click(client, 7) == 0.5, _SECONDS, "the delta applied")
    assert _click(client, 8) == 1.5
    deltas.put({}, bias=2.0)
    wait_until(lambda: _click(client, 7) == 2.5, _SECONDS, "the bias applied")


def test_a_version_answers_only_once_it_has_caught_up(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    for value in range(1, 51):
        deltas.put({7: float(value)})
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    assert _click(client, 7) == 50.0


def test_what_the_export_holds_already_is_not_applied_again(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    for value in (1.0, 2.0, 3.0):
        deltas.put({7: value})
    # The export was cut after the third delta; the offset may be early, the sequence number decides.
    write_table_export(tmp_path / "exports", 1, {7: 9.0}, deltas.topic, 1, delta_sequence=3, model=model)
    _wait_version(server, model, 1)
    assert _click(client, 7) == 9.0


def test_deltas_go_on_through_a_change_of_version(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    deltas.put({7: 1.0})
    deltas.put({8: 2.0})
    wait_until(lambda: _click(client, 8) == 2.0, _SECONDS, "version 1 is fresh")
    write_table_export(tmp_path / "exports", 2, {7: 1.0}, deltas.topic, 1, delta_sequence=1, model=model)
    _wait_version(server, model, 2)
    assert (_click(client, 7), _click(client, 8)) == (1.0, 2.0)
    deltas.put({7: 3.0})
    wait_until(lambda: _click(client, 7) == 3.0, _SECONDS, "version 2 is fresh")


def test_gaps_and_broken_deltas_do_not_stop_what_comes_after(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    deltas.put_bytes(b"\xff\xff")
    deltas.put({7: 1.0}, skip=3)
    wait_until(lambda: _click(client, 7) == 1.0, _SECONDS, "the delta after the gap")


def test_an_export_whose_delta_topic_does_not_exist_yet_is_served_when_it_does(
    server: ModelServer, client: PredictClient, kafka: KafkaConnection, topics: Topics, model: str, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, topics.deltas(model), model=model)
    ensure_topic(kafka, topics.deltas(model))
    _wait_version(server, model, 1)
    assert _click(client, 7) == 0.25


def _make_anew(kafka: KafkaConnection, topic: str) -> None:
    admin = make_admin(kafka)
    admin.delete_topics([topic], operation_timeout=_SECONDS)[topic].result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, _SECONDS, "the topic is gone")
    ensure_topic(kafka, topic)


def _resync_required(model: str, version: int) -> float | None:
    labels = {"model": model, "version": str(version)}
    return prometheus_client.REGISTRY.get_sample_value("millrace_resync_required", labels)


def test_deltas_of_a_topic_that_was_made_anew_are_applied_and_a_resync_is_asked_for(
    server: ModelServer, client: PredictClient, deltas: _Deltas, kafka: KafkaConnection, model: str, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    for value in range(1, 21):
        deltas.put({7: float(value)})
    wait_until(lambda: _click(client, 7) == 20.0, _SECONDS, "the deltas")
    assert _resync_required(model, 1) == 0.0
    _make_anew(kafka, deltas.topic)
    deltas.put({7: 50.0})
    wait_until(lambda: _click(client, 7) == 50.0, _SECONDS, "the first delta of the new topic")
    wait_until(lambda: _resync_required(model, 1) == 1.0, _SECONDS, "a resync is asked for")
    # The next export names offsets of the old topic, which lie behind the end of the new one.
    write_table_export(tmp_path / "exports", 2, {7: 50.0}, deltas.topic, 20, delta_sequence=21, model=model)
    _wait_version(server, model, 2)
    deltas.put({7: 51.0})
    wait_until(lambda: _click(client, 7) == 51.0, _SECONDS, "the next delta")


def _hold(server: ModelServer, model: str, base_path: Path, version: int, as_of_ms: int | None) -> None:
    plan = ModelPlan(model_name=model, base_path=str(base_path), versions=[version])
    if as_of_ms is not None:
        plan.is_held, plan.as_of_ms = True, as_of_ms
    with grpc.insecure_channel(server.control_address) as channel:
        call = channel.unary_unary(
            "/millrace.ServingControl/Configure", ModelPlan.SerializeToString, ModelState.FromString
        )
        call(plan, timeout=5)


def test_a_rollback_brings_back_a_version_as_it_was_at_a_time(
    server: ModelServer, client: PredictClient, deltas: _Deltas, model: str, tmp_path: Path
) -> None:
    exports = tmp_path / "exports"
    write_table_export(exports, 1, {7: 0.25}, deltas.topic, model=model)
    _wait_version(server, model, 1)
    for value in range(1, 201):  # delta n is created at n seconds and sets the weight to n
        deltas.put({7: float(value)})
    wait_until(lambda: _click(client, 7) == 200.0, _SECONDS, "the deltas")
    write_table_export(exports, 2, {7: 200.0}, deltas.topic, 200, delta_sequence=200, model=model)
    _wait_version(server, model, 2)
    failures, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                _click(client, 7)
            except grpc.RpcError as error:
                failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        _hold(server, model, exports, 1, as_of_ms=120_000)
        _wait_version(server, model, 1)
        assert _click(client, 7) == 120.0
        _hold(server, model, exports, 1, as_of_ms=50_000)  # it has taken later ones: it is loaded anew
        wait_until(lambda: _click(client, 7) == 50.0, _SECONDS, "an earlier time")
        _hold(server, model, exports, 1, as_of_ms=60_000)  # it has not: it goes on in place
        wait_until(lambda: _click(client, 7) == 60.0, _SECONDS, "a later time")
        deltas.put({7: 300.0})
        _hold(server, model, exports, 1, as_of_ms=None)
        wait_until(lambda: _click(client, 7) == 300.0, _SECONDS, "the end of the hold")
        _hold(server, model, exports, 2, as_of_ms=None)
        _wait_version(server, model, 2)
        assert _click(client, 7) == 300.0
    finally:
        stop.set()
        asking.join(_SECONDS)
    assert failures == []


def test_a_version_without_a_broker_is_served_as_it_is_and_its_lag_tells(
    model: str, topics: Topics, tmp_path: Path
) -> None:
    write_table_export(tmp_path / "exports", 1, {7: 0.25}, topics.deltas(model), model=model)
    away = KafkaConnection("127.0.0.1:1")
    server = ModelServer(
        ServerConfig(model_name=model, base_path=str(tmp_path / "exports"), kafka=away, max_staleness=0.5)
    )
    server.start()
    try:
        _wait_version(server, model, 1)
        wait_until(lambda: "STALE" in str(server.problem()), _SECONDS, "the server says that it is stale")
        with PredictClient(server.address, model) as client:
            assert _click(client, 7) == 0.25
    finally:
        server.stop()
