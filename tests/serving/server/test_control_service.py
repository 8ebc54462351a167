"""The control port of a server with fake loaders: plans of agents, the list of models, roots and staleness."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.serving.server.model_server import ModelServer, ServerConfig
from millrace.serving.server.servable import Freshness, State
from tests.fakes.servables import FakeLoaders

_SECONDS = 10.0


@pytest.fixture
def loaders() -> FakeLoaders:
    return FakeLoaders()


@pytest.fixture
def start_server(loaders: FakeLoaders) -> Iterator[Callable[..., ModelServer]]:
    started = []

    def start(**settings: Any) -> ModelServer:
        server = ModelServer(ServerConfig(**{"poll_seconds": 0.05, **settings}), loaders)
        started.append(server)
        server.start()
        return server

    yield start
    for loader in loaders.made:
        loader.gate.set()
    for server in started:
        server.stop()


@pytest.fixture
def server(start_server: Callable[..., ModelServer]) -> ModelServer:
    return start_server(model_name="m", max_staleness=60.0)


def _configure(server: ModelServer, model: str, *versions: int, **fields: Any) -> ModelState:
    plan = ModelPlan(model_name=model, base_path=fields.pop("base_path", f"/{model}"), versions=versions, **fields)
    with grpc.insecure_channel(server.control_address) as channel:
        call = channel.unary_unary(
            "/millrace.ServingControl/Configure", ModelPlan.SerializeToString, ModelState.FromString
        )
        state: ModelState = call(plan, timeout=5)
        return state


def _reload(address: str, **base_paths: str) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, base_path in base_paths.items():
        config = request.config.model_config_list.config.add(name=name, base_path=base_path)
        config.model_version_policy.specific.versions.append(1)
    with grpc.insecure_channel(address) as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=5)


def _status(address: str, model: str) -> list[tuple[int, str, int]]:
    """(state, error message, error code) of each version."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    with grpc.insecure_channel(address) as channel:
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=5)
    return [(row.state, row.status.error_message, row.status.error_code) for row in response.model_version_status]


def _wait(server: ModelServer, model: str, *versions: int) -> None:
    wait_until(lambda: server.available(model) == list(versions), _SECONDS, f"{model} {versions}", 0.005)


def test_agents_of_two_models_share_a_server(server: ModelServer) -> None:
    _configure(server, "a", 1)
    _configure(server, "b", 7)
    _wait(server, "a", 1)
    _wait(server, "b", 7)
    _configure(server, "b", 8)
    _wait(server, "b", 8)
    _configure(server, "b")
    _wait(server, "b")
    assert server.available("a") == [1]


def test_the_answer_is_the_state_of_the_model(server: ModelServer, loaders: FakeLoaders) -> None:
    _configure(server, "m", 1, is_held=True, as_of_ms=500)
    _wait(server, "m", 1)
    loaders.of(1).fresh = Freshness(90_000, 2_000, resync_required=True)
    (version,) = _configure(server, "m", 1, is_held=True, as_of_ms=500).versions
    assert (version.version, version.state) == (1, State.AVAILABLE)
    assert (version.model_age_ms, version.delta_lag_ms, version.resync_required) == (90_000, 2_000, True)
    assert (version.is_held, version.is_stale) == (True, False)
    (version,) = _configure(server, "m", 1).versions
    assert (version.is_held, version.is_stale) == (False, True)
    assert loaders.in_memory() == 1


def test_the_same_plan_again_and_again_does_not_load_a_refused_version_each_time(
    server: ModelServer, loaders: FakeLoaders
) -> None:
    loaders.failing[1] = "torn"
    for _ in range(30):
        state = _configure(server, "m", 1)
    wait_until(lambda: any("torn" in row.error for row in _configure(server, "m", 1).versions), _SECONDS, "refused")
    assert state.model_name == "m"
    assert 1 <= sum(loader.loads for loader in loaders.made) <= 3


def test_the_list_of_models_leaves_those_of_agents_alone(server: ModelServer) -> None:
    _configure(server, "a", 1)
    _reload(server.control_address, other="/other")
    _wait(server, "other", 1)
    _wait(server, "a", 1)
    _reload(server.control_address)
    _wait(server, "other")
    assert server.available("a") == [1]
    with pytest.raises(grpc.RpcError, match="an agent has configured: a"):
        _reload(server.control_address, a="/a")


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ({"model": ""}, "model_name is empty"),
        ({"base_path": "relative"}, "must be an absolute path"),
        ({"version": -1}, "must be positive"),
    ],
)
def test_a_plan_without_sense_is_refused(server: ModelServer, plan: dict[str, Any], problem: str) -> None:
    with pytest.raises(grpc.RpcError, match=problem) as caught:
        _configure(server, plan.get("model", "m"), plan.get("version", 1), base_path=plan.get("base_path", "/models"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_only_folders_below_a_root_are_taken(start_server: Callable[..., ModelServer], tmp_path: Path) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "link").symlink_to("/etc")
    server = start_server(model_roots=[str(tmp_path / "models")])
    _configure(server, "m", 1, base_path=str(tmp_path / "models" / "m"))
    _wait(server, "m", 1)
    for path in ("/etc", str(tmp_path / "models" / "link"), str(tmp_path / "models" / ".." / "x")):
        with pytest.raises(grpc.RpcError, match="is not below a --model-root"):
            _configure(server, "m", 1, base_path=path)
        with pytest.raises(grpc.RpcError, match="is not below a --model-root"):
            _reload(server.control_address, x=path)


def test_a_control_port_that_others_reach_needs_roots(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model-root.*--control-host 0.0.0.0"):
        ModelServer(ServerConfig(control_host="0.0.0.0"))
    ModelServer(ServerConfig(control_host="0.0.0.0", model_roots=[str(tmp_path)]))
    with pytest.raises(UserError, match="--base-path=/etc"):
        ModelServer(ServerConfig(base_path="/etc", model_roots=[str(tmp_path)]))


def test_the_prediction_port_takes_no_configuration(server: ModelServer) -> None:
    _configure(server, "a", 1)
    _wait(server, "a", 1)
    with pytest.raises(grpc.RpcError) as caught:
        _reload(server.address)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/millrace.ServingControl/Configure")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.available("a") == [1]
    assert _status(server.address, "a") == _status(server.control_address, "a")


def test_methods_of_the_api_that_are_not_built_say_so(server: ModelServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for method, request in [
            (stub.Classify, classification_pb2.ClassificationRequest()),
            (stub.Regress, regression_pb2.RegressionRequest()),
            (stub.MultiInference, inference_pb2.MultiInferenceRequest()),
        ]:
            with pytest.raises(grpc.RpcError, match="is not served on this port") as caught:
                method(request, timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stale_version_is_told_by_health_status_and_state(server: ModelServer, loaders: FakeLoaders) -> None:
    assert server.problem() == "no version of m is loaded"
    _configure(server, "m", 1)
    _wait(server, "m", 1)
    assert server.problem() is None
    loaders.of(1).fresh = Freshness(61_000, 500)
    reason = "STALE: its newest event is 61 s old, its newest delta 0 s; --max-staleness is 60 s"
    assert server.problem() == f"m:1 {reason}"
    assert _status(server.address, "m") == [(State.AVAILABLE, reason, 0)]
    loaders.of(1).fresh = Freshness(-1, 61_000)
    assert "its newest delta 61 s" in str(server.problem())
    loaders.of(1).fresh = Freshness(1_000, 500)
    _configure(server, "other", 2)
    _wait(server, "other", 2)
    loaders.of(2).fresh = Freshness(10**6, 500)
    assert server.problem() is None
    assert "STALE" in _status(server.address, "other")[0][1]


def test_without_a_limit_no_version_is_stale(start_server: Callable[..., ModelServer], loaders: FakeLoaders) -> None:
    server = start_server(model_name="m")
    assert server.problem() == "no version of m is loaded"
    _configure(server, "m", 1)
    _wait(server, "m", 1)
    loaders.of(1).fresh = Freshness(10**9, 10**9)
    assert server.problem() is None


def test_requests_beyond_those_that_may_wait_are_refused(
    start_server: Callable[..., ModelServer], loaders: FakeLoaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(request_threads=1, max_requests=2)
    entered, gate = threading.Semaphore(0), threading.Event()

    def slow(name: str) -> list[Any]:
        entered.release()
        gate.wait(_SECONDS)
        return []

    monkeypatch.setattr(server._manager, "statuses", slow)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "m"
    with grpc.insecure_channel(server.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        first = stub.GetModelStatus.future(request, timeout=_SECONDS)
        assert entered.acquire(timeout=_SECONDS)
        calls = [stub.GetModelStatus.future(request, timeout=_SECONDS) for _ in range(5)]
        wait_until(lambda: sum(call.done() for call in calls) == 4, _SECONDS, "four refusals", 0.005)
        gate.set()
        codes = sorted(call.code().name for call in [first, *calls])
    assert codes == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 4
