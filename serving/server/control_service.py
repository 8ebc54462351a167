"""`/millrace.ServingControl/Configure`: an agent says what should be loaded of one model, and learns what is."""

import grpc

from millrace.protos import serving_control_pb2
from millrace.serving.server.errors import InvalidRequestError, NotFoundError
from millrace.serving.server.model_roots import ModelRoots
from millrace.serving.server.model_service import check_base_path
from millrace.serving.server.model_source import DirectorySource, ModelConfig, Specific
from millrace.serving.server.staleness import Staleness
from millrace.serving.server.version_manager import VersionManager

SERVICE = "millrace.ServingControl"


class ControlService:
    """Takes plans, each for one model: the agents of several models share a server.

    The same plan may be sent again and again: it changes nothing, and a version that was refused is tried again with
    growing pauses.
    """

    def __init__(
        self, manager: VersionManager, source: DirectorySource, staleness: Staleness, roots: ModelRoots
    ) -> None:
        self._manager = manager
        self._source = source
        self._staleness = staleness
        self._roots = roots

    def handler(self) -> grpc.GenericRpcHandler:
        """What `grpc.Server.add_generic_rpc_handlers` takes."""
        configure = grpc.unary_unary_rpc_method_handler(
            self.configure,
            request_deserializer=serving_control_pb2.ModelPlan.FromString,
            response_serializer=serving_control_pb2.ModelState.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Configure": configure})

    def configure(
        self, plan: serving_control_pb2.ModelPlan, context: grpc.ServicerContext
    ) -> serving_control_pb2.ModelState:
        """Follows `plan`; returns at once with the state so far."""
        if not plan.model_name:
            raise InvalidRequestError("model_name is empty")
        if any(version <= 0 for version in plan.versions):
            raise InvalidRequestError(f"model '{plan.model_name}': versions {list(plan.versions)} must be positive")
        if plan.versions:
            check_base_path(plan.model_name, plan.base_path, self._roots)
            as_of_ms = plan.as_of_ms if plan.is_held else None
            self._source.plan(
                ModelConfig(plan.model_name, plan.base_path, Specific(tuple(plan.versions)), as_of_ms=as_of_ms)
            )
        else:
            self._source.drop(plan.model_name)
        return self._state(plan.model_name)

    def _state(self, name: str) -> serving_control_pb2.ModelState:
        state = serving_control_pb2.ModelState(model_name=name)
        try:
            statuses = self._manager.statuses(name)
        except NotFoundError:
            return state
        for status in statuses:
            state.versions.add(
                version=status.version,
                state=int(status.state),
                error=status.error or self._staleness.reason(status) or "",
                model_age_ms=status.freshness.model_age_ms,
                delta_lag_ms=status.freshness.delta_lag_ms,
                resync_required=status.freshness.resync_required,
                is_stale=self._staleness.reason(status) is not None,
                is_held=status.is_held,
            )
        return state
