"""Tells a model server what to load, on its control port."""

import grpc

from millrace.protos.serving_control_pb2 import ModelPlan, ModelState
from millrace.serving.server.errors import ServerDownError

_METHOD = "/millrace.ServingControl/Configure"
_SECONDS = 5.0  # the server answers at once, but may be busy


class ServerControl:
    """The control port of one server.

    Args:
      address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        options = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._configure = self._channel.unary_unary(
            _METHOD, request_serializer=ModelPlan.SerializeToString, response_deserializer=ModelState.FromString
        )

    def configure(self, plan: ModelPlan) -> ModelState:
        """Makes the versions of `plan` all that the server should have of the model; without any it unloads the model.

        Returns: what the server says of its versions.
        Raises: ServerDownError when it does not answer or refuses.
        """
        try:
            state: ModelState = self._configure(plan, timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                problem = "it is no control port; give --control as the log of `millrace serve` names it"
                raise ServerDownError(f"{self._address}: {problem}") from error
            raise ServerDownError(f"{self._address}: {error.code().name} {error.details()}") from error
        return state

    def close(self) -> None:
        self._channel.close()
