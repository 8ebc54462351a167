"""Errors that know their gRPC status, and the interceptor that converts, counts and times."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from millrace.runtime import telemetry

_LOG = logging.getLogger(__name__)
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_PREDICT = "Predict"
_MESSAGE_SECONDS = 10.0  # 32 MB at 26 Mbit/s; a call has its thread meanwhile, and there are few

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
    """Turns exceptions of unary methods into statuses, and records latency and counts.

    It also ends calls whose message does not come: a call has a thread before its message, so that a few clients that
    stop, or whose hosts are gone, would take all threads for ever.

    Args:
      message_seconds: for the message to come, from when the call has a thread; it is ended after once to twice that.
    """

    def __init__(self, message_seconds: float = _MESSAGE_SECONDS) -> None:
        self._seconds = message_seconds
        self._lock = threading.Lock()
        self._awaited: dict[grpc.ServicerContext, float] = {}  # since when
        self._is_watched = False

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        behaviour, parse = _guarded(handler.unary_unary, method), handler.request_deserializer

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            data = self._first(messages, context)
            try:
                request = parse(data)
            except DecodeError:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no request of {method}")
            return behaviour(request, context)

        # On the wire a unary request is a stream of one message; only a stream can be given up while it is awaited.
        return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _first(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self._awaited[context] = time.monotonic()
            self._watch()
        try:
            return next(messages)
        except StopIteration:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message, or one that is too large")
            raise
        finally:
            with self._lock:
                del self._awaited[context]

    def _watch(self) -> None:
        """Has a thread look for late calls, one at a time and only while messages are awaited; under the lock."""
        if self._awaited and not self._is_watched:
            self._is_watched = True
            timer = threading.Timer(self._seconds, self._end_late_calls)
            timer.daemon = True
            timer.start()

    def _end_late_calls(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [context for context, since in self._awaited.items() if now - since >= self._seconds]
            self._is_watched = False
            self._watch()
        for context in late:
            _LOG.warning("a call of %s is ended: its message did not come in %g s", context.peer(), self._seconds)
            context.cancel()


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
