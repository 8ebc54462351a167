"""A trainer, a server and an agent as `millrace` processes, and a client that asks the server all the time."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from millrace.cli.loop.client_load import serving_inputs
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.servers.daemon import free_port
from millrace.runtime.topics import Topics
from millrace.serving.agent.model_events import parse_event
from millrace.serving.client.predict_client import PredictClient
from tests.chaos.feeds import millrace
from tests.fakes.topics import read_all

START_SECONDS = 300.0  # TensorFlow is imported in 10 s, and in minutes on a busy machine
_STOP_SECONDS = 60.0


class ServingLoop:
    """Trainers and agents of several models may share the server.

    Args:
      flags: of `millrace train`, besides those of Kafka and the task.
    """

    def __init__(self, kafka: KafkaConnection, zookeeper: str, topics: Topics, folder: Path, *flags: str) -> None:
        self._kafka, self._zookeeper, self._topics, self._folder, self._flags = kafka, zookeeper, topics, folder, flags
        self._common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
        port = free_port()
        self._ports = port, free_port(exclude=[port])
        self._started: dict[str, ChildProcess] = {}
        self.address = f"127.0.0.1:{self._ports[0]}"

    def start_trainer(self, task: str, model: str, *flags: str, name: str = "trainer") -> ChildProcess:
        """Of the model directory `<folder>/<model>`."""
        folder = ("--model-dir", str(self.model_dir(model)))
        return self._start(name, "train", "--task", task, "--online", *folder, *self._common, *self._flags, *flags)

    def start_server(self, model: str) -> ChildProcess:
        port, control = (str(port) for port in self._ports)
        ports = ("--port", port, "--control-port", control)
        return self._start("server", "serve", *ports, "--model-name", model, *self._common)

    def start_agent(self, model: str, name: str = "agent") -> ChildProcess:
        return self._start(
            name, "agent", "--server", self.address, "--control", f"127.0.0.1:{self._ports[1]}", "--model", model,
            "--zookeeper", self._zookeeper, "--replica-id", "0", "--state-file", str(self._folder / f"{name}.json"),
            *self._common,
        )  # fmt: skip

    def model_dir(self, model: str) -> Path:
        return self._folder / model

    def stop(self, *names: str) -> None:
        """Stops these processes, or all."""
        for name in names or tuple(reversed(self._started)):
            self._started[name].stop(_STOP_SECONDS)

    def restart(self, name: str) -> None:
        """Stops a process and starts it again, with the same flags and ports."""
        process = self._started[name]
        process.stop(_STOP_SECONDS)
        process.start()
        process.wait_ready(START_SECONDS)

    def deltas(self, model: str) -> list[ModelDelta]:
        return [
            ModelDelta.FromString(record.value or b"") for record in read_all(self._kafka, self._topics.deltas(model))
        ]

    def events(self, model: str) -> list[ModelEvent]:
        found = [parse_event(record.value or b"") for record in read_all(self._kafka, self._topics.model_events)]
        return [event for event in found if event.model_name == model]

    def holds(self, model: str) -> list[ModelEvent]:
        return [event for event in self.events(model) if event.kind in (ModelEvent.ROLLBACK, ModelEvent.RELEASE)]

    def is_held(self, event: ModelEvent) -> bool:
        """Whether the newest status of the agent of the event's model says that its server is held as of the event."""
        records = read_all(self._kafka, self._topics.serving_status)
        statuses = [json.loads(record.value or b"{}") for record in records]
        of_model = [status for status in statuses if status["model_name"] == event.model_name]
        wanted = {
            "state": "AVAILABLE", "is_held": True, "target_version": event.version, "as_of_ms": event.as_of_ms
        }  # fmt: skip
        return bool(of_model) and of_model[-1] | wanted == of_model[-1]

    def _start(self, name: str, *words: str) -> ChildProcess:
        self._started[name] = process = millrace(self._folder, name, *words)
        process.start()
        return process


def health(process: ChildProcess) -> tuple[int, str]:
    """(status, text) of its `/healthz`."""
    try:
        with urllib.request.urlopen(f"http://{process.ready['metrics']}/healthz", timeout=10.0) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Watcher:
    """Asks the same of a model 50 times per second, and notes each change of the answer.

    Attributes:
      states: (Unix milliseconds when it came first, the answer's bytes, version), in turn; equal ones once in a row.
      failed: requests that failed, with what they failed of.
    """

    def __init__(self, address: str, model: str, inputs: dict[str, np.ndarray], output: str) -> None:
        self._client, self._inputs, self._output = PredictClient(address, model, timeout=30.0), inputs, output
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self.states: list[tuple[int, bytes, int]] = []
        self.asked, self.failed = 0, list[str]()

    def ask(self) -> tuple[bytes, int] | None:
        """(the answer's bytes, version); None when the request failed."""
        try:
            values, version = self._client.predict_with_version(self._inputs)
            return values[self._output].tobytes(), version
        except Exception as error:
            self.failed.append(repr(error)[:300])
            return None

    def start(self) -> None:
        self.failed.clear()  # while nothing was loaded yet
        self._thread.start()

    def now(self) -> tuple[int, bytes, int]:
        """The newest state."""
        return self.states[-1]

    def seen_before(self, answer: bytes, ms: int) -> bool:
        """Whether the server gave this answer before `ms`, Unix milliseconds."""
        return any(state == answer for first_ms, state, _ in list(self.states) if first_ms < ms)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def _loop(self) -> None:
        while not self._stop.wait(0.02):
            answer = self.ask()
            self.asked += 1
            if answer is not None and (not self.states or self.states[-1][1:] != answer):
                self.states.append((time.time_ns() // 1_000_000, *answer))


def probe(users: Sequence[int], items: Sequence[int], **others: str | int) -> dict[str, np.ndarray]:
    """Inputs of one request."""
    return serving_inputs(np.array(users, np.int64), np.array(items, np.int64), others)
