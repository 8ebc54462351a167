"""Metric names, the `/metrics` and `/healthz` endpoint, and one-line logs."""

import errno
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    `beats` counts them.

    Args:
      what: the loop, as its owner calls it.
      clock: seconds, monotonic.
    """

    def __init__(self, what: str, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._seconds, self._clock = what, seconds, clock
        self._last: float | None = None
        self.beats = 0

    def beat(self) -> None:
        self._last = self._clock()
        self.beats += 1

    def reset(self) -> None:
        """Forgets all beats: healthy until the next one is overdue."""
        self._last, self.beats = None, 0

    def reason(self) -> str | None:
        """What is wrong, for `MetricsEndpoint`; None when nothing is."""
        idle = 0.0 if self._last is None else self._clock() - self._last
        return f"{self._what} has stood still for {idle:.0f} s" if idle > self._seconds else None


class RefusalStreak:
    """Health of an input: unhealthy while the last `limit` things that came were all refused.

    Args:
      what: such things, as their reader calls them, in the plural.
    """

    def __init__(self, what: str, limit: int = 32) -> None:
        self._what, self._limit = what, limit
        self._refused, self._why = 0, ""

    def taken(self) -> None:
        """One was used, at least in part."""
        self._refused = 0

    def refused(self, why: str) -> None:
        """One was refused."""
        self._refused, self._why = self._refused + 1, why

    def reason(self) -> str | None:
        """What is wrong, for `MetricsEndpoint`; None when nothing is."""
        if self._refused < self._limit:
            return None
        return f"the last {self._refused} {self._what} were all refused, the newest for: {self._why}"


class Condition:
    """Health that its owner judges itself.

    Attributes:
      problem: what is wrong; None when nothing is.
    """

    def __init__(self) -> None:
        self.problem: str | None = None

    def reason(self) -> str | None:
        """`problem`, for `MetricsEndpoint`."""
        return self.problem


class LogLimit:
    """Says which messages are logged: of each kind, one per `seconds`.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._quiet_until: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def count(self, kind: str, times: int = 1) -> int:
        """How many times `kind` happened since the last message about it; 0 while none is to be logged."""
        count = self._counts.get(kind, 0) + times
        now = self._clock()
        if now < self._quiet_until.get(kind, now):
            self._counts[kind] = count
            return 0
        self._quiet_until[kind], self._counts[kind] = now + self._seconds, 0
        return count


class Waits:
    """What this process waits for: servers that are away, each with the time since when.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._since: list[tuple[str, float]] = []

    @contextmanager
    def entry(self, what: str) -> Iterator[None]:
        """Around a wait for `what`; several threads may wait for the same."""
        entry = (what, self._clock())
        with self._lock:
            self._since.append(entry)
        try:
            yield
        finally:
            with self._lock:
                self._since.remove(entry)

    def seconds(self) -> float:
        """How long the oldest wait has lasted; 0 without one."""
        with self._lock:
            return max((self._clock() - since for _, since in self._since), default=0.0)

    def words(self) -> str | None:
        """What is waited for and for how long, in one line; None when nothing is."""
        with self._lock:
            oldest: dict[str, float] = {}
            for what, since in self._since:
                oldest[what] = min(since, oldest.get(what, since))
            now = self._clock()
        return ", ".join(f"waiting for {what} for {now - since:.0f} s" for what, since in oldest.items()) or None


WAITS = Waits()
"""The waits of this process (`millrace.runtime.outage`)."""

gauge(
    "waiting_seconds", "How long this process has waited for a server that is away; 0: it waits for none."
).set_function(WAITS.seconds)


_REQUEST_SECONDS = 10.0  # for a request to come and for its answer to be taken: each connection has a thread meanwhile


class MetricsEndpoint:
    """Serves `/metrics` (Prometheus text) and `/healthz`.

    `/healthz` answers 503 with the reason where a restart may help, and 200 otherwise: `ok`, or what is waited for.

    Args:
      port: TCP port, 0 for a free one; `address` tells which.
      health: returns None when healthy, else the reason.
      host: interface; loopback unless told otherwise.

    Raises:
      UserError: the port is in use, or the interface is not of this machine.
    """

    def __init__(self, port: int = 0, health: Callable[[], str | None] = lambda: None, host: str = "127.0.0.1") -> None:
        endpoint_health = health

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_SECONDS

            def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
                if self.path == "/metrics":
                    self._reply(200, prometheus_client.generate_latest(), CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    reason = endpoint_health()
                    words = "; ".join(filter(None, (reason, WAITS.words()))) or "ok"
                    self._reply(503 if reason else 200, words.encode(), "text/plain")
                else:
                    self._reply(404, b"try /metrics or /healthz", "text/plain")

            def _reply(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                try:
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:  # who asked has gone: scrapers wait for a second or so, a busy process longer
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno != errno.EADDRINUSE:
                raise UserError(
                    "--metrics-host", host, f"cannot listen on it ({error.strerror})", "give an address of this machine"
                ) from error
            raise UserError(
                "--metrics-port",
                port,
                f"cannot listen on it ({error.strerror})",
                "give another port, or 0 for a free one",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
