"""A server with real exports and TF Serving's published stubs, in this process."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.serving.client.predict_client import PredictClient
from millrace.serving.client.shell_predict import PredictOptions, predict_once
from millrace.serving.server.model_server import ModelServer, ServerConfig
from tests.fakes.exports import MODEL, write_export

_SECONDS = 30.0
_INPUTS = {
    "user_id": np.array([1, 2], np.int64),
    "item_id": np.array([3, 4], np.int64),
    "context.device": np.array([b"phone", b""], object),
}


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 (bias 0.25), 2 (0.5)."""
    base = tmp_path_factory.mktemp("exports")
    write_export(base, 1, bias=0.25)
    write_export(base, 2, bias=0.5)
    return base


@pytest.fixture(scope="module")
def server(base_path: Path) -> Iterator[ModelServer]:
    """Follows `base_path`; version 2 is loaded."""
    server = ModelServer(ServerConfig(model_name=MODEL, base_path=str(base_path), poll_seconds=0.05))
    server.start()
    wait_until(lambda: server.available(MODEL) == [2], _SECONDS, "version 2")
    yield server
    server.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[..., ModelServer]]:
    started = []

    def start(**settings: object) -> ModelServer:
        server = ModelServer(ServerConfig(**{"model_name": MODEL, "poll_seconds": 0.05, **settings}))  # type: ignore[arg-type]
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def stub(server: ModelServer) -> Iterator[prediction_service_pb2_grpc.PredictionServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _request(inputs: dict[str, object] | None = None, model: str = MODEL) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, value in (inputs if inputs is not None else _INPUTS).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_a_stock_client_gets_predictions(stub: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    response = stub.Predict(_request(), timeout=5)
    assert tf.make_ndarray(response.outputs["click"]).tolist() == [0.5, 0.5]
    assert response.model_spec.version.value == 2
    assert (response.model_spec.name, response.model_spec.signature_name) == (MODEL, "serving_default")


def test_the_output_filter_picks_outputs(stub: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    request = _request()
    request.output_filter.append("version")
    assert set(stub.Predict(request, timeout=5).outputs) == {"version"}
    request.output_filter.append("like")
    _assert_status(
        stub, request, grpc.StatusCode.INVALID_ARGUMENT, "unknown output 'like'; outputs: 'click', 'version'"
    )


def _assert_status(
    stub: prediction_service_pb2_grpc.PredictionServiceStub,
    request: predict_pb2.PredictRequest,
    code: grpc.StatusCode,
    details: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=5)
    assert (caught.value.code(), details in caught.value.details()) == (code, True), caught.value.details()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"user": [1]}, "unknown input 'user'; inputs: 'context.device', 'item_id', 'user_id'"),
        ({"user_id": None}, "missing input 'user_id'"),
        ({"user_id": np.array([1.5, 2.5])}, "input 'user_id': dtype float64, must be int64"),
        ({"user_id": np.array([1, 2], np.int32)}, "input 'user_id': dtype int32, must be int64"),
        ({"user_id": np.array([[1], [2]])}, "input 'user_id': shape [2, 1], must be [any]"),
        ({"context.device": np.array([1, 2])}, "input 'context.device': dtype int64, must be string"),
        (
            {"user_id": np.array([1, 2, 3])},
            "the model refuses inputs with different numbers of rows: context.device 2, item_id 2, user_id 3",
        ),
    ],
)
def test_a_wrong_input_is_named_with_the_choices(
    stub: prediction_service_pb2_grpc.PredictionServiceStub, change: dict[str, object], problem: str
) -> None:
    inputs = {name: value for name, value in (_INPUTS | change).items() if value is not None}
    _assert_status(stub, _request(inputs), grpc.StatusCode.INVALID_ARGUMENT, problem)


def test_tensors_whose_shape_and_content_disagree_are_refused(
    stub: prediction_service_pb2_grpc.PredictionServiceStub,
) -> None:
    request = _request()
    request.inputs["user_id"].tensor_content = b"\0" * 3
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "input 'user_id'")
    request = _request()
    request.inputs["user_id"].Clear()
    request.inputs["user_id"].dtype = tf.int64.as_datatype_enum
    request.inputs["user_id"].int64_val.append(1)
    request.inputs["user_id"].tensor_shape.dim.add(size=1 << 40)
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "rows; at most 100000 (--max-batch-rows)")
    request.inputs["user_id"].tensor_shape.dim[0].size = 5000
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "1 values for 5000 elements")
    request.inputs["user_id"].tensor_shape.dim.add(size=1 << 40)
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "elements; at most 8388608")
    for _ in range(100):
        request.inputs["user_id"].tensor_shape.dim.add(size=1 << 62)
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "102 dimensions; at most 32")
    del request.inputs["user_id"].tensor_shape.dim[1:]
    request.inputs["user_id"].tensor_shape.dim[0].size = -1
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "must be given in full")


def test_unknown_models_versions_labels_and_signatures_are_named(
    stub: prediction_service_pb2_grpc.PredictionServiceStub,
) -> None:
    _assert_status(stub, _request(model="other"), grpc.StatusCode.NOT_FOUND, "model 'other' is not served here")
    request = _request()
    request.model_spec.version.value = 77
    _assert_status(stub, request, grpc.StatusCode.NOT_FOUND, "no loaded version 77; versions: 2 AVAILABLE")
    request.model_spec.version_label = "canary"
    _assert_status(stub, request, grpc.StatusCode.NOT_FOUND, "version_label 'canary'")
    request = _request()
    request.model_spec.signature_name = "regress"
    _assert_status(stub, request, grpc.StatusCode.INVALID_ARGUMENT, "'regress' is unknown; signatures: serving_default")


def test_an_empty_batch_is_answered(stub: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    empty = {"user_id": np.zeros(0, np.int64), "item_id": np.zeros(0, np.int64), "context.device": np.zeros(0, "S1")}
    response = stub.Predict(_request(empty), timeout=5)
    assert tf.make_ndarray(response.outputs["version"]).shape == (0,)


def test_metadata_holds_the_signatures(stub: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = MODEL
    definitions = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request, timeout=5).metadata["signature_def"].Unpack(definitions)
    assert set(definitions.signature_def) == {"serving_default"}
    assert set(definitions.signature_def["serving_default"].inputs) == set(_INPUTS)
    with pytest.raises(grpc.RpcError, match="unknown metadata_field 'cost'"):
        stub.GetModelMetadata(
            get_model_metadata_pb2.GetModelMetadataRequest(model_spec=request.model_spec, metadata_field=["cost"])
        )


def test_the_shell_repeats_single_values_and_takes_types_from_the_model(server: ModelServer) -> None:
    answer = predict_once(PredictOptions(server.address, MODEL, ("user_id=1", "item_id=3,9,2", "context.device=phone")))
    assert answer.to_json() == {
        "model": MODEL,
        "version": 2,
        "outputs": {"click": [0.5, 0.5, 0.5], "version": [2, 2, 2]},
    }
    assert answer.to_table().splitlines()[1].split() == ["user_id", "item_id", "context.device", "click", "version"]


@pytest.mark.parametrize(
    ("inputs", "mentions"),
    [
        (("user_id=1", "item_id=3"), "context.device: is missing"),
        (("user_id=1", "item_id=3", "context.device=a", "x=1"), "x: is no input of the model"),
        (("user_id=one", "item_id=3", "context.device=a"), "user_id=one: has the wrong type; give int64"),
        (("user_id=1,2", "item_id=3,4,5", "context.device=a"), "user_id: has 2 values; give 1 value or 3"),
        (("user_id", "item_id=3"), "user_id: is not NAME=VALUE"),
        (("user_id=1", "user_id=3"), "user_id=3: is given twice"),
    ],
)
def test_the_shell_says_what_is_wrong(server: ModelServer, inputs: tuple[str, ...], mentions: str) -> None:
    with pytest.raises(UserError) as caught:
        predict_once(PredictOptions(server.address, MODEL, inputs))
    assert mentions in str(caught.value)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="--server=127.0.0.1:1: no model server answers"):
        predict_once(PredictOptions("127.0.0.1:1", MODEL, ("a=1",)))


def test_before_the_first_version_the_model_is_unavailable(start_server: Callable[..., ModelServer]) -> None:
    server = start_server()
    with PredictClient(server.address, MODEL) as client, pytest.raises(grpc.RpcError) as caught:
        client.predict(_INPUTS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "not loaded yet" in caught.value.details()


def test_a_port_in_use_is_an_error_that_names_it(server: ModelServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port={port}"):
        ModelServer(ServerConfig(port=port)).start()


def _reload(address: str, base_path: Path, versions: list[int], labels: dict[str, int] | None = None) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add(name=MODEL, base_path=str(base_path))
    config.model_version_policy.specific.versions.extend(versions)
    for label, version in (labels or {}).items():
        config.version_labels[label] = version
    with grpc.insecure_channel(address) as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=5)


def _states(address: str) -> dict[int, tuple[str, str]]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    with grpc.insecure_channel(address) as channel:
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=5)
    state_name = get_model_status_pb2.ModelVersionStatus.State.Name
    return {row.version: (state_name(row.state), row.status.error_message) for row in response.model_version_status}


def test_a_configuration_names_versions_and_labels(start_server: Callable[..., ModelServer], base_path: Path) -> None:
    server = start_server()
    _reload(server.control_address, base_path, [1, 2], {"stable": 1})
    wait_until(lambda: server.available(MODEL) == [2, 1], _SECONDS, "both versions")
    with grpc.insecure_channel(server.address) as channel:
        request = _request()
        request.model_spec.version_label = "stable"
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=5)
    assert response.model_spec.version.value == 1
    _reload(server.control_address, base_path, [1])
    wait_until(lambda: _states(server.control_address).get(2, ("END", ""))[0] == "END", _SECONDS, "version 2 gone")
    assert server.available(MODEL) == [1]


def test_a_configuration_without_sense_is_refused(start_server: Callable[..., ModelServer]) -> None:
    server = start_server()
    with pytest.raises(grpc.RpcError, match="must be an absolute path"):
        _reload(server.control_address, Path("relative"), [1])
    with pytest.raises(grpc.RpcError, match="specific.versions is empty"):
        _reload(server.control_address, Path("/models"), [])


def test_swapping_versions_fails_no_request(start_server: Callable[..., ModelServer], base_path: Path) -> None:
    server = start_server()
    _reload(server.control_address, base_path, [1])
    wait_until(lambda: server.available(MODEL) == [1], _SECONDS, "version 1")
    stop, errors, biases = threading.Event(), [], set()

    def ask() -> None:
        with PredictClient(server.address, MODEL) as client:
            while not stop.is_set():
                try:
                    outputs, version = client.predict_with_version(_INPUTS)
                    biases.add((version, float(outputs["click"][0])))
                except grpc.RpcError as error:
                    errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 1, 2):
        _reload(server.control_address, base_path, [version])
        wait_until(lambda version=version: server.available(MODEL) == [version], _SECONDS, f"version {version}")  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(_SECONDS)
    assert errors == []
    assert biases == {(1, 0.25), (2, 0.5)}


def _flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda export: _flip_last_byte(export / "saved_model.pb"), "saved_model.pb: checksum differs"),
        (lambda export: (export / "variables/variables.index").unlink(), "variables.index: cannot be read"),
        (lambda export: (export / "saved_model.pb").write_bytes(b"\x08"), "saved_model.pb: 1 bytes, the manifest says"),
        (lambda export: (export / "assets.extra/millrace.json").unlink(), "millrace.json: cannot be read"),
        (
            lambda export: (export / "assets.extra/millrace.json").write_text("{"),
            "millrace.json: not an export manifest",
        ),
        (
            lambda export: (export / "assets.extra/millrace.json").write_text(
                (export / "assets.extra/millrace.json").read_text().replace('"version": 2', '"version": 9')
            ),
            "holds tiny:9, not tiny:2",
        ),
    ],
    ids=["corrupt", "missing", "torn", "unfinished", "torn manifest", "another version"],
)
def test_a_damaged_export_is_never_served_and_the_one_before_is(
    start_server: Callable[..., ModelServer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    named: str,
) -> None:
    write_export(tmp_path, 1, bias=0.25)
    damage(write_export(tmp_path, 2, bias=0.5))
    server = start_server(base_path=str(tmp_path))
    wait_until(lambda: server.available(MODEL) == [1], _SECONDS, "version 1")
    state, error = _states(server.control_address)[2]
    assert state == "END"
    assert named in error
    assert any(named in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_the_manifest_cannot_point_out_of_the_export(start_server: Callable[..., ModelServer], tmp_path: Path) -> None:
    export = write_export(tmp_path, 1)
    manifest_path = export / "assets.extra" / "millrace.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["files"].append({"path": "../../secret", "size_bytes": 1, "crc32c": 0})
    manifest_path.write_text(json.dumps(manifest))
    server = start_server()
    _reload(server.control_address, tmp_path, [1])
    wait_until(lambda: _states(server.control_address).get(1, ("", ""))[0] == "END", _SECONDS, "refused")
    assert "points out of the export" in _states(server.control_address)[1][1]
