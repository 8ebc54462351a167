"""TF Serving's PredictionService: Predict and GetModelMetadata; its other methods answer UNIMPLEMENTED."""

from collections.abc import Callable

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from millrace.serving.server import tensors
from millrace.serving.server.errors import InvalidRequestError
from millrace.serving.server.servable import ServableHandle
from millrace.serving.server.tensors import RequestLimits

_SIGNATURE_DEF = "signature_def"


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata over whatever version `acquire` gives.

    Args:
      limits: what a request may ask for; checked before memory is taken for it.
    """

    def __init__(self, acquire: Callable[[model_pb2.ModelSpec], ServableHandle], limits: RequestLimits) -> None:
        self._acquire = acquire
        self._limits = limits

    def Predict(  # noqa: N802 (the name is the API's)
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        signature = request.model_spec.signature_name
        handle = self._acquire(request.model_spec)
        with handle as servable:
            inputs = tensors.check_inputs(request.inputs, servable.inputs(signature), self._limits)
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


def _name_model(spec: model_pb2.ModelSpec, handle: ServableHandle, signature: str) -> None:
    spec.name, spec.signature_name = handle.id.name, signature
    spec.version.value = handle.id.version
