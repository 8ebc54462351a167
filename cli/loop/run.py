"""One run of the loop on this machine: servers, processes, a course, and the record of what came of it."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console

from millrace.cli.loop import audit, figures
from millrace.cli.loop.course import Course
from millrace.cli.loop.freshness import Probe
from millrace.cli.loop.live import LiveFigures
from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.patience import StalledError
from millrace.cli.loop.processes import Processes
from millrace.cli.loop.report import RunRecord, write_report
from millrace.cli.loop.sampler import Sampler
from millrace.cli.loop.scenario import Scenario
from millrace.cli.loop.screen import Screen
from millrace.runtime.child_process import ChildProcessError
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, watermarks
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topic_setup import ensure_deltas, ensure_model_events
from millrace.runtime.topics import Topics

_LOG = logging.getLogger(__name__)
_SAVE_SECONDS = 600.0  # a last checkpoint takes a second; only a trainer that hangs takes longer
_SCRAPE_SECONDS = 120.0


class LoopRun:
    """One run: `run()` writes the report, of what there is, and returns the record that it is made of.

    Raises:
      ChildProcessError: a process did not start; the message has the end of its log.
    """

    def __init__(self, scenario: Scenario, options: LoopOptions, console: Console | None = None) -> None:
        self._scenario, self._options = scenario, options
        self._folder = options.state.absolute() / time.strftime("%Y%m%d-%H%M%S")
        self._topics = Topics(f"demo-{os.getpid()}.")
        self._ledger = self._folder / "ledger.parquet"
        self._unfinished: list[str] = []
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
            try:
                self._course.flow(kafka, stack, self._screen)
            except (ChildProcessError, StalledError) as error:
                self._unfinished.append(str(error))
            except Exception as error:  # whatever it is: the report tells what there is
                _LOG.debug("%s", self._course.phase, exc_info=True)
                self._unfinished.append(f"while {self._course.phase}: {type(error).__name__}: {error}")
            record = self._measure(kafka)
        if not self._unfinished:
            shutil.rmtree(self._folder / "servers", ignore_errors=True)  # logs and model stay
        write_report(record, self._options.report)
        return record

    def _measure(self, kafka: KafkaConnection) -> RunRecord:
        """The record of what there is; what does not come to its end is told in it."""
        self._course.phase = "measuring"
        summary: dict[str, object] = {}
        live: dict[str, int] = {}
        self._try("the totals of the processes", lambda: live.update(self._live_totals(kafka)))
        samples = list(self._sampler.samples)
        self._course.close_clients()
        self._try("the trainer's last checkpoint", self._stop_trainer)
        self._processes.stop()
        self._try("the figures of what was sent", lambda: summary.update(self._sent()))
        self._try("the audit", lambda: summary.update(self._audit(live)))
        self._try("AUC", lambda: summary.update(self._auc()))
        expected = summary.pop("dead_letters_expected", None)  # beside the letters that came
        summary |= self._served(live) | ({} if expected is None else {"dead_letters_expected": expected})
        curve: list[dict[str, float | None]] = []
        if self._scenario.data is not None and not self._unfinished:
            self._say("drawing AUC against delay")
            curve = figures.delay_curve(self._scenario.data, self._options.delays)
            summary["delay_curve"] = curve
        summary["wall_s"] = round(time.monotonic() - self._began, 1)
        if self._unfinished:
            summary["unfinished"] = self._unfinished
        title = f"{self._scenario.title}, on {self._options.runner}"
        latencies = self._course.prober.latencies_ms().tolist() if self._course.prober else []
        return RunRecord(title, summary, samples, self._sampler.marks, latencies, curve, self._unfinished)

    def _try(self, what: str, do: Callable[[], object]) -> None:
        """Does it, or notes that it could not be done; after a failure, figures that need what is missing fail too."""
        try:
            do()
        except Exception as error:
            _LOG.debug("%s", what, exc_info=True)
            self._unfinished.append(f"{what}: {error or type(error).__name__}")

    def _stop_trainer(self) -> None:
        self._processes.end("trainer", _SAVE_SECONDS)

    def _live_totals(self, kafka: KafkaConnection) -> dict[str, int]:
        """Totals that are gone when the processes end."""
        fed: dict[str, float] = {}

        def answers() -> bool:
            fed.update(self._processes.metrics("feed"))
            return bool(fed)

        wait_until(answers, _SCRAPE_SECONDS, "the feed's metrics")
        return {
            "rows_dropped": int(fed.get("millrace_feed_rows_dropped_total", 0)),
            "deltas_applied": int(self._sampler.totals.get("deltas_applied", 0)),
            "dead_letters": sum(end for _, end in watermarks(kafka, self._topics.dead_letter).values()),
        }

    def _probes(self) -> list[Probe]:
        return self._course.prober.probes if self._course.prober else []

    def _sent(self) -> dict[str, object]:
        sent = figures.ledger_summary(self._ledger)
        return {
            "events": int(sent["events"]) + 2 * len(self._probes()),  # type: ignore[call-overload]
            "dead_letters_expected": int(sent.get("bad_records", 0)),  # type: ignore[call-overload]
        }

    def _audit(self, live: dict[str, int]) -> dict[str, object]:
        from millrace.training.state.checkpoint import read_audit

        fids, counts = read_audit(self._folder / "model")
        sent = figures.sent_fids(self._ledger, self._probes())
        passed_over = self._course.scene.passed_over if self._course.scene else None
        return dict(audit.audit_rows(sent, fids, counts, live["rows_dropped"], passed_over).to_json())

    def _auc(self) -> dict[str, object]:
        return dict(figures.auc_figures(self._ledger, self._folder / "model"))

    def _served(self, live: dict[str, int]) -> dict[str, object]:
        counter, prober = self._course.counter, self._course.prober
        summary: dict[str, object] = {
            "versions_published": figures.versions_published(self._folder / "model", self._live.versions),
            **self._course.results,
            **{name: live[name] for name in ("deltas_applied", "dead_letters") if name in live},
            "runner": self._options.runner,
        }
        if prober is not None:
            aside = sum(probe.is_set_aside for probe in prober.probes)
            freshness = figures.percentiles(prober.latencies_ms(), len(prober.probes) - aside)
            summary["freshness_ms"] = freshness | ({"set_aside": aside} if aside else {})
        if counter is not None:
            summary |= {
                "predictions_ok": counter.ok,
                "predictions_failed": counter.failed,
                "predict_ms": figures.percentiles(np.array(counter.latencies) * 1e3, len(counter.latencies)),
            }
        return summary

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
