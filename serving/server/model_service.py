"""TF Serving's ModelService: the status of a model on both ports, the list of models on the control port alone."""

import os

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from millrace.serving.server.errors import InvalidRequestError, NotFoundError
from millrace.serving.server.model_roots import ModelRoots
from millrace.serving.server.model_source import All, DirectorySource, Latest, ModelConfig, Specific
from millrace.serving.server.staleness import Staleness
from millrace.serving.server.version_manager import VersionManager

# What GetModelStatus reports as error_code for a version that could not be loaded.
_LOAD_FAILED = grpc.StatusCode.FAILED_PRECONDITION.value[0]


class StatusService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus, which everybody may ask. A stale version is AVAILABLE and has an `error_message` with code OK."""

    def __init__(self, manager: VersionManager, source: DirectorySource, staleness: Staleness) -> None:
        self._manager = manager
        self._source = source
        self._staleness = staleness

    def GetModelStatus(  # noqa: N802 (the name is the API's)
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        spec = request.model_spec
        wanted = wanted_version(spec, self._source)
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in self._manager.statuses(spec.name):
            if wanted in (None, status.version):
                row = response.model_version_status.add(version=status.version, state=int(status.state))
                if status.error:
                    row.status.error_code, row.status.error_message = _LOAD_FAILED, status.error
                elif reason := self._staleness.reason(status):
                    row.status.error_message = reason
        if wanted is not None and not response.model_version_status:
            raise NotFoundError(f"version {wanted} of model '{spec.name}' is unknown")
        return response


class ModelService(StatusService):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(
        self, manager: VersionManager, source: DirectorySource, staleness: Staleness, roots: ModelRoots
    ) -> None:
        super().__init__(manager, source, staleness)
        self._roots = roots

    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        """Replaces the list of models; returns at once, GetModelStatus tells how loading goes.

        Models that agents have configured stay as they are.
        """
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidRequestError("config: only model_config_list is supported")
        configs = [_model_config(config) for config in request.config.model_config_list.config]
        by_name = {config.name: config for config in configs}
        if len(by_name) != len(configs):
            raise InvalidRequestError("model_config_list: a model is listed twice")
        for config in configs:
            check_base_path(config.name, config.base_path, self._roots)
        self._source.configure(by_name)
        return model_management_pb2.ReloadConfigResponse()


def wanted_version(spec: model_pb2.ModelSpec, source: DirectorySource) -> int | None:
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


def check_base_path(model: str, base_path: str, roots: ModelRoots) -> None:
    """Raises InvalidRequestError unless models may be loaded from this folder."""
    if not os.path.isabs(base_path):
        raise InvalidRequestError(f"model '{model}': base_path '{base_path}' must be an absolute path")
    if problem := roots.problem(base_path):
        raise InvalidRequestError(f"model '{model}': base_path {problem}")


def _model_config(config: model_server_config_pb2.ModelConfig) -> ModelConfig:
    if not config.name:
        raise InvalidRequestError("model_config_list: a model has no name")
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
