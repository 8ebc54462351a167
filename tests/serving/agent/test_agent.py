import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from millrace.serving.agent.agent import Agent, AgentConfig
from millrace.serving.agent.registry import Registry, binding_path, service_path
from millrace.serving.server.servable import State
from tests.fakes.servables import FakeServer, FakeTopic


class _Nodes:
    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def register(self, path: str, data: bytes) -> None:
        self.data[path] = data

    def unregister(self, path: str) -> None:
        self.data.pop(path, None)


class _World(SimpleNamespace):
    """An agent between a topic, a server, ZooKeeper's nodes and a clock, all of them in memory."""

    def __init__(self) -> None:
        super().__init__(topic=FakeTopic(), server=FakeServer(), nodes=_Nodes(), now=0.0, disk={1, 2, 3}, sent=[])
        self.agent = self.make_agent()

    def make_agent(self) -> Agent:
        config = AgentConfig("127.0.0.1:8500", "m", "r1")
        registry = Registry(self.nodes, "default", "m", "r1")
        registry.register(config.server, "127.0.0.1:9000")
        return Agent(
            config,
            self.topic,
            self.server,
            registry,
            lambda value: self.sent.append(json.loads(value)),
            lambda: self.now,
            lambda base: {version: str(base / str(version)) for version in self.disk},
        )

    def announce(self, kind: str, version: int) -> None:
        event = {"model_name": "m", "bzid": "default", "kind": kind, "version": version, "export_base": "/m"}
        self.topic.put(json.dumps(event | {"schema_version": 1}).encode())

    def tick(self, seconds: float = 0.3) -> None:
        self.now += seconds
        self.agent.step()

    @property
    def binding(self) -> dict[str, Any] | None:
        data = self.nodes.data.get(binding_path("default", "m", "r1"))
        return json.loads(data) if data else None


@pytest.fixture
def world() -> _World:
    return _World()


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


def test_a_refused_version_is_tried_again_with_growing_pauses(world: _World) -> None:
    world.disk = {1}
    world.announce("EXPORT", 1)
    for _ in range(100):
        world.tick(1.0)
        world.server.move(1, State.END, "saved_model.pb: checksum differs")
    assert 5 <= len(world.server.configured) <= 10
    assert world.sent[-1]["state"] == "FAILED"
    assert "saved_model.pb" in world.sent[-1]["error"]


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
        "error": "",
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
    assert world.server.rows[1].state is State.AVAILABLE
    assert {versions for _, versions in world.server.configured} == {(1,)}


def test_paths_are_those_of_the_layout() -> None:
    assert service_path("b", "r1") == "/b/container_service/default:r1"
    assert binding_path("b", "m", "r1") == "/b/binding/m/standalone:default:r1"
    assert Path(binding_path("b", "m", "r1")).parent == Path("/b/binding/m")
