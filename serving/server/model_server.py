"""The model server: TF Serving's gRPC API over the version manager, and a second port by which it is controlled."""

import ipaddress
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.serving.server.control_service import ControlService
from millrace.serving.server.errors import NotFoundError, StatusInterceptor
from millrace.serving.server.model_roots import ModelRoots
from millrace.serving.server.model_service import ModelService, StatusService, wanted_version
from millrace.serving.server.model_source import DirectorySource, ModelConfig
from millrace.serving.server.prediction_service import PredictionService
from millrace.serving.server.saved_model_loader import SavedModelLoader
from millrace.serving.server.servable import LoaderFactory, ServableHandle, ServableId, State, VersionSource
from millrace.serving.server.staleness import Staleness
from millrace.serving.server.tensors import RequestLimits
from millrace.serving.server.version_manager import VersionManager, VersionStatus

_STOP_SECONDS = 5.0
# An agent asks four times per second, and people now and then.
_CONTROL_THREADS = 2
_CONTROL_CALLS = 64

_VERSION = telemetry.gauge("model_version", "Newest AVAILABLE version of a model, 0 for none.", ("model",))


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server process.

    Args:
      host: interface to bind.
      port: TCP port of predictions, 0 for a free one.
      control_host, control_port: the same for the port by which agents and operators say what to load.
      model_name: a model that is known from the start, loaded or not.
      base_path: folder with its exports to follow; None waits for a plan.
      model_roots: folders below which everything that is loaded must lie; none: any folder, if `control_host` is a
        loopback address.
      kafka: where deltas come from; None serves exports as they are.
      max_staleness: seconds; an older version makes the server unhealthy. None: no version is too old.
      poll_seconds: how often folders are looked at for new versions.
      request_threads: requests that are worked on at once.
      max_requests: requests that are worked on or wait for a thread; further ones get RESOURCE_EXHAUSTED.
      max_message_bytes: of one request and of one response.
      limits: what one request may ask for.
    """

    host: str = "127.0.0.1"
    port: int = 0
    control_host: str = "127.0.0.1"
    control_port: int = 0
    model_name: str = ""
    base_path: str | None = None
    model_roots: Sequence[str] = ()
    kafka: KafkaConnection | None = None
    max_staleness: float | None = None
    poll_seconds: float = 1.0
    request_threads: int = 4
    max_requests: int = 512
    max_message_bytes: int = 32 * 1024 * 1024
    limits: RequestLimits = RequestLimits()


class ModelServer:
    """Builds, starts and stops everything in a server process.

    Args:
      make_loader: builds loaders of versions; SavedModels unless told otherwise.

    Raises:
      UserError: the control port is open to other hosts and nothing says where models may lie.
    """

    def __init__(self, config: ServerConfig, make_loader: LoaderFactory | None = None) -> None:
        _check_roots(config)
        self._config = config
        self._roots = ModelRoots(config.model_roots)
        self._staleness = Staleness(config.max_staleness)
        self._manager = VersionManager(make_loader or self._saved_model, self._on_change)
        self._source = DirectorySource(self._manager, self._has_failed, config.poll_seconds)
        self._server = self._prediction_server()
        self._control = self._control_server()
        self.address = self.control_address = ""

    def _prediction_server(self) -> grpc.Server:
        config = self._config
        # A call that waits for a thread holds no message yet, so messages in memory are at most `request_threads`.
        server = _grpc_server(config.request_threads, config.max_requests, config.max_message_bytes, "requests")
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._acquire, config.limits), server
        )
        status = StatusService(self._manager, self._source, self._staleness)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(status, server)
        return server

    def _control_server(self) -> grpc.Server:
        parts = (self._manager, self._source, self._staleness, self._roots)
        server = _grpc_server(_CONTROL_THREADS, _CONTROL_CALLS, self._config.max_message_bytes, "control")
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(*parts), server)
        server.add_generic_rpc_handlers((ControlService(*parts).handler(),))
        return server

    def start(self) -> None:
        """Binds and serves; UserError when a port is taken."""
        config = self._config
        self.control_address = _bind(self._control, "--control-port", config.control_host, config.control_port)
        self.address = _bind(self._server, "--port", config.host, config.port)
        if config.model_name:
            self._manager.aspire(config.model_name, {})
        if config.base_path is not None:
            self._source.configure({config.model_name: ModelConfig(config.model_name, config.base_path)})
        self._source.start()
        self._server.start()
        self._control.start()

    def stop(self) -> None:
        """Lets requests in flight end, then unloads everything."""
        self._source.close()
        stopping = [self._control.stop(_STOP_SECONDS), self._server.stop(_STOP_SECONDS)]
        for stopped in stopping:
            stopped.wait()
        self._manager.close()

    def available(self, model: str) -> list[int]:
        """Versions of `model` that answer requests."""
        return [status.version for status in self._statuses(model) if status.state is State.AVAILABLE]

    def problem(self) -> str | None:
        """What is wrong with `model_name`, for `MetricsEndpoint`: no version is loaded, or the newest one is stale.

        Of other models only metrics and agents tell: a server stays in service for those that it can answer.
        """
        model = self._config.model_name
        statuses = [status for status in self._statuses(model) if status.state is State.AVAILABLE]
        if not statuses:
            return f"no version of {model} is loaded"
        reason = self._staleness.reason(statuses[0])
        return f"{model}:{statuses[0].version} {reason}" if reason else None

    def _saved_model(self, name: str, version: int, source: VersionSource) -> SavedModelLoader:
        return SavedModelLoader(name, version, source, self._config.kafka, roots=self._roots)

    def _acquire(self, spec: model_pb2.ModelSpec) -> ServableHandle:
        return self._manager.acquire(spec.name, wanted_version(spec, self._source))

    def _has_failed(self, name: str, version: int) -> bool:
        return any(status.version == version and status.error for status in self._statuses(name))

    def _statuses(self, name: str) -> list[VersionStatus]:
        try:
            return self._manager.statuses(name)
        except NotFoundError:
            return []

    def _on_change(self, servable_id: ServableId, state: State, error: str) -> None:
        _VERSION.labels(servable_id.name).set(max(self.available(servable_id.name), default=0))


def _check_roots(config: ServerConfig) -> None:
    if not config.model_roots and not _is_loopback(config.control_host):
        raise UserError(
            "--model-root",
            "",
            f"is missing, and --control-host {config.control_host} lets other hosts say what to load",
            "name the folders that models may come from, or keep the control port on 127.0.0.1",
        )
    if config.base_path is not None and (problem := ModelRoots(config.model_roots).problem(config.base_path)):
        raise UserError("--base-path", config.base_path, problem, "name a folder below one of them")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _grpc_server(threads: int, max_calls: int, max_message_bytes: int, name: str) -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix=name),
        interceptors=[StatusInterceptor()],
        maximum_concurrent_rpcs=max_calls,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Without this a second server on the same port starts, and takes half of the requests.
            ("grpc.so_reuseport", 0),
        ],
    )


def _bind(server: grpc.Server, flag: str, host: str, port: int) -> str:
    try:
        return f"{host}:{server.add_insecure_port(f'{host}:{port}')}"
    except RuntimeError as error:
        raise UserError(
            flag, port, f"{host}:{port} cannot be bound", "choose another port, or 0; or an address of this machine"
        ) from error


def limit_tensorflow_threads(count: int) -> None:
    """Before TensorFlow's first op: the server shares its cores with Python's request threads."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)
