"""The course of a run: events flow, a client asks, the trainer is killed and comes back, everything drains."""

import time
from contextlib import ExitStack
from pathlib import Path

from millrace.cli.loop import figures
from millrace.cli.loop.client_load import ClientLoad, PredictCounter
from millrace.cli.loop.freshness import FreshnessProber
from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.patience import Patience
from millrace.cli.loop.processes import START_SECONDS, Processes
from millrace.cli.loop.sampler import Sampler
from millrace.cli.loop.scenario import Scenario
from millrace.cli.loop.screen import Screen
from millrace.runtime.child_process import ChildProcessError
from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics

_STALL_SECONDS = 120.0  # the longest that a process stood still on a busy machine was half of it
_CLIENT_SECONDS = 60.0  # a slow answer is no failed one
_TICK_SECONDS = 5.0  # one line per tick where the terminal has no live screen
_KILL_AT = 0.45  # share of the run after which the trainer is killed: both halves see enough versions


class Course:
    """What happens in one run, and what it leaves behind: kills, the client's counter, the prober.

    Args:
      folder: of the run; holds `model` and `ledger.parquet`.
    """

    def __init__(
        self, scenario: Scenario, options: LoopOptions, topics: Topics, folder: Path, processes: Processes,
        sampler: Sampler,
    ) -> None:  # fmt: skip
        self._scenario, self._options, self._topics = scenario, options, topics
        self._folder, self._processes, self._sampler = folder, processes, sampler
        self._clients: tuple[ClientLoad | FreshnessProber, ...] = ()
        self.phase = "starting"
        self.kills: list[dict[str, object]] = []
        self.counter: PredictCounter | None = None
        self.prober: FreshnessProber | None = None

    def flow(self, kafka: KafkaConnection, stack: ExitStack, screen: Screen) -> tuple[PredictCounter, FreshnessProber]:
        """Runs until all that was sent is trained, or nothing moves any more; `stack` closes the clients.

        Raises:
          ChildProcessError: a process ended by itself, or the producer failed.
          StalledError: what should move has stood still.
        """
        self.phase = "events are flowing"
        producer = self._processes["producer"]
        producer.start()
        self._processes.wait_ready("producer")
        began = time.monotonic()
        self._wait_for_version()
        counter, prober = self._start_client(kafka, stack)
        tick = Deadline(_TICK_SECONDS)
        kill_after = _KILL_AT * self._options.seconds
        sending = Patience("the producer", _STALL_SECONDS, f"{producer.log_path} says what it waits for")
        while producer.running():
            self._processes.check_alive()
            if self._options.kill_trainer and not self.kills and time.monotonic() - began > kill_after:
                self._kill_trainer()
            if tick.expired():
                screen.tick()
                sending.look(self._processes.metrics("producer").get("millrace_events_sent_total"))
                tick = Deadline(_TICK_SECONDS)
            time.sleep(0.1)
        prober.stop_sending()
        if producer.exit_code != 0:
            raise ChildProcessError(f"producer exited with {producer.exit_code}: {producer.log_tail()}")
        self._drain(prober)
        return counter, prober

    def close_clients(self) -> None:
        """Ends the clients; to be called before the server stops, whose refusals would count as failed requests."""
        for client in self._clients:
            client.close()

    def _wait_for_version(self) -> None:
        deadline = Deadline(START_SECONDS)
        while self._processes.metrics("server").get("millrace_model_version", 0) <= 0:
            self._processes.check_alive()
            if deadline.expired():
                raise ChildProcessError(f"no version was served within {START_SECONDS:g} s: see {self._folder}")
            time.sleep(0.2)

    def _start_client(self, kafka: KafkaConnection, stack: ExitStack) -> tuple[PredictCounter, FreshnessProber]:
        from millrace.serving.client.predict_client import PredictClient

        scenario = self._scenario
        client = PredictClient(str(self._processes["server"].ready["address"]), scenario.model, _CLIENT_SECONDS)
        stack.callback(client.close)
        self.counter = PredictCounter(client)
        load = ClientLoad(self.counter, scenario.users, scenario.items, scenario.probe.inputs)
        self.prober = FreshnessProber(
            kafka, self._topics, self.counter, scenario.head, scenario.probe, scenario.users,
            self._options.probe_interval_seconds,
        )  # fmt: skip
        self._clients = (load, self.prober)
        for part in self._clients:
            part.start()
            stack.callback(part.close)
        return self.counter, self.prober

    def _kill_trainer(self) -> None:
        """SIGKILL, start again, and note how long until the new process trains."""
        trainer = self._processes["trainer"]
        self.phase = "the trainer was killed"
        self._sampler.mark("kill", "trainer killed")
        killed = time.monotonic()
        trainer.kill()
        trainer.start()
        self._processes.wait_ready("trainer")
        producer, deadline = self._processes["producer"], Deadline(START_SECONDS)
        while self._rows_trained() <= 0 and producer.running() and not deadline.expired():
            self._processes.check_alive()
            time.sleep(0.1)
        seconds = round(time.monotonic() - killed, 2)
        self._sampler.mark("back", f"back after {seconds:g} s")
        self.kills.append({"process": "trainer", "signal": "SIGKILL", "back_after_s": seconds})
        self.phase = "events are flowing"

    def _rows_trained(self) -> float:
        return self._processes.metrics("trainer").get("millrace_rows_trained_total", 0)

    def _drain(self, prober: FreshnessProber) -> None:
        """Waits until the trained rows match the ledger, or nothing has moved for `drain_seconds`."""
        self.phase = "draining"
        rows = figures.read_ledger(self._folder / "ledger.parquet").num_rows + len(prober.probes)
        arriving = Patience(
            "rows that were sent", self._options.drain_seconds, f"the logs in {self._folder} say where they are"
        )
        while True:
            self._processes.check_alive()
            fed = self._processes.metrics("feed")
            # Dropped rows never reach the trainer; what a recipe makes of a row does, as often as the feed says.
            emitted = int(fed.get("millrace_feed_rows_emitted_total", 0))
            left = emitted + int(fed.get("millrace_feed_rows_dropped_total", 0)) >= rows
            applied, outstanding = figures.rows_applied(self._folder / "model"), len(prober.outstanding())
            if left and applied >= emitted and not outstanding:
                return
            arriving.look(emitted, applied, outstanding)
            time.sleep(0.5)
