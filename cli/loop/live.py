"""Figures of a run while it runs: what the processes report, and what the screen shows of it."""

import numpy as np

from millrace.cli.loop.course import Course
from millrace.cli.loop.processes import Processes
from millrace.cli.loop.sampler import Sampler


class LiveFigures:
    """Reads the processes' metrics and remembers the versions that were served. `attach` comes before all else."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sampler: Sampler | None = None
        self._course: Course | None = None
        self.versions: list[float] = []

    def attach(self, sampler: Sampler, course: Course) -> None:
        """Names the sampler that calls `read`, and the course whose phase and clients `view` shows."""
        self._sampler, self._course = sampler, course

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """(gauges, totals) as `Sampler` takes them."""
        assert self._sampler is not None and self._course is not None
        trainer, feed, server = (self._processes.metrics(name) for name in ("trainer", "feed", "server"))
        gauges = {}
        if trainer.get("millrace_progressive_auc", 0.0) > 0:  # 0 until the first row, NaN until both labels were seen
            gauges["auc"] = trainer["millrace_progressive_auc"]
            gauges["log_loss"] = trainer.get("millrace_progressive_log_loss", 0.0)
        version = server.get("millrace_model_version", 0.0)
        if version and version not in self.versions:
            self.versions.append(version)
            self._sampler.mark("version", str(int(version)))
        if version:
            gauges["version"] = version
        gauges["deltas_applied"] = self._sampler.totals.get("deltas_applied", 0.0)
        counter = self._course.counter
        totals = {
            "events": feed.get("millrace_feed_records_read_total"),
            "fed_rows": feed.get("millrace_feed_rows_emitted_total"),
            "trained_rows": trainer.get("millrace_rows_trained_total"),
            "deltas_applied": server.get("millrace_deltas_applied_total"),
            "predictions": float(counter.ok) if counter else None,
        }
        return gauges, {name: total for name, total in totals.items() if total is not None}

    def view(self) -> dict[str, object]:
        """What `Screen` shows: phase, processes, figures and the course of AUC."""
        assert self._sampler is not None and self._course is not None
        samples, counter, prober = self._sampler.samples, self._course.counter, self._course.prober
        last = samples[-1] if samples else {}
        freshness = prober.latencies_ms() if prober else np.array([])
        return {
            "phase": self._course.phase,
            "processes": self._processes.states(),
            "figures": {
                "seconds": f"{self._sampler.elapsed():.0f}",
                "events/s": f"{last.get('events_per_s', 0):,.0f}",
                "rows trained/s": f"{last.get('trained_rows_per_s', 0):,.0f}",
                "AUC": f"{last.get('auc', float('nan')):.3f}",
                "freshness p50": f"{np.median(freshness):,.0f} ms" if len(freshness) else "–",
                "probes": str(len(freshness)),
                "version": str(int(self.versions[-1])) if self.versions else "–",
                "deltas": f"{self._sampler.totals.get('deltas_applied', 0):.0f}",
                "predictions": f"{counter.ok if counter else 0:,} ok, {counter.failed if counter else 0} failed",
            },
            "auc": [s["auc"] for s in samples if "auc" in s and np.isfinite(s["auc"])],
        }
