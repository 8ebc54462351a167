"""Errors that know their gRPC status, and the interceptor that converts, counts and times."""

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from millrace.runtime import telemetry

_LOG = logging.getLogger(__name__)
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_PREDICT = "Predict"

_PREDICT_REQUESTS = telemetry.counter("predict_requests", "Predict calls by gRPC status.", ("status",))
_PREDICT_SECONDS = telemetry.histogram("predict_latency_seconds", "Time in the server of a Predict call.", (), _BUCKETS)
_CALLS = telemetry.counter("serving_calls", "Calls of the other methods by gRPC status.", ("method", "status"))


class ServingError(Exception):
    """A request that cannot be answered; `code` is its gRPC status."""

    code = grpc.StatusCode.INTERNAL


class NotFoundError(ServingError):
    code = grpc.StatusCode.NOT_FOUND


class InvalidRequestError(ServingError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class UnavailableError(ServingError):
    code = grpc.StatusCode.UNAVAILABLE


class ExportError(Exception):
    """An export that must not be loaded; the message names the file."""


class ServerDownError(ConnectionError):
    """The server does not answer, or refuses what it is told; the message says which."""


class StatusInterceptor(grpc.ServerInterceptor):
    """Turns exceptions of unary methods into statuses, and records latency and counts."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
        )


def _guarded(behaviour: Callable[[Any, grpc.ServicerContext], Any], method: str) -> Callable[..., Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        begin = time.perf_counter()
        try:
            response = behaviour(request, context)
        except ServingError as error:
            _record(method, error.code, begin)
            context.abort(error.code, str(error))
        except NotImplementedError:  # what a servicer that gRPC generated raises for a method that is not overridden
            _record(method, grpc.StatusCode.UNIMPLEMENTED, begin)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served on this port")
        except Exception:
            _LOG.exception("%s failed", method)
            _record(method, grpc.StatusCode.INTERNAL, begin)
            context.abort(grpc.StatusCode.INTERNAL, f"{method} failed inside the server; its log has the cause")
        _record(method, grpc.StatusCode.OK, begin)
        return response

    return call


def _record(method: str, code: grpc.StatusCode, begin: float) -> None:
    if method == _PREDICT:
        _PREDICT_REQUESTS.labels(code.name).inc()
        _PREDICT_SECONDS.observe(time.perf_counter() - begin)
    else:
        _CALLS.labels(method, code.name).inc()
