import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from millrace.runtime.telemetry import Heartbeat
from millrace.serving.agent.agent import Agent, AgentConfig
from millrace.serving.agent.gate import parse_gate
from millrace.serving.agent.registry import Registry, agent_path, binding_path, service_path
from millrace.serving.agent.state_file import StateFile
from millrace.serving.server.servable import State
from tests.fakes.servables import FakeServer, FakeTopic


class _Nodes:
    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def claim(self, path: str, data: bytes) -> bytes | None:
        present = self.data.setdefault(path, data)
        return None if present == data else present

    def register(self, path: str, data: bytes) -> None:
        self.data[path] = data

    def unregister(self, path: str) -> None:
        self.data.pop(path, None)


class _World(SimpleNamespace):
    """An agent between a topic, a server, ZooKeeper's nodes and a clock, all of them in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(topic=FakeTopic(), server=FakeServer(), nodes=_Nodes(), now=0.0, disk={1, 2, 3}, sent=[])
        self.state_file = folder / "state.json"
        self.session: _Nodes | None = self.nodes
        self.agent = self.make_agent()

    def make_agent(self, require: str | None = None, pin: int | None = None) -> Agent:
        config = AgentConfig("127.0.0.1:8500", "m", "r1", gate=parse_gate(require), pin=pin)
        self.nodes.data.clear()  # the session of the agent before has ended
        registry = Registry(
            lambda: self.session, "default", "m", "r1", config.server, "127.0.0.1:9000", lambda: self.now
        )
        return Agent(
            config,
            self.topic,
            self.server,
            registry,
            lambda value: self.sent.append(json.loads(value)),
            StateFile(self.state_file, "m"),
            lambda: self.now,
            self.versions_in,
        )

    def versions_in(self, base: Path) -> dict[int, str]:
        if self.disk is None:
            raise PermissionError(13, "Permission denied", str(base))
        return {version: str(base / str(version)) for version in self.disk}

    def announce(self, kind: str, version: int, **fields: Any) -> None:
        event = {"model_name": "m", "bzid": "default", "kind": kind, "version": version, "export_base": "/m"}
        event |= {"event_id": f"{kind}-{version}", "global_step": 1, "schema_version": 2}
        self.topic.put(json.dumps(event | fields).encode())

    def serve(self, version: int) -> None:
        """Announces a version and lets the server load it."""
        self.announce("EXPORT", version)
        self.tick()
        self.server.move(version, State.AVAILABLE)
        self.tick()

    def tick(self, seconds: float = 0.3) -> None:
        self.now += seconds
        self.agent.step()

    @property
    def binding(self) -> dict[str, Any] | None:
        data = self.nodes.data.get(binding_path("default", "m", "r1"))
        return json.loads(data) if data else None


def _run_to_its_end(agent: Agent) -> None:
    stop = threading.Event()
    stop.set()
    agent.run(stop, Heartbeat("reconciling"))


@pytest.fixture
def world(tmp_path: Path) -> _World:
    return _World(tmp_path)


def test_a_version_is_loaded_beside_the_old_one_which_then_goes(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    world.server.move(1, State.AVAILABLE)
    world.tick()
    world.announce("EXPORT", 2)
    world.tick()
    world.server.move(2, State.AVAILABLE)
    world.tick()
    assert world.server.configured == [("/m", (1,)), ("/m", (2, 1)), ("/m", (2,))]


def test_nothing_is_told_twice(world: _World) -> None:
    world.announce("EXPORT", 1)
    for _ in range(5):
        world.tick()
    assert world.server.configured == [("/m", (1,))]


def test_the_backlog_is_reduced_to_one_configuration(world: _World) -> None:
    world.topic.at_end = False
    world.tick()
    for version in (1, 2, 3):
        world.announce("EXPORT", version)
        world.tick()
    assert world.server.configured == []
    world.topic.at_end = True
    world.tick()
    assert world.server.configured == [("/m", (3,))]


def test_a_restarted_server_is_told_again(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    world.server.move(1, State.AVAILABLE)
    world.tick()
    world.server.down = True
    world.tick()
    assert world.sent[-1]["state"] == "SERVER_DOWN"
    assert world.binding is None
    world.server.down, world.server.rows = False, {}
    world.tick()
    assert world.server.configured == [("/m", (1,)), ("/m", (1,))]
    assert world.sent[-1]["state"] == "LOADING"


def test_a_server_that_restarted_between_two_looks_is_told_again(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    world.server.rows = {}
    world.tick()
    assert len(world.server.configured) == 2


def test_a_missing_folder_is_waited_for(world: _World) -> None:
    world.announce("EXPORT", 7)
    world.disk = set()
    world.tick()
    assert world.server.configured == []
    assert "/m/7 does not exist" in world.sent[-1]["error"]
    world.disk = {7}
    world.tick()
    assert world.server.configured == [("/m", (7,))]


def test_a_refused_version_is_told_and_asked_for_until_the_server_takes_it(world: _World) -> None:
    world.disk = {1}
    world.announce("EXPORT", 1)
    world.tick()
    world.server.move(1, State.END, "saved_model.pb: checksum differs")
    world.tick()
    assert world.sent[-1]["state"] == "FAILED"
    assert "saved_model.pb" in world.sent[-1]["error"]
    assert list(world.server.plans[-1].versions) == [1]
    world.server.move(1, State.AVAILABLE)
    world.tick()
    assert world.sent[-1]["state"] == "AVAILABLE"


def test_retire_empties_the_server(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    world.announce("RETIRE", 0)
    world.tick()
    assert world.server.configured[-1][1] == ()
    assert world.sent[-1]["state"] == "RETIRED"


def test_a_malformed_event_and_a_tombstone_are_passed_over(world: _World) -> None:
    world.topic.put(b"\xff", None)
    world.announce("EXPORT", 1)
    world.tick()
    assert world.server.configured == [("/m", (1,))]


def test_the_binding_names_what_can_be_asked(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    assert world.binding is None
    world.server.move(1, State.AVAILABLE)
    world.tick()
    assert world.binding == {"versions": [1], "state": "AVAILABLE", "error": ""}
    service = json.loads(world.nodes.data[service_path("default", "r1")])
    assert (service["grpc"], service["agent"]) == ("127.0.0.1:8500", "127.0.0.1:9000")


def test_the_status_is_sent_when_it_changes_and_now_and_then(world: _World) -> None:
    world.announce("EXPORT", 1)
    for _ in range(20):
        world.tick()
    states = [status["state"] for status in world.sent]
    assert states == ["LOADING"]
    world.tick(11.0)
    assert len(world.sent) == 2
    assert world.sent[-1] | {"time_ms": 0} == {
        "schema_version": 1,
        "bzid": "default",
        "model_name": "m",
        "replica_id": "r1",
        "server": "127.0.0.1:8500",
        "state": "LOADING",
        "target_version": 1,
        "available_versions": [],
        "is_held": False,
        "as_of_ms": 0,
        "held_back_version": 0,
        "error": "",
        "resync_required": False,
        "is_stale": False,
        "hold_event_id": "",
        "model_event_id": "EXPORT-1",
        "model_age_ms": -1,
        "delta_lag_ms": -1,
        "time_ms": 0,
    }


def test_a_restarted_agent_finds_the_server_as_it_should_be(world: _World) -> None:
    world.announce("EXPORT", 1)
    world.tick()
    world.server.move(1, State.AVAILABLE)
    world.announce("EXPORT", 1)  # the topic again, from its beginning
    world.agent = world.make_agent()
    world.tick()
    world.tick()
    assert world.server.rows[1].state == State.AVAILABLE
    assert {versions for _, versions in world.server.configured} == {(1,)}


def test_the_status_names_the_event_of_a_guard_that_holds_the_model(world: _World) -> None:
    world.serve(1)
    world.announce("ROLLBACK", 1, as_of_ms="700", held_by="guard")
    world.tick()
    world.server.move(1, State.AVAILABLE)
    world.tick()
    assert world.sent[-1] | {"is_held": True, "as_of_ms": 700, "hold_event_id": "ROLLBACK-1"} == world.sent[-1]


def test_a_rollback_is_sent_as_a_held_plan_and_outlives_exports_and_a_restart(world: _World) -> None:
    world.serve(1)
    world.serve(2)
    world.announce("ROLLBACK", 1, as_of_ms="700")
    world.tick()
    plan = world.server.plans[-1]
    assert (list(plan.versions), plan.is_held, plan.as_of_ms) == ([1], True, 700)
    world.server.move(1, State.AVAILABLE)
    for version in (3, 4, 5, 6, 7):
        world.announce("EXPORT", version)
        world.tick()
    world.agent = world.make_agent()
    world.tick()
    assert list(world.server.plans[-1].versions) == [1]
    assert world.sent[-1] | {"state": "AVAILABLE", "is_held": True, "hold_event_id": "ROLLBACK-1"} == world.sent[-1]
    world.disk = {7}
    world.announce("RELEASE", 0)
    world.tick()
    assert (list(world.server.plans[-1].versions), world.server.plans[-1].is_held) == ([7], False)


def test_a_version_in_service_that_is_loaded_anew_to_be_held_is_not_available_yet(world: _World) -> None:
    world.serve(1)
    world.announce("ROLLBACK", 1, as_of_ms="700")
    world.tick()
    assert world.sent[-1]["state"] == "LOADING"
    world.server.move(1, State.AVAILABLE, is_held=True)
    world.tick()
    assert world.sent[-1]["state"] == "AVAILABLE"
    world.announce("RELEASE", 0)
    world.tick()
    assert world.sent[-1]["state"] == "LOADING"


def test_a_version_that_the_gate_refuses_is_told_and_the_old_one_answers(world: _World) -> None:
    world.serve(1)
    world.announce("EXPORT", 2, global_step=0)
    world.tick(1.1)
    assert [plan.versions for plan in world.server.plans if 2 in plan.versions] == []
    status = world.sent[-1]
    assert (status["state"], status["target_version"], status["held_back_version"]) == ("HELD_BACK", 1, 2)
    assert "learned nothing" in status["error"]


def test_a_refused_first_version_is_held_back(world: _World) -> None:
    world.agent = world.make_agent("auc>0.6")
    world.announce("EXPORT", 1, quality={"auc": 0.5})
    world.tick()
    assert world.server.configured == []
    assert (world.sent[-1]["state"], world.sent[-1]["held_back_version"]) == ("HELD_BACK", 1)
    world.announce("EXPORT", 2, quality={"auc": 0.7})
    world.tick()
    assert world.server.configured == [("/m", (2,))]


def test_stale_weights_and_lost_deltas_are_told(world: _World) -> None:
    world.serve(1)
    world.server.move(
        1, State.AVAILABLE, "older than 60 s", model_age_ms=90_000, delta_lag_ms=5, is_stale=True, resync_required=True
    )
    world.tick()
    status = world.sent[-1]
    assert (status["state"], status["model_age_ms"], status["delta_lag_ms"]) == ("STALE", 90_000, 5)
    assert status["resync_required"] and status["is_stale"]
    assert world.binding == {"versions": [1], "state": "STALE", "error": "older than 60 s"}


def test_an_age_alone_is_no_news(world: _World) -> None:
    world.serve(1)
    sent = len(world.sent)
    for age in range(2, 7):
        world.server.move(1, State.AVAILABLE, model_age_ms=age)
        world.tick(1.1)
    assert len(world.sent) == sent
    for age in range(60, 65):
        world.server.move(1, State.AVAILABLE, f"its newest event is {age} s old", is_stale=True)
        world.tick(1.1)
    assert len(world.sent) == sent + 1, "that it is stale is told once"


def test_without_kafka_the_server_is_told_what_the_agent_remembers(world: _World) -> None:
    world.serve(1)
    world.announce("ROLLBACK", 1, as_of_ms="700")
    world.tick()
    world.server.rows = {}
    world.topic.at_end = False
    world.session = None
    world.agent = world.make_agent()
    told = len(world.server.plans)
    world.tick()
    assert len(world.server.plans) == told  # ZooKeeper may answer yet
    world.tick(5.0)
    plan = world.server.plans[-1]
    assert (plan.base_path, list(plan.versions), plan.is_held, plan.as_of_ms) == ("/m", [1], True, 700)


def test_what_is_read_before_the_end_of_the_topic_changes_nothing_yet(world: _World) -> None:
    world.serve(2)
    world.topic.at_end = False
    world.agent = world.make_agent()
    world.announce("ROLLBACK", 1, as_of_ms="700")
    world.tick()
    assert world.server.configured[-1] == ("/m", (2,))
    world.announce("RELEASE", 0)
    world.topic.at_end = True
    world.tick()
    assert {versions for _, versions in world.server.configured} == {(2,)}


def test_a_memory_that_cannot_be_used_is_passed_over(world: _World, caplog: pytest.LogCaptureFixture) -> None:
    for text in (
        "{",
        "[]",
        json.dumps({"schema_version": 9, "owner": "m"}),
        json.dumps({"schema_version": 1, "owner": "x"}),
    ):
        world.state_file.write_text(text)
        world.agent = world.make_agent()
        assert "state.json is not used" in caplog.text
        caplog.clear()
    world.serve(1)
    assert world.server.configured == [("/m", (1,))]


def test_a_folder_that_cannot_be_listed_ends_nothing(world: _World) -> None:
    world.disk = None
    world.announce("EXPORT", 1)
    world.tick()
    assert world.server.configured == [("/m", (1,))]  # the server may be able to read it
    world.server.move(1, State.AVAILABLE)
    world.tick()
    assert world.sent[-1]["state"] == "AVAILABLE"


def test_a_memory_that_cannot_be_written_ends_nothing(world: _World, caplog: pytest.LogCaptureFixture) -> None:
    world.state_file.parent.joinpath("file").write_text("")
    world.state_file = world.state_file.parent / "file" / "state.json"
    world.agent = world.make_agent()
    world.serve(1)
    assert world.sent[-1]["state"] == "AVAILABLE"
    assert "cannot be written" in caplog.text


def test_a_second_agent_of_the_same_name_waits_until_the_first_has_ended(
    world: _World, caplog: pytest.LogCaptureFixture
) -> None:
    world.serve(1)
    path = agent_path("default", "m", "r1")
    world.agent = world.make_agent()
    other = {"id": "x", "pid": 7, "host": "h2", "server": "h2:8500"}
    world.nodes.data[path] = json.dumps(other).encode()
    told, sent = len(world.server.plans), len(world.sent)
    world.announce("EXPORT", 2)
    for _ in range(50):
        world.tick()
    _run_to_its_end(world.agent)
    assert (len(world.server.plans), len(world.sent)) == (told, sent)
    assert "belongs to another agent (process 7 on h2, beside server h2:8500)" in caplog.text
    del world.nodes.data[path]
    world.tick(1.1)
    assert world.server.configured[-1] == ("/m", (2, 1))


def test_agents_of_two_models_share_the_node_of_their_server(world: _World) -> None:
    world.serve(1)
    other = Registry(lambda: world.session, "default", "n", "r1", "127.0.0.1:8500", "127.0.0.1:9001", lambda: world.now)
    assert other.claim() == ""


def test_a_binding_that_zookeeper_missed_is_shown_when_it_is_there(world: _World) -> None:
    world.session = None
    world.tick(5.0)
    world.serve(1)
    assert world.binding is None
    world.session = world.nodes
    world.tick(1.1)
    assert world.binding is not None and world.binding["versions"] == [1]


def test_the_end_of_an_agent_is_told(world: _World) -> None:
    world.serve(1)
    _run_to_its_end(world.agent)
    assert world.sent[-1]["state"] == "STOPPED"


def test_paths_are_those_of_the_layout() -> None:
    assert service_path("b", "r1") == "/b/container_service/default:r1"
    assert binding_path("b", "m", "r1") == "/b/binding/m/standalone:default:r1"
    assert Path(binding_path("b", "m", "r1")).parent == Path("/b/binding/m")
