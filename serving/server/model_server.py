"""The model server: TF Serving's gRPC API over the version manager."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.serving.server import tensors
from millrace.serving.server.errors import InvalidRequestError, NotFoundError, StatusInterceptor
from millrace.serving.server.model_source import All, DirectorySource, Latest, ModelConfig, Specific
from millrace.serving.server.saved_model_loader import SavedModelLoader
from millrace.serving.server.servable import LoaderFactory, ServableHandle, ServableId, State
from millrace.serving.server.version_manager import VersionManager, VersionStatus

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
_STOP_SECONDS = 5.0
_SIGNATURE_DEF = "signature_def"
# What GetModelStatus reports as error_code for a version that could not be loaded.
_LOAD_FAILED = grpc.StatusCode.FAILED_PRECONDITION.value[0]

_VERSION = telemetry.gauge("model_version", "Newest AVAILABLE version of a model, 0 for none.", ("model",))


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server process.

    Args:
      host: interface to bind.
      port: TCP port, 0 for a free one.
      model_name: a model that is known from the start, loaded or not.
      base_path: folder with its exports to follow; None waits for HandleReloadConfigRequest.
      kafka: where deltas come from; None serves exports as they are.
      poll_seconds: how often folders are looked at for new versions.
      request_threads: requests that are worked on at once.
      tensorflow_threads: threads inside one call of a model, and between its ops.
    """

    host: str = "127.0.0.1"
    port: int = 0
    model_name: str = ""
    base_path: str | None = None
    kafka: KafkaConnection | None = None
    poll_seconds: float = 1.0
    request_threads: int = 4
    tensorflow_threads: int = 2


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata over whatever version `acquire` gives."""

    def __init__(self, acquire: Callable[[model_pb2.ModelSpec], ServableHandle]) -> None:
        self._acquire = acquire

    def Predict(  # noqa: N802 (the name is the API's)
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        signature = request.model_spec.signature_name
        handle = self._acquire(request.model_spec)
        with handle as servable:
            inputs = tensors.check_inputs(request.inputs, servable.inputs(signature))
            outputs = servable.run(signature, inputs)
        tensors.check_known("output", request.output_filter, outputs)
        response = predict_pb2.PredictResponse()
        _name_model(response.model_spec, handle, signature or "serving_default")
        for name in request.output_filter or outputs:
            tensors.fill(response.outputs[name], outputs[name])
        return response

    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if not request.metadata_field:
            raise InvalidRequestError(f"metadata_field is empty; fields: '{_SIGNATURE_DEF}'")
        tensors.check_known("metadata_field", request.metadata_field, [_SIGNATURE_DEF])
        handle = self._acquire(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _name_model(response.model_spec, handle, "")
        with handle as servable:
            definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        response.metadata[_SIGNATURE_DEF].Pack(definitions)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, manager: VersionManager, source: DirectorySource) -> None:
        self._manager = manager
        self._source = source

    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        spec = request.model_spec
        wanted = _wanted_version(spec, self._source)
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in self._manager.statuses(spec.name):
            if wanted in (None, status.version):
                row = response.model_version_status.add(version=status.version, state=int(status.state))
                if status.error:
                    row.status.error_code, row.status.error_message = _LOAD_FAILED, status.error
        if wanted is not None and not response.model_version_status:
            raise NotFoundError(f"version {wanted} of model '{spec.name}' is unknown")
        return response

    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        """Replaces the list of models; returns at once, GetModelStatus tells how loading goes."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidRequestError("config: only model_config_list is supported")
        configs = [_model_config(config) for config in request.config.model_config_list.config]
        by_name = {config.name: config for config in configs}
        if len(by_name) != len(configs):
            raise InvalidRequestError("model_config_list: a model is listed twice")
        self._source.configure(by_name)
        return model_management_pb2.ReloadConfigResponse()


def _name_model(spec: model_pb2.ModelSpec, handle: ServableHandle, signature: str) -> None:
    spec.name, spec.signature_name = handle.id.name, signature
    spec.version.value = handle.id.version


def _wanted_version(spec: model_pb2.ModelSpec, source: DirectorySource) -> int | None:
    """The version that a request asks for by number or label; None for the newest."""
    choice = spec.WhichOneof("version_choice")
    if choice == "version":
        return int(spec.version.value)
    if choice == "version_label":
        version = source.label(spec.name, spec.version_label)
        if version is None:
            raise NotFoundError(f"version_label '{spec.version_label}' of model '{spec.name}' is unknown")
        return version
    return None


def _model_config(config: model_server_config_pb2.ModelConfig) -> ModelConfig:
    if not config.name:
        raise InvalidRequestError("model_config_list: a model has no name")
    if not os.path.isabs(config.base_path):
        raise InvalidRequestError(f"model '{config.name}': base_path '{config.base_path}' must be an absolute path")
    if config.model_platform not in ("", "tensorflow"):
        raise InvalidRequestError(
            f"model '{config.name}': model_platform '{config.model_platform}', must be 'tensorflow'"
        )
    policy = config.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    chosen: Latest | All | Specific = Latest(max(1, policy.latest.num_versions))
    if kind == "all":
        chosen = All()
    elif kind == "specific":
        if not policy.specific.versions:
            raise InvalidRequestError(f"model '{config.name}': specific.versions is empty")
        chosen = Specific(tuple(policy.specific.versions))
    return ModelConfig(config.name, config.base_path, chosen, dict(config.version_labels))


class ModelServer:
    """Builds, starts and stops everything in a server process.

    Args:
      make_loader: builds loaders of versions; SavedModels unless told otherwise.
    """

    def __init__(self, config: ServerConfig, make_loader: LoaderFactory | None = None) -> None:
        self._config = config
        self._manager = VersionManager(make_loader or self._saved_model, self._on_change)
        self._source = DirectorySource(self._manager, self._has_failed, config.poll_seconds)
        self._server = grpc.server(
            ThreadPoolExecutor(config.request_threads, thread_name_prefix="requests"),
            interceptors=[StatusInterceptor()],
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # Without this a second server on the same port starts, and takes half of the requests.
                ("grpc.so_reuseport", 0),
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._acquire), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self._manager, self._source), self._server
        )
        self.address = ""

    def start(self) -> None:
        """Binds and serves; UserError when the port is taken."""
        config = self._config
        try:
            port = self._server.add_insecure_port(f"{config.host}:{config.port}")
        except RuntimeError as error:
            raise UserError(
                "--port", config.port, f"{config.host}:{config.port} cannot be bound", "choose another port, or 0"
            ) from error
        self.address = f"{config.host}:{port}"
        if config.model_name:
            self._manager.aspire(config.model_name, {})
        if config.base_path is not None:
            self._source.configure({config.model_name: ModelConfig(config.model_name, config.base_path)})
        self._source.start()
        self._server.start()

    def stop(self) -> None:
        """Lets requests in flight end, then unloads everything."""
        self._source.close()
        self._server.stop(_STOP_SECONDS).wait()
        self._manager.close()

    def available(self, model: str) -> list[int]:
        """Versions of `model` that answer requests."""
        return [status.version for status in self._statuses(model) if status.state is State.AVAILABLE]

    def _saved_model(self, name: str, version: int, path: str) -> SavedModelLoader:
        return SavedModelLoader(name, version, path, self._config.kafka)

    def _acquire(self, spec: model_pb2.ModelSpec) -> ServableHandle:
        return self._manager.acquire(spec.name, _wanted_version(spec, self._source))

    def _has_failed(self, name: str, version: int) -> bool:
        return any(status.version == version and status.error for status in self._statuses(name))

    def _statuses(self, name: str) -> list[VersionStatus]:
        try:
            return self._manager.statuses(name)
        except NotFoundError:
            return []

    def _on_change(self, servable_id: ServableId, state: State, error: str) -> None:
        _VERSION.labels(servable_id.name).set(max(self.available(servable_id.name), default=0))


def limit_tensorflow_threads(count: int) -> None:
    """Before TensorFlow's first op: the server shares its cores with Python's request threads."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)
