"""The course of a run: events flow, a client asks, one part after the other happens, everything drains."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from millrace.cli.loop import figures
from millrace.cli.loop.client_load import ClientLoad, PredictCounter
from millrace.cli.loop.freshness import FreshnessProber
from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.parts import kill_trainer, roll_back
from millrace.cli.loop.patience import Patience, StalledError
from millrace.cli.loop.poisoning import poison
from millrace.cli.loop.processes import START_SECONDS, Processes
from millrace.cli.loop.sampler import Sampler
from millrace.cli.loop.scenario import Scenario
from millrace.cli.loop.scene import Scene
from millrace.cli.loop.screen import Screen
from millrace.runtime.child_process import ChildProcessError
from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics

_STALL_SECONDS = 120.0  # the longest that a process stood still on a busy machine was half of it
_CLIENT_SECONDS = 60.0  # a slow answer is no failed one
_TICK_SECONDS = 5.0  # one line per tick where the terminal has no live screen

_CALM = 0.12  # share of the run in which nothing happens before each part: freshness is measured then

# Part -> (phase, name in the summary, what happens). Each lasts 10 to 25 s on a quiet machine.
_PARTS: dict[str, tuple[str, str, Callable[[Scene], dict[str, object]]]] = {
    "kill": ("the trainer was killed", "trainer_killed", kill_trainer),
    "rollback": ("an operator has rolled back", "rollback", roll_back),
    "poison": ("wrong labels have come", "guard", poison),
}


class Course:
    """What happens in one run, and what it leaves behind: results of its parts, the client's counter, the prober.

    Args:
      folder: of the run; holds `model` and `ledger.parquet`.

    Attributes:
      results: what the summary tells of each part.
    """

    def __init__(
        self, scenario: Scenario, options: LoopOptions, topics: Topics, folder: Path, processes: Processes,
        sampler: Sampler,
    ) -> None:  # fmt: skip
        self._scenario, self._options, self._topics = scenario, options, topics
        self._folder, self._processes, self._sampler = folder, processes, sampler
        self._clients: tuple[ClientLoad | FreshnessProber, ...] = ()
        self.phase = "starting"
        self.results: dict[str, object] = {}
        self.counter: PredictCounter | None = None
        self.prober: FreshnessProber | None = None
        self.scene: Scene | None = None

    def flow(self, kafka: KafkaConnection, stack: ExitStack, screen: Screen) -> None:
        """Runs until all that was sent is trained, or nothing moves any more; `stack` closes the clients.

        Raises:
          ChildProcessError: a process ended by itself, or the producer failed.
          StalledError: what should move has stood still, or did not come within its time.
        """
        self.phase = "events are flowing"
        self._processes["producer"].start()
        self._processes.wait_ready("producer")
        self._wait_for_version()
        began = time.monotonic()
        counter, prober = self._start_client(kafka, stack)
        self.scene = scene = Scene(
            self._scenario, self._topics, kafka, self._folder, self._processes, self._sampler, counter, prober,
            self._looker(screen),
        )  # fmt: skip
        for part in self._options.parts:
            phase, name, happen = _PARTS[part]
            self._flow_until(time.monotonic() + _CALM * self._options.seconds, scene)
            if not self._processes["producer"].running():
                self.results[name] = {"left_out": "the events had ended before: more of them, or a lower --rate, helps"}
                continue
            self.phase = phase
            self.results[name] = happen(scene)
            self.phase = "events are flowing"
        seconds = self._options.seconds
        self._flow_until(max(began + seconds, time.monotonic() + _CALM * seconds), scene)
        prober.stop_sending()
        self._processes.end("producer", START_SECONDS)  # it writes its ledger
        self._drain(scene)

    def close_clients(self) -> None:
        """Ends the clients; to be called before the server stops, whose refusals would count as failed requests."""
        for client in self._clients:
            client.close()

    def _flow_until(self, moment: float, scene: Scene) -> None:
        """Returns at `moment` of the monotonic clock, or when the events have ended."""
        while time.monotonic() < moment and self._processes["producer"].running():
            scene.stay(0.1)

    def _looker(self, screen: Screen) -> Callable[[], None]:
        """What is looked at while anything is waited for: that processes run, and that events are sent."""
        producer, tick = self._processes["producer"], Deadline(_TICK_SECONDS)
        sending = Patience("the producer", _STALL_SECONDS, f"{producer.log_path} says what it waits for")

        def look() -> None:
            nonlocal tick
            self._processes.check_alive()
            if producer.exit_code not in (None, 0):
                raise self._producer_failed()
            if tick.expired():
                screen.tick()
                if producer.running():
                    sending.look(self._processes.metrics("producer").get("millrace_events_sent_total"))
                tick = Deadline(_TICK_SECONDS)

        return look

    def _producer_failed(self) -> ChildProcessError:
        producer = self._processes["producer"]
        return ChildProcessError(f"producer exited with {producer.exit_code}: {producer.log_tail()}")

    def _wait_for_version(self) -> None:
        deadline = Deadline(START_SECONDS)
        while self._processes.metrics("server").get("millrace_model_version", 0) <= 0:
            self._processes.check_alive()
            if deadline.expired():
                raise StalledError(
                    f"a first version in service: not within {START_SECONDS:g} s; less work beside it "
                    f"helps; trainer.log, agent.log and server.log in {self._folder} say what each waits for"
                )
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

    def _drain(self, scene: Scene) -> None:
        """Waits until the trained rows match the ledger, or nothing has moved for `drain_seconds`."""
        prober = scene.prober
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
            if left and applied + len(scene.passed_over) >= emitted and not outstanding:
                return
            arriving.look(emitted, applied, outstanding)
            time.sleep(0.5)
