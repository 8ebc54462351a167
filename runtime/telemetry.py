"""Metric names, the `/metrics` and `/healthz` endpoint, and one-line logs."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import prometheus_client
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from millrace.runtime.errors import UserError

_LOG_FORMAT = "%(asctime)s %(levelname).1s {role} %(name)s: %(message)s"


def namespace(layer: str, component: str) -> str:
    """Beam metric namespace of a component: `millrace.transforms.join`."""
    return f"millrace.{layer}.{component}"


def counter(name: str, help_text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Counter:
    """A counter `millrace_<name>_total`."""
    return prometheus_client.Counter(f"millrace_{name}", help_text, labels)


def gauge(name: str, help_text: str, labels: tuple[str, ...] = ()) -> prometheus_client.Gauge:
    """A gauge `millrace_<name>`."""
    return prometheus_client.Gauge(f"millrace_{name}", help_text, labels)


def histogram(
    name: str, help_text: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] | None = None
) -> prometheus_client.Histogram:
    """A histogram `millrace_<name>`; give the unit in the name (`..._seconds`)."""
    return prometheus_client.Histogram(
        f"millrace_{name}", help_text, labels, buckets=buckets or prometheus_client.Histogram.DEFAULT_BUCKETS
    )


class _OneLine(logging.Formatter):
    """Folds messages and tracebacks into one line each."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def setup_logging(role: str, level: str = "INFO") -> None:
    """One line per record on stderr, with the process's role."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(_LOG_FORMAT.format(role=role)))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class Heartbeat:
    """Health of a loop: unhealthy when its last `beat` is more than `seconds` ago; healthy before the first.

    Args:
      what: the loop, as its owner calls it.
      clock: seconds, monotonic.
    """

    def __init__(self, what: str, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._seconds, self._clock = what, seconds, clock
        self._last: float | None = None

    def beat(self) -> None:
        self._last = self._clock()

    def reset(self) -> None:
        """Forgets the last beat: healthy until the next one is overdue."""
        self._last = None

    def reason(self) -> str | None:
        """What is wrong, for `MetricsEndpoint`; None when nothing is."""
        idle = 0.0 if self._last is None else self._clock() - self._last
        return f"{self._what} has stood still for {idle:.0f} s" if idle > self._seconds else None


class MetricsEndpoint:
    """Serves `/metrics` (Prometheus text) and `/healthz` (200 `ok`, or 503 with the reason).

    Args:
      port: TCP port, 0 for a free one; `address` tells which.
      health: returns None when healthy, else the reason.
      host: interface; loopback unless told otherwise.

    Raises:
      UserError: the port is in use.
    """

    def __init__(self, port: int = 0, health: Callable[[], str | None] = lambda: None, host: str = "127.0.0.1") -> None:
        endpoint_health = health

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
                if self.path == "/metrics":
                    self._reply(200, prometheus_client.generate_latest(), CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    reason = endpoint_health()
                    self._reply(503 if reason else 200, (reason or "ok").encode(), "text/plain")
                else:
                    self._reply(404, b"try /metrics or /healthz", "text/plain")

            def _reply(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UserError(
                "--metrics-port",
                port,
                f"cannot listen on it ({error.strerror})",
                "give another port, or 0 for a free one",
            ) from error
        self.address = f"{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
