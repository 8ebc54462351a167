"""The processes of the loop: real `millrace` commands, started and stopped as an operator would."""

import sys
from pathlib import Path

from millrace.cli.common import tensorflow_import
from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.sampler import scrape
from millrace.cli.loop.scenario import Scenario
from millrace.runtime.child_process import ChildProcess, ChildProcessError
from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics

START_SECONDS = 600.0  # TensorFlow is imported in 10 s here, and in minutes on a busy machine: only a hang takes longer
_STOP_SECONDS = 120.0

# The producer first, so that nothing new comes; the server last, so that no request of a client fails.
_STOP_ORDER = ("producer", "feed", "trainer", "agent", "server")


class Processes:
    """The server, trainer, feed, agent and producer of one run, by name.

    Args:
      folder: each process logs to `<folder>/<name>.log`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_name: dict[str, ChildProcess] = {}
        self._trainer_words: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> ChildProcess:
        return self._by_name[name]

    def start(
        self, scenario: Scenario, options: LoopOptions, topics: Topics, kafka: KafkaConnection, zookeeper: str
    ) -> None:
        """Starts all but the producer, which is only made ready to start; returns when each can work."""
        common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
        self._add("server", "serve", "--port", "0", "--model-name", scenario.model, *common)
        self._add_trainer(scenario, options, common)
        self._add_feed(scenario, options, common)
        for name in ("server", "trainer", "feed"):
            self[name].start()
        with tensorflow_import():  # while they start: the stubs of the client need it
            import millrace.serving.client.predict_client  # noqa: F401
        ready = self.wait_ready("server")
        server, control = str(ready["address"]), str(ready["control"])
        self._add(
            "agent", "agent", "--server", server, "--control", control, "--model", scenario.model,
            "--zookeeper", zookeeper, "--replica-id", "0", "--state-file", str(self._folder / "agent.json"), *common,
        )  # fmt: skip
        self["agent"].start()
        for name in ("agent", "trainer", "feed"):
            self.wait_ready(name)
        ledger = ("--ledger", str(self._folder / "ledger.parquet"))
        self._add("producer", "events", *scenario.producer, *ledger, *common)

    def wait_ready(self, name: str) -> dict[str, object]:
        """What the process says when it can work; ChildProcessError when it ends or takes too long."""
        try:
            return self[name].wait_ready(START_SECONDS)
        except TimeoutError as error:
            raise ChildProcessError(f"{error}; its log says what it does, less work beside it helps") from error

    def end(self, name: str, seconds: float = _STOP_SECONDS) -> None:
        """Has a process finish its work and end; ChildProcessError when it fails or takes longer."""
        process = self[name]
        was_running, deadline = process.running(), Deadline(seconds)
        if process.stop(seconds) == 0:
            return
        if was_running and deadline.expired():
            raise ChildProcessError(
                f"{name} has not ended within {seconds:g} s of SIGTERM and was killed: {process.log_path} says what it "
                "did, less work beside it helps"
            )
        raise ChildProcessError(f"{name} exited with {process.exit_code}: {process.log_tail()}")

    def resume_trainer(self, good_since_ms: int) -> None:
        """Stops the trainer and starts it with `--resume-from-good`; returns when it can work.

        Args:
          good_since_ms: Unix milliseconds; rows that reached the train topic then, or later, are good.
        """
        self.end("trainer")
        self._add("trainer", *self._trainer_words, "--resume-from-good", str(good_since_ms))
        self["trainer"].start()
        self.wait_ready("trainer")

    def metrics(self, name: str) -> dict[str, float]:
        """{sample: value} of the process's `/metrics`; empty while it does not answer."""
        process = self._by_name.get(name)
        return scrape(str(process.ready["metrics"])) if process and "metrics" in process.ready else {}

    def states(self) -> dict[str, str]:
        """{name: "running" or "ended"}."""
        return {name: "running" if process.running() else "ended" for name, process in self._by_name.items()}

    def check_alive(self) -> None:
        """Raises ChildProcessError with the end of the log when a process other than the producer has ended."""
        for name, process in self._by_name.items():
            if name != "producer" and not process.running():
                raise ChildProcessError(f"{name} exited with {process.exit_code}: {process.log_tail()}")

    def stop(self) -> None:
        """Stops all that run."""
        for name in _STOP_ORDER:
            if name in self._by_name:
                self._by_name[name].stop(_STOP_SECONDS)

    def _add_trainer(self, scenario: Scenario, options: LoopOptions, common: tuple[str, ...]) -> None:
        self._trainer_words = (
            "train", "--task", scenario.task, "--online", "--model-dir", str(self._folder / "model"),
            "--audit", "--export-seconds", str(options.export_seconds),
            "--checkpoint-seconds", str(options.checkpoint_seconds), *common,
        )  # fmt: skip
        self._add("trainer", *self._trainer_words)

    def _add_feed(self, scenario: Scenario, options: LoopOptions, common: tuple[str, ...]) -> None:
        self._add(
            "feed", "feed", "--task", scenario.task, "--runner", options.runner, "--audit", "--start", "earliest",
            "--window-seconds", str(options.window_seconds), "--work-dir", str(self._folder / "feed"),
            *(("--recipe", str(options.recipe)) if options.recipe else ()), *common,
        )  # fmt: skip

    def _add(self, name: str, *words: str, ready: bool = True) -> None:
        command = [sys.executable, "-m", "millrace.cli.main", *words]
        self._by_name[name] = ChildProcess(name, command, self._folder, ready=ready)
