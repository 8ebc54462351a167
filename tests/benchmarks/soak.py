"""Whether memory stays flat: a feed for ten minutes at 70% of the rate that it keeps up with.

python -m tests.benchmarks.soak [--minutes 10] [--only prism|flink] [--rate EVENTS_A_SECOND]

Prints the resident memory of the feed and of every process that it started, every ten seconds, and its growth after
the first two minutes. Without --rate it looks for the peak rate first.
"""

import argparse
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.servers.dev_servers import DevServers
from tests.benchmarks.bench_feed import LiveFeed, MillraceFeed, find_peak

_SHARE = 0.7
_SAMPLE_SECONDS = 10.0
_SETTLED_SECONDS = 120.0
_LIMIT = 0.05
_RATES = (10_000, 20_000, 30_000, 40_000, 50_000, 60_000)
_STEP_SECONDS = 8.0
_BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Series:
    """Resident memory of one process, MiB, sample by sample."""

    name: str
    mib: list[float] = field(default_factory=list)

    def growth(self, settled: int) -> float:
        """Share by which the last quarter of what comes after `settled` samples is above its first quarter."""
        later = self.mib[settled:]
        part = max(1, len(later) // 4)
        if len(later) < 2 * part:
            return 0.0
        return sum(later[-part:]) / sum(later[:part]) - 1.0

    def line(self, settled: int) -> str:
        low, high = min(self.mib), max(self.mib)
        bars = "".join(_BARS[int((each - low) / max(high - low, 1.0) * (len(_BARS) - 1))] for each in self.mib)
        return f"{self.name:<16} {self.mib[0]:6.0f} -> {self.mib[-1]:6.0f} MiB  {self.growth(settled):+6.1%}  {bars}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", choices=("prism", "flink"))
    parser.add_argument("--rate", type=float, help="events per second; default: 70%% of the peak, which is looked for")
    arguments = parser.parse_args()
    grown = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = DevServers(Path(name) / "servers", progress=lambda text: print(text, file=sys.stderr))
        stack.callback(servers.down)
        servers.kafka.start()
        kafka = KafkaConnection(servers.kafka.address or "")
        for runner in (arguments.only,) if arguments.only else ("prism", "flink"):
            grown += _soak(MillraceFeed(kafka, Path(name), runner), 60.0 * arguments.minutes, arguments.rate)
    print("flat" if not grown else f"grew by more than {_LIMIT:.0%}: {', '.join(grown)}", flush=True)
    return 1 if grown else 0


def _soak(feed: LiveFeed, seconds: float, rate: float | None) -> list[str]:
    """Names of the processes that grew."""
    try:
        feed.start(_RATES[0])
        chosen = rate or _SHARE * find_peak(feed, _RATES, _STEP_SECONDS)
        if not chosen:
            raise RuntimeError(f"{feed.runner} keeps up with no rate")
        print(f"{feed.runner}: {chosen:,.0f} events/s for {seconds / 60:g} minutes", flush=True)
        series = _watch(feed, chosen, seconds)
    finally:
        feed.stop()
    settled = min(round(_SETTLED_SECONDS / _SAMPLE_SECONDS), max(1, round(seconds / _SAMPLE_SECONDS / 5)))
    for each in series:
        print(each.line(settled), flush=True)
    return [f"{feed.runner} {each.name}" for each in series if each.growth(settled) > _LIMIT]


def _watch(feed: LiveFeed, rate: float, seconds: float) -> list[Series]:
    """Sends events and reads rows meanwhile; the processes are those there are at the start."""
    processes = {pid: Series(name) for pid, name in _family(feed.process.pid).items()}
    done = threading.Event()
    errors: list[Exception] = []

    def send() -> None:
        try:
            feed.run(rate, seconds)
        except Exception as error:  # the main thread reports it
            errors.append(error)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    deadline = Deadline(seconds)
    while not deadline.expired() and not done.wait(_SAMPLE_SECONDS):
        for pid, series in processes.items():
            series.mib.append(_resident_mib(pid))
        print("  ".join(f"{each.name} {each.mib[-1]:.0f}" for each in processes.values()), "MiB", flush=True)
    sender.join()
    if errors:
        raise errors[0]
    return [series for series in processes.values() if series.mib]


def _family(pid: int) -> dict[int, str]:
    """{pid: name} of a process and all its descendants."""
    found = {pid: Path(f"/proc/{pid}/comm").read_text("utf-8").strip()}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text("ascii").split():
            found |= _family(int(child))
    return found


def _resident_mib(pid: int) -> float:
    """0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
