"""One row of figures per second, scraped from the processes' own `/metrics`."""

import threading
import time
import urllib.request
from collections.abc import Callable, Mapping

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_SECONDS = 1.0


def scrape(address: str) -> dict[str, float]:
    """{sample name: sum over its labels} of the endpoint at `host:port`; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_SECONDS) as response:
            text = response.read().decode("utf-8")
    except OSError:
        return {}
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


class Sampler:
    """Calls `read` every second; keeps its gauges as they are and turns its totals into rates.

    Args:
      read: returns (gauges, totals); a total that falls (a restarted process) counts from zero again.
    """

    def __init__(self, read: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]) -> None:
        self._read = read
        self._start = time.monotonic()
        self._last: dict[str, float] = {}
        self._last_at = self._start
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self.samples: list[dict[str, float]] = []
        self.marks: list[dict[str, object]] = []
        self.totals: dict[str, float] = {}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def mark(self, kind: str, label: str) -> None:
        self.marks.append({"t": round(self.elapsed(), 2), "kind": kind, "label": label})

    def _loop(self) -> None:
        while not self._stop.wait(1.0):
            self._sample()

    def _sample(self) -> None:
        gauges, totals = self._read()
        now = time.monotonic()
        sample = {"t": round(now - self._start, 2), **gauges}
        for name, total in totals.items():
            grown = total - self._last.get(name, 0.0)
            grown = total if grown < 0 else grown
            self.totals[name] = self.totals.get(name, 0.0) + grown
            sample[f"{name}_per_s"] = grown / (now - self._last_at)
            self._last[name] = total
        self._last_at = now
        self.samples.append(sample)
