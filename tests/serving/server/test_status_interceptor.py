"""What happens to calls before a servicer sees them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2

from millrace.serving.server.errors import InvalidRequestError, StatusInterceptor

_SECONDS = 30.0
_METHOD = "/test.Service/Predict"


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """To a server with one thread, which waits a quarter of a second for a message."""

    def predict(request: predict_pb2.PredictRequest, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        if not request.model_spec.name:
            raise InvalidRequestError("no model")
        return predict_pb2.PredictResponse(model_spec=request.model_spec)

    handler = grpc.unary_unary_rpc_method_handler(
        predict, predict_pb2.PredictRequest.FromString, predict_pb2.PredictResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[StatusInterceptor(0.25)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Predict": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None)


def _send(channel: grpc.Channel, data: bytes) -> predict_pb2.PredictResponse:
    call = channel.unary_unary(_METHOD, None, predict_pb2.PredictResponse.FromString)
    return call(data, timeout=_SECONDS)


def _request(name: str = "m") -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    return request.SerializeToString()


def test_a_call_whose_message_does_not_come_keeps_its_thread_from_nobody(channel: grpc.Channel) -> None:
    assert _send(channel, _request()).model_spec.name == "m"
    end = threading.Event()

    def nothing() -> Iterator[bytes]:
        end.wait()
        yield from ()

    silent = [channel.stream_unary(_METHOD).future(nothing(), timeout=10 * _SECONDS) for _ in range(3)]
    waiting = channel.unary_unary(_METHOD, None, predict_pb2.PredictResponse.FromString).future(_request("first"))
    assert waiting.result(timeout=_SECONDS).model_spec.name == "first"
    assert {call.code() for call in silent} == {grpc.StatusCode.CANCELLED}
    assert _send(channel, _request("second")).model_spec.name == "second"
    end.set()


@pytest.mark.parametrize(
    ("data", "details"),
    [(b"\xff\xff", "the message is no request of Predict"), (_request(""), "no model")],
)
def test_a_wrong_message_is_the_callers_fault(channel: grpc.Channel, data: bytes, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        _send(channel, data)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)  # type: ignore[attr-defined]


def test_a_call_without_a_message_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(_METHOD)(iter(()), timeout=_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
