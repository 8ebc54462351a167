"""Pools that start Beam workers: in the feed itself, which then hears what a bundle raised, or one process each.

Beam's own pools listen on every interface and start a worker for whoever asks, so that a stranger's control plane could
have any code run. These listen on 127.0.0.1, and their workers connect to this machine only.
"""

import ipaddress
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker
from apache_beam.utils import thread_pool_executor
from apache_beam.utils.sentinel import Sentinel

from millrace.runtime.errors import UserError
from millrace.runtime.memory import WORKER_ENVIRONMENT

__all__ = ["OnFailure", "process_pool", "worker_pool"]

_LOG = logging.getLogger(__name__)
_STOP_SECONDS = 1.0  # no request to the pool takes longer
_TERMINATE_SECONDS = 10.0
_OPTIONS = [
    ("grpc.so_reuseport", 0),  # no other process may share the port
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
]

OnFailure = Callable[[BaseException], None]


@contextmanager
def worker_pool(state_cache_bytes: int, on_failure: OnFailure) -> Iterator[str]:
    """A pool whose workers are threads of this process.

    Yields: its address, for `--environment_type=EXTERNAL --environment_config=ADDRESS`.

    Args:
      state_cache_bytes: most bytes of a worker's cache of state.
      on_failure: called with what a bundle raised, in the worker's thread, before the runner is told.
    """

    def start(control: str, worker_id: str) -> Callable[[], None]:
        worker = _Worker(control, worker_id, state_cache_bytes, on_failure)
        threading.Thread(target=worker.serve, name=f"worker-{worker_id}", daemon=True).start()
        return worker.end

    with _served(_Pool(start), 0) as address:
        yield address


@contextmanager
def process_pool(port: int) -> Iterator[str]:
    """A pool whose workers are processes; those that run are ended with it.

    Args:
      port: on 127.0.0.1; 0 for a free one.

    Yields: its address, for `--environment_type=EXTERNAL --environment_config=ADDRESS`.
    Raises: UserError when the port is in use.
    """
    running: list[subprocess.Popen[bytes]] = []

    def start(control: str, worker_id: str) -> Callable[[], None]:
        command = [sys.executable, "-m", "millrace.pipelines.feed.worker_process", control, worker_id]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **WORKER_ENVIRONMENT})
        running.append(process)
        return lambda: _end(process)

    try:
        with _served(_Pool(start), port) as address:
            yield address
    finally:
        for process in running:
            _end(process)


@contextmanager
def _served(pool: "_Pool", port: int) -> Iterator[str]:
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=_OPTIONS)
    try:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError as error:
        raise UserError("--port", port, "cannot listen on it", "give another port, or 0 for a free one") from error
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(_STOP_SECONDS)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts workers for runners of this machine, and ends them.

    Args:
      start: starts a worker for (address of the control plane, id); returns what ends it.
    """

    def __init__(self, start: Callable[[str, str], Callable[[], None]]) -> None:
        self._start = start
        self._ends: dict[str, Callable[[], None]] = {}

    def StartWorker(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 (the name is Beam's)
        address = request.control_endpoint.url
        if not _is_of_this_machine(address):
            _LOG.warning("refused to start a worker for %s: only runners of this machine may have one", address)
            return beam_fn_api_pb2.StartWorkerResponse(error=f"{address} is not an address of this machine")
        try:
            self._ends[request.worker_id] = self._start(address, request.worker_id)
        except Exception as error:  # the runner reports it
            return beam_fn_api_pb2.StartWorkerResponse(error=f"{type(error).__name__}: {error}")
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        end = self._ends.pop(request.worker_id, None)
        if end is not None:
            end()
        return beam_fn_api_pb2.StopWorkerResponse()


class _Worker(sdk_worker.SdkHarness):
    """Beam's worker, which also tells what a bundle raised: not every runner ends a job whose bundle failed."""

    def __init__(self, address: str, worker_id: str, state_cache_bytes: int, on_failure: OnFailure) -> None:
        super().__init__(address, worker_id=worker_id, state_cache_size=state_cache_bytes)
        self._on_failure = on_failure

    def serve(self) -> None:
        """Does what the runner asks for, until the runner or `end` ends it."""
        try:
            self.run()
        except grpc.RpcError as error:  # the job is the one to tell that its runner has ended
            _LOG.info("a worker has lost its runner (%s)", error.details() if isinstance(error, grpc.Call) else error)

    def end(self) -> None:
        """Lets `serve` return once what is in work is done."""
        self._responses.put(Sentinel.sentinel)

    def _execute(self, task: Callable[[], Any], request: Any) -> None:
        def telling() -> Any:
            try:
                return task()
            except BaseException as error:
                if request.WhichOneof("request") == "process_bundle":
                    self._on_failure(error)
                raise

        super()._execute(telling, request)


def _is_of_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
