"""A client of the model server: NumPy arrays in, NumPy arrays out."""

from collections.abc import Iterable, Mapping
from types import TracebackType

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from millrace.serving.server import tensors

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# A server that restarts is asked again within a second, not after gRPC's default of up to two minutes.
_RECONNECT_MS = 1000


class PredictClient:
    """Asks one server about one model; safe for use by many threads.

    Calls raise `grpc.RpcError`, whose `code()` and `details()` say what is wrong.

    Args:
      address: `host:port`.
      model: model name.
      timeout: seconds a call may take.
    """

    def __init__(self, address: str, model: str, timeout: float = 5.0) -> None:
        self._model = model
        self._timeout = timeout
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def predict(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Iterable[str] = (),
        version: int | None = None,
        signature: str = "",
    ) -> dict[str, np.ndarray]:
        """Outputs by name, all of them unless `outputs` names some."""
        return self.predict_with_version(inputs, outputs, version, signature)[0]

    def predict_with_version(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Iterable[str] = (),
        version: int | None = None,
        signature: str = "",
    ) -> tuple[dict[str, np.ndarray], int]:
        """As `predict`, and the version that answered."""
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name = self._model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        for name, array in inputs.items():
            tensors.fill(request.inputs[name], np.asarray(array))
        response = self._stub.Predict(request, timeout=self._timeout)
        values = {name: tensors.to_array(name, proto) for name, proto in response.outputs.items()}
        return values, int(response.model_spec.version.value)

    def signatures(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """SignatureDefs of the version that answers now, by name."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model
        response = self._stub.GetModelMetadata(request, timeout=self._timeout)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(definitions)
        return dict(definitions.signature_def)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "PredictClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
