"""Runs every process of the loop on this machine, kills the trainer once, and measures what comes of it."""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from millrace.cli.common import tensorflow_import
from millrace.cli.loop import audit, figures
from millrace.cli.loop.client_load import ClientLoad, PredictCounter
from millrace.cli.loop.freshness import FreshnessProber
from millrace.cli.loop.report import RunRecord, write
from millrace.cli.loop.sampler import Sampler, scrape
from millrace.cli.loop.scenario import Scenario
from millrace.cli.loop.screen import Screen
from millrace.runtime.child_process import ChildProcess, ChildProcessError
from millrace.runtime.deadline import Deadline
from millrace.runtime.dev_servers import DevServers
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, watermarks
from millrace.runtime.topics import Topics

_START_SECONDS = 90.0
_LATE_PRODUCER_SECONDS = 20.0
_TICK_SECONDS = 5.0
_KILL_AT = 0.45  # share of the run after which the trainer is killed: both halves see enough versions


@dataclass(frozen=True)
class LoopOptions:
    """Settings of one run.

    `drain_seconds`: how long, after the last event, rows may still be on their way before they count as lost.
    `seconds`: how long events flow; a producer that has more by then is stopped.
    """

    runner: str = "prism"
    recipe: Path | None = None
    report: Path = Path("demo-report")
    state: Path = Path(".state/demo")
    window_seconds: float = 5.0
    export_seconds: float = 15.0
    checkpoint_seconds: float = 10.0
    probe_interval_seconds: float = 0.5
    seconds: float = 100.0
    drain_seconds: float = 40.0
    kill_trainer: bool = True
    delays: Sequence[int] = field(default=(256, 1024, 8192, 33_000))


class LoopRun:
    """One run: `run()` returns the record that the report is made of.

    Every process is a real `millrace` command, started and stopped as an operator would.
    """

    def __init__(self, scenario: Scenario, options: LoopOptions, console: Console | None = None) -> None:
        self._scenario, self._options = scenario, options
        self._console = console or Console(stderr=True)
        self._folder = options.state.absolute() / time.strftime("%Y%m%d-%H%M%S")
        self._model_dir = self._folder / "model"
        self._ledger = self._folder / "ledger.parquet"
        self._topics = Topics(f"demo-{os.getpid()}.")
        self._processes: dict[str, ChildProcess] = {}
        self._kills: list[dict[str, object]] = []
        self._clients: tuple[ClientLoad | FreshnessProber, ...] = ()
        self._versions: list[float] = []
        self._phase = "starting"
        self._began = time.monotonic()
        self._counter: PredictCounter | None = None
        self._prober: FreshnessProber | None = None
        self._sampler = Sampler(self._read_figures)
        self._screen = Screen(self._view, self._console)

    def run(self) -> RunRecord:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._say("starting Kafka and ZooKeeper")
            servers = DevServers(self._folder / "servers")
            stack.callback(servers.down)
            servers.up()
            stack.callback(self._stop_processes)
            kafka = KafkaConnection(servers.kafka_address)
            self._create_topics(kafka)
            self._start_processes(kafka, servers.zookeeper_address)
            stack.enter_context(self._screen)
            self._sampler.start()
            stack.callback(self._sampler.close)
            self._flow(kafka, stack)
            record = self._measure(kafka)
        shutil.rmtree(self._folder / "servers", ignore_errors=True)  # logs and model stay
        write(record, self._options.report)
        return record

    # The course of the run

    def _create_topics(self, kafka: KafkaConnection) -> None:
        names = self._topics
        for topic in (names.impressions, names.actions, names.train(self._scenario.model)):
            ensure_topic(kafka, topic, partitions=4)
        ensure_topic(kafka, names.dead_letter)
        ensure_topic(kafka, names.deltas(self._scenario.model))
        ensure_topic(kafka, names.serving_status)
        ensure_topic(kafka, names.model_events, config={"cleanup.policy": "compact"})

    def _start_processes(self, kafka: KafkaConnection, zookeeper: str) -> None:
        self._say(f"starting feed ({self._options.runner}), trainer and model server")
        task = ("--task", self._scenario.task)
        options = self._options
        common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", self._topics.prefix)
        self._add("server", "serve", "--port", "0", "--model-name", self._scenario.model, *common)
        self._add(
            "trainer", "train", *task, "--online", "--model-dir", str(self._model_dir), "--audit", *common,
            "--export-seconds", str(options.export_seconds), "--checkpoint-seconds", str(options.checkpoint_seconds),
        )  # fmt: skip
        self._add(
            "feed", "feed", *task, "--runner", options.runner, "--audit", "--start", "earliest", *common,
            "--window-seconds", str(options.window_seconds), "--work-dir", str(self._folder / "feed"),
            *(("--recipe", str(options.recipe)) if options.recipe else ()),
        )  # fmt: skip
        for name in ("server", "trainer", "feed"):
            self._processes[name].start()
        with tensorflow_import():  # meanwhile: the published stubs of the client need it
            import millrace.serving.predict_client  # noqa: F401
        server = str(self._processes["server"].wait_ready(_START_SECONDS)["address"])
        self._add(
            "agent", "agent", "--server", server, "--model", self._scenario.model, "--zookeeper", zookeeper,
            "--replica-id", "0", *common,
        )  # fmt: skip
        self._processes["agent"].start()
        for name in ("agent", "trainer", "feed"):
            self._processes[name].wait_ready(_START_SECONDS)
        self._add("producer", "events", *self._scenario.producer, "--ledger", str(self._ledger), *common, ready=False)

    def _flow(self, kafka: KafkaConnection, stack: ExitStack) -> None:
        """Events flow; the client asks; the trainer dies and comes back; everything drains."""
        self._phase = "events are flowing"
        producer = self._processes["producer"]
        producer.start()
        began, deadline = time.monotonic(), Deadline(self._options.seconds + _LATE_PRODUCER_SECONDS)
        self._wait_for_version()
        self._start_client(kafka, stack)
        tick = Deadline(_TICK_SECONDS)
        kill_after = _KILL_AT * self._options.seconds
        while producer.running() and not deadline.expired():
            self._check_alive()
            if self._options.kill_trainer and not self._kills and time.monotonic() - began > kill_after:
                self._kill_trainer()
            if tick.expired():
                self._screen.tick()
                tick = Deadline(_TICK_SECONDS)
            time.sleep(0.1)
        assert self._prober is not None
        self._prober.stop_sending()
        if producer.stop() != 0:
            raise ChildProcessError(f"producer failed: {producer.log_tail()}")
        self._drain()

    def _wait_for_version(self) -> None:
        deadline = Deadline(_START_SECONDS)
        while self._metrics("server").get("millrace_model_version", 0) <= 0:
            self._check_alive()
            if deadline.expired():
                raise ChildProcessError(f"no version was served within {_START_SECONDS:g} s: see {self._folder}")
            time.sleep(0.2)

    def _start_client(self, kafka: KafkaConnection, stack: ExitStack) -> None:
        from millrace.serving.predict_client import PredictClient

        scenario = self._scenario
        client = PredictClient(str(self._processes["server"].ready["address"]), scenario.model)
        stack.callback(client.close)
        self._counter = PredictCounter(client)
        load = ClientLoad(self._counter, scenario.users, scenario.items, scenario.probe.inputs)
        self._prober = FreshnessProber(
            kafka, self._topics, self._counter, scenario.head, scenario.probe, scenario.users,
            self._options.probe_interval_seconds,
        )  # fmt: skip
        self._clients = (load, self._prober)
        for part in self._clients:
            part.start()
            stack.callback(part.close)

    def _kill_trainer(self) -> None:
        """SIGKILL, start again, and note how long until the new process trains."""
        trainer = self._processes["trainer"]
        self._phase = "the trainer was killed"
        self._sampler.mark("kill", "trainer killed")
        killed = time.monotonic()
        trainer.kill()
        trainer.start()
        trainer.wait_ready(_START_SECONDS)
        deadline = Deadline(_START_SECONDS)
        while self._metrics("trainer").get("millrace_rows_trained_total", 0) <= 0 and not deadline.expired():
            time.sleep(0.1)
        seconds = round(time.monotonic() - killed, 2)
        self._sampler.mark("back", f"back after {seconds:g} s")
        self._kills.append({"process": "trainer", "signal": "SIGKILL", "back_after_s": seconds})
        self._phase = "events are flowing"

    def _drain(self) -> None:
        """Waits until the trained rows match the ledger, or nothing has moved for a while."""
        self._phase = "draining"
        rows = figures.read_ledger(self._ledger).num_rows + len(self._prober.probes if self._prober else ())
        deadline = Deadline(self._options.drain_seconds)
        while not deadline.expired():
            self._check_alive()
            fed = self._metrics("feed")
            # Dropped rows never reach the trainer; what a recipe makes of a row does, as often as the feed says.
            emitted = int(fed.get("millrace_feed_rows_emitted_total", 0))
            left = emitted + int(fed.get("millrace_feed_rows_dropped_total", 0)) >= rows
            applied = figures.rows_applied(self._model_dir) >= emitted
            if left and applied and not (self._prober and self._prober.outstanding()):
                return
            time.sleep(0.5)

    # Figures

    def _measure(self, kafka: KafkaConnection) -> RunRecord:
        from millrace.training.state.checkpoint import read_audit

        self._phase = "measuring"
        assert self._prober is not None and self._counter is not None
        dead_letters = sum(end for _, end in watermarks(kafka, self._topics.dead_letter).values())
        dropped = int(self._metrics("feed").get("millrace_feed_rows_dropped_total", 0))
        totals, samples = dict(self._sampler.totals), list(self._sampler.samples)
        for (
            part
        ) in self._clients:  # before the server stops: a request that nobody can answer is no failure of the loop
            part.close()
        if self._processes["trainer"].stop(60.0) != 0:
            raise ChildProcessError(f"the trainer did not save: {self._processes['trainer'].log_tail()}")
        self._stop_processes()
        fids, counts = read_audit(self._model_dir)
        sent = figures.sent_fids(self._ledger, self._prober.probes)
        result = audit.compare(sent, fids, counts, dropped)
        latencies = self._prober.latencies_ms()
        ledger_summary = figures.ledger_summary(self._ledger)
        summary: dict[str, object] = {
            "events": int(ledger_summary["events"]) + 2 * len(self._prober.probes),  # type: ignore[call-overload]
            **result.to_json(),
            **figures.auc_figures(self._ledger, self._model_dir),
            "freshness_ms": figures.percentiles(latencies, len(self._prober.probes)),
            "versions_published": figures.versions_published(self._model_dir, self._versions),
            "deltas_applied": int(totals.get("deltas_applied", 0)),
            "predictions_ok": self._counter.ok,
            "predictions_failed": self._counter.failed,
            "predict_ms": figures.percentiles(np.array(self._counter.latencies) * 1e3, len(self._counter.latencies)),
            "trainer_killed": self._kills,
            "dead_letters": dead_letters,
            "dead_letters_expected": int(ledger_summary.get("bad_records", 0)),  # type: ignore[call-overload]
            "runner": self._options.runner,
            "wall_s": round(time.monotonic() - self._began, 1),
        }
        curve = []
        if self._scenario.data is not None:
            self._say("drawing AUC against delay")
            curve = figures.delay_curve(self._scenario.data, self._options.delays)
            summary["delay_curve"] = curve
        summary["wall_s"] = round(time.monotonic() - self._began, 1)
        return RunRecord(
            f"{self._scenario.title}, on {self._options.runner}", summary, samples, self._sampler.marks,
            latencies.tolist(), curve,
        )  # fmt: skip

    def _read_figures(self) -> tuple[dict[str, float], dict[str, float]]:
        trainer, feed, server = (self._metrics(name) for name in ("trainer", "feed", "server"))
        gauges = {}
        if trainer.get("millrace_progressive_auc", 0.0) > 0:  # 0 until the first row, NaN until both labels were seen
            gauges["auc"] = trainer["millrace_progressive_auc"]
            gauges["log_loss"] = trainer.get("millrace_progressive_log_loss", 0.0)
        version = server.get("millrace_model_version", 0.0)
        if version and version not in self._versions:
            self._versions.append(version)
            self._sampler.mark("version", str(int(version)))
        gauges["deltas_applied"] = self._sampler.totals.get("deltas_applied", 0.0)
        totals = {
            "events": feed.get("millrace_feed_records_read_total"),
            "fed_rows": feed.get("millrace_feed_rows_emitted_total"),
            "trained_rows": trainer.get("millrace_rows_trained_total"),
            "deltas_applied": server.get("millrace_deltas_applied_total"),
            "predictions": float(self._counter.ok) if self._counter else None,
        }
        return gauges, {name: total for name, total in totals.items() if total is not None}

    def _view(self) -> dict[str, object]:
        samples = self._sampler.samples
        last = samples[-1] if samples else {}
        freshness = self._prober.latencies_ms() if self._prober else np.array([])
        return {
            "phase": self._phase,
            "processes": {name: "running" if p.running() else "ended" for name, p in self._processes.items()},
            "figures": {
                "seconds": f"{self._sampler.elapsed():.0f}",
                "events/s": f"{last.get('events_per_s', 0):,.0f}",
                "rows trained/s": f"{last.get('trained_rows_per_s', 0):,.0f}",
                "AUC": f"{last.get('auc', float('nan')):.3f}",
                "freshness p50": f"{np.median(freshness):,.0f} ms" if len(freshness) else "–",
                "probes": str(len(freshness)),
                "version": str(int(self._versions[-1])) if self._versions else "–",
                "deltas": f"{self._sampler.totals.get('deltas_applied', 0):.0f}",
                "predictions": f"{self._counter.ok if self._counter else 0:,} ok, "
                f"{self._counter.failed if self._counter else 0} failed",
            },
            "auc": [s["auc"] for s in samples if "auc" in s and np.isfinite(s["auc"])],
        }

    # Processes

    def _add(self, name: str, *words: str, ready: bool = True) -> None:
        self._processes[name] = ChildProcess(
            name, [sys.executable, "-m", "millrace.cli.main", *words], self._folder, ready=ready
        )

    def _metrics(self, name: str) -> dict[str, float]:
        process = self._processes.get(name)
        return scrape(str(process.ready["metrics"])) if process and "metrics" in process.ready else {}

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if name != "producer" and not process.running():
                raise ChildProcessError(f"{name} exited with {process.exit_code}: {process.log_tail()}")

    def _stop_processes(self) -> None:
        for name in ("producer", "feed", "trainer", "agent", "server"):
            if name in self._processes:
                self._processes[name].stop()

    def _say(self, text: str) -> None:
        self._screen.say(f"{self._sampler.elapsed():6.1f} s  {text}")


def print_summary(summary: dict[str, object], folder: Path, as_json: bool) -> None:
    """The figures on stdout: JSON for scripts, a table for people."""
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(soft_wrap=True, highlight=False)
    for name, value in summary.items():
        console.print(f"  {name:<22} {value if not isinstance(value, dict | list) else json.dumps(value)}")
    console.print(f"\nreport: {folder / 'report.html'}")
