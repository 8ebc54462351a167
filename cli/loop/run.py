"""One run of the loop on this machine: servers, processes, a course, and the record of what came of it."""

import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console

from millrace.cli.loop import audit, figures
from millrace.cli.loop.client_load import PredictCounter
from millrace.cli.loop.course import Course
from millrace.cli.loop.freshness import FreshnessProber
from millrace.cli.loop.live import LiveFigures
from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.processes import Processes
from millrace.cli.loop.report import RunRecord, write_report
from millrace.cli.loop.sampler import Sampler
from millrace.cli.loop.scenario import Scenario
from millrace.cli.loop.screen import Screen
from millrace.runtime.child_process import ChildProcessError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, watermarks
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topic_setup import ensure_deltas, ensure_model_events
from millrace.runtime.topics import Topics


class LoopRun:
    """One run: `run()` returns the record that the report is made of.

    Raises:
      ChildProcessError: a process ended, or did not do its part in time; the message has the end of its log.
    """

    def __init__(self, scenario: Scenario, options: LoopOptions, console: Console | None = None) -> None:
        self._scenario, self._options = scenario, options
        self._folder = options.state.absolute() / time.strftime("%Y%m%d-%H%M%S")
        self._topics = Topics(f"demo-{os.getpid()}.")
        self._began = time.monotonic()
        self._processes = Processes(self._folder)
        self._live = LiveFigures(self._processes)
        self._sampler = Sampler(self._live.read)
        self._course = Course(scenario, options, self._topics, self._folder, self._processes, self._sampler)
        self._live.attach(self._sampler, self._course)
        self._screen = Screen(self._live.view, console or Console(stderr=True))

    def run(self) -> RunRecord:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._say("starting Kafka and ZooKeeper")
            servers = DevServers(self._folder / "servers", self._screen.say)  # stdout is for the summary
            stack.callback(servers.down)
            servers.up()
            stack.callback(self._processes.stop)
            kafka = KafkaConnection(servers.kafka_address)
            _create_topics(kafka, self._topics, self._scenario.model)
            self._say(f"starting feed ({self._options.runner}), trainer and model server")
            self._processes.start(self._scenario, self._options, self._topics, kafka, servers.zookeeper_address)
            stack.enter_context(self._screen)
            self._sampler.start()
            stack.callback(self._sampler.close)
            counter, prober = self._course.flow(kafka, stack, self._screen)
            record = self._measure(kafka, counter, prober)
        shutil.rmtree(self._folder / "servers", ignore_errors=True)  # logs and model stay
        write_report(record, self._options.report)
        return record

    def _measure(self, kafka: KafkaConnection, counter: PredictCounter, prober: FreshnessProber) -> RunRecord:
        self._course.phase = "measuring"
        live = self._live_totals(kafka)
        samples = list(self._sampler.samples)
        self._course.close_clients()
        trainer = self._processes["trainer"]
        if trainer.stop(60.0) != 0:
            raise ChildProcessError(f"the trainer did not save: {trainer.log_tail()}")
        self._processes.stop()
        summary = self._summary(live, counter, prober)
        curve = []
        if self._scenario.data is not None:
            self._say("drawing AUC against delay")
            curve = figures.delay_curve(self._scenario.data, self._options.delays)
            summary["delay_curve"] = curve
        summary["wall_s"] = round(time.monotonic() - self._began, 1)
        title = f"{self._scenario.title}, on {self._options.runner}"
        return RunRecord(title, summary, samples, self._sampler.marks, prober.latencies_ms().tolist(), curve)

    def _live_totals(self, kafka: KafkaConnection) -> dict[str, int]:
        """Totals that are gone when the processes end."""
        return {
            "rows_dropped": int(self._processes.metrics("feed").get("millrace_feed_rows_dropped_total", 0)),
            "deltas_applied": int(self._sampler.totals.get("deltas_applied", 0)),
            "dead_letters": sum(end for _, end in watermarks(kafka, self._topics.dead_letter).values()),
        }

    def _summary(self, live: dict[str, int], counter: PredictCounter, prober: FreshnessProber) -> dict[str, object]:
        from millrace.training.state.checkpoint import read_audit

        ledger, model_dir = self._folder / "ledger.parquet", self._folder / "model"
        fids, counts = read_audit(model_dir)
        result = audit.audit_rows(figures.sent_fids(ledger, prober.probes), fids, counts, live["rows_dropped"])
        sent = figures.ledger_summary(ledger)
        return {
            "events": int(sent["events"]) + 2 * len(prober.probes),  # type: ignore[call-overload]
            **result.to_json(),
            **figures.auc_figures(ledger, model_dir),
            "freshness_ms": figures.percentiles(prober.latencies_ms(), len(prober.probes)),
            "versions_published": figures.versions_published(model_dir, self._live.versions),
            "deltas_applied": live["deltas_applied"],
            "predictions_ok": counter.ok,
            "predictions_failed": counter.failed,
            "predict_ms": figures.percentiles(np.array(counter.latencies) * 1e3, len(counter.latencies)),
            "trainer_killed": self._course.kills,
            "dead_letters": live["dead_letters"],
            "dead_letters_expected": int(sent.get("bad_records", 0)),  # type: ignore[call-overload]
            "runner": self._options.runner,
        }

    def _say(self, text: str) -> None:
        self._screen.say(f"{self._sampler.elapsed():6.1f} s  {text}")


def _create_topics(kafka: KafkaConnection, names: Topics, model: str) -> None:
    for topic in (names.impressions, names.actions, names.train(model)):
        ensure_topic(kafka, topic, partitions=4)
    for topic in (names.dead_letter, names.serving_status):
        ensure_topic(kafka, topic)
    ensure_deltas(kafka, names.deltas(model))
    ensure_model_events(kafka, names.model_events)


def print_summary(summary: dict[str, object], folder: Path, as_json: bool) -> None:
    """The figures on stdout: JSON for scripts, a table for people."""
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(soft_wrap=True, highlight=False)
    for name, value in summary.items():
        console.print(f"  {name:<22} {value if not isinstance(value, dict | list) else json.dumps(value)}")
    console.print(f"\nreport: {folder / 'report.html'}")
