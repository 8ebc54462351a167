"""Drives a model server through TF Serving's ModelService."""

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.serving.server.errors import ServerDownError
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus

_STATUS_SECONDS = 2.0
# A stock TF Serving answers a reload only when the new version is loaded.
_RELOAD_SECONDS = 60.0


class ServerControl:
    """Status and configuration of one server for one model.

    Args:
      address: `host:port`.
    """

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._model = model
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def statuses(self) -> list[VersionStatus]:
        """Versions of the model, [] when the server does not know it; ServerDownError when it does not answer."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model
        try:
            response = self._stub.GetModelStatus(request, timeout=_STATUS_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise self._down(error) from error
        return [
            VersionStatus(row.version, State(row.state), row.status.error_message)
            for row in response.model_version_status
            if row.state in set(State)
        ]

    def configure(self, plan: ModelPlan) -> ModelState:
        """Makes the versions of `plan` all that the server should have of the model; without any it unloads the model.

        Returns what the server says of its versions.
        """
        request = model_management_pb2.ReloadConfigRequest()
        models = request.config.model_config_list
        models.SetInParent()
        if plan.versions:
            policy = model_server_config_pb2.ModelConfig()
            policy.model_version_policy.specific.versions.extend(plan.versions)
            models.config.add(
                name=self._model,
                base_path=plan.base_path,
                model_platform="tensorflow",
                model_version_policy=policy.model_version_policy,
            )
        try:
            response = self._stub.HandleReloadConfigRequest(request, timeout=_RELOAD_SECONDS)
        except grpc.RpcError as error:
            raise self._down(error) from error
        if response.status.error_code:
            raise ServerDownError(f"{self._address} refuses the configuration: {response.status.error_message}")
        return ModelState()

    def close(self) -> None:
        self._channel.close()

    def _down(self, error: grpc.RpcError) -> ServerDownError:
        return ServerDownError(f"{self._address}: {error.code().name} {error.details()}")
