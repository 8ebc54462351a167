"""The feed from outside: how many events it keeps up with, how late rows are at half of that, and a bounded run.

python tests/benchmarks/bench_feed.py [--json] [--seconds 8] [--only prism|flink|direct] [--rates 10000,20000]

Live, the rate goes up by steps until rows fall behind. Beside each case: the same feed in the usual Beam way
(`peer_feed.py`), in the same run, on the same brokers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from millrace.examples.feed_ranking import FeedRanking
from millrace.pipelines.feed.launch import run_feed
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, watermarks
from millrace.runtime.kafka_records import PartitionReader
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.sampling import positive_rows
from tests.benchmarks.feed_load import PARTITIONS, Load
from tests.benchmarks.peer_feed import WINDOW_SECONDS

_TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")
_RATES = (10_000, 20_000, 30_000, 40_000, 50_000, 60_000)
_PEER_RATES = (50, 100, 200, 400, 800, 1600)
_LATE_MS = 2000.0  # rows that are later than this at the end of a step have fallen behind
_START_SECONDS = 120.0
_BOUNDED_EVENTS, _PEER_EVENTS = 600_000, 60_000
# First bundles load code and open clients; they tell nothing about the rest.
_WARM_SECONDS = 5.0

Case = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each step, and of the case at half of the peak")
    parser.add_argument("--only", choices=("prism", "flink", "direct"))
    parser.add_argument("--rates", type=_rates, default=_RATES, help="events per second of the steps")
    parser.add_argument("--peer-rates", type=_rates, default=_PEER_RATES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = DevServers(Path(name) / "servers", progress=lambda text: print(text, file=sys.stderr))
        stack.callback(servers.down)
        servers.kafka.start()
        kafka = KafkaConnection(servers.kafka.address or "")
        for case in _cases(kafka, Path(name), arguments):
            print(json.dumps(case) if arguments.json else _line(case), flush=True)


def _rates(text: str) -> tuple[int, ...]:
    return tuple(int(rate) for rate in text.split(","))


def _line(case: Case) -> str:
    extra = "  ".join(f"{k}={v}" for k, v in case.items() if k not in ("case", "value", "unit"))
    return f"{case['case']!s:<52} {case['value']:>12,.0f} {case['unit']}  {extra}"


def _cases(kafka: KafkaConnection, folder: Path, arguments: argparse.Namespace) -> Iterator[Case]:
    for runner in ("prism", "flink"):
        if arguments.only in (None, runner):
            yield from live_cases(MillraceFeed(kafka, folder, runner), arguments.rates, arguments.seconds)
            yield from live_cases(PeerFeed(kafka, folder, runner), arguments.peer_rates, arguments.seconds)
    if arguments.only in (None, "direct"):
        yield from _bounded_cases(kafka, folder)


class LiveFeed:
    """A feed process that reads live events, and this process at the end of its train topic."""

    kind = ""

    def __init__(self, kafka: KafkaConnection, folder: Path, runner: str) -> None:
        self.runner, self._kafka = runner, kafka
        self._folder = folder / f"{self.kind}-{runner}"
        self._folder.mkdir()
        self._topics = Topics(f"{self.kind}.{runner}.")
        create_topics(kafka, self._topics)
        self._load = Load(kafka, self._topics)
        self.process = ChildProcess("feed", self._command(), self._folder)
        train = self._topics.train(self._train())
        self._reader = PartitionReader(kafka, {(train, partition): 0 for partition in range(PARTITIONS)})

    def start(self, rate: float) -> None:
        """Returns when it has taken `rate` events per second for a while."""
        self.process.start()
        self.process.wait_ready(_START_SECONDS)
        self.run(rate, _WARM_SECONDS)

    def run(self, rate: float, seconds: float) -> tuple[np.ndarray, float]:
        """Sends `rate` events per second; returns (ms from click to row, of the second half of the time, rate reached).

        Empty when no row came at all. The feed must not have ended.
        """
        reached: list[float] = []
        sender = threading.Thread(target=lambda: reached.append(self._load.send_for(rate, seconds)))
        sender.start()
        self._read(seconds / 2)
        late = self._read(seconds / 2)
        sender.join()
        if not self.process.running():
            raise RuntimeError(f"the feed ended: {self.process.log_tail()}")
        return late, reached[0]

    def drain(self, seconds: float) -> None:
        """Reads what is still on its way, for at most `seconds`; until nothing comes."""
        deadline = Deadline(seconds)
        while not deadline.expired() and len(self._read(WINDOW_SECONDS)):
            pass

    def stop(self) -> None:
        self.process.stop()
        self._reader.close()

    def _read(self, seconds: float) -> np.ndarray:
        deadline, found = Deadline(seconds), [np.zeros(0)]
        while not deadline.expired():
            blocks = self._reader.read(2000, 0.02)
            now_ms = time.time() * 1000
            found += [now_ms - self._clicks(value or b"") for block in blocks for value in block.values]
        return np.concatenate(found)

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _train(self) -> str:
        """The model of the train topic."""
        raise NotImplementedError

    def _clicks(self, value: bytes) -> np.ndarray:
        """From when on the rows of a train record with a click could be there, ms."""
        raise NotImplementedError


class MillraceFeed(LiveFeed):
    """`millrace feed`."""

    kind = "millrace"

    def _command(self) -> list[str]:
        address = ("--kafka", self._kafka.bootstrap_servers, "--topic-prefix", self._topics.prefix)
        window = ("--window-seconds", str(WINDOW_SECONDS), "--start", "earliest")
        runner = ("--runner", self.runner, "--work-dir", str(self._folder / "work"))
        return [sys.executable, "-m", "millrace.cli.main", "feed", *_TASK, *address, *window, *runner]

    def _train(self) -> str:
        return FeedRanking.name

    def _clicks(self, value: bytes) -> np.ndarray:
        batch = record_batch.from_bytes(value)
        acted = positive_rows(batch.column(record_batch.LABEL))
        return batch.column(record_batch.EVENT_TIME_MS).to_numpy()[acted]


class PeerFeed(LiveFeed):
    """`peer_feed.py`; its rows leave when their window closes, so that lateness counts from there."""

    kind = "usual-beam"

    def _command(self) -> list[str]:
        address = ("--kafka", self._kafka.bootstrap_servers, "--prefix", self._topics.prefix)
        return [sys.executable, "-m", "tests.benchmarks.peer_feed", *address, "--runner", self.runner]

    def _train(self) -> str:
        return "peer"

    def _clicks(self, value: bytes) -> np.ndarray:
        row = json.loads(value)
        return np.array([row["due_ms"]] if row["label"] else [])


def live_cases(feed: LiveFeed, rates: Sequence[int], seconds: float) -> Iterator[Case]:
    """The peak rate, and the latencies at half of it."""
    try:
        feed.start(rates[0])
        peak = find_peak(feed, rates, seconds)
        yield {"case": f"{feed.kind}, {feed.runner}, sustained", "value": peak, "unit": "events/s"}
        if not peak:
            return
        feed.drain(4 * seconds)
        late, reached = feed.run(peak / 2, 2 * seconds)
        for quantile in (50, 99):
            yield {
                "case": f"{feed.kind}, {feed.runner}, half of the peak, p{quantile}",
                "value": round(float(np.percentile(late, quantile)), 1) if len(late) else float("inf"),
                "unit": "ms",
                "events_per_second": round(reached),
                "n": len(late),
            }
    finally:
        feed.stop()


def find_peak(feed: LiveFeed, rates: Sequence[int], seconds: float) -> int:
    """The highest of the ascending `rates` at which rows did not fall behind; 0 if there is none."""
    peak = 0
    for rate in rates:
        late, reached = feed.run(rate, seconds)
        if not len(late) or float(np.median(late)) > _LATE_MS or reached < 0.95 * rate:
            break
        peak = rate
    return peak


def _bounded_cases(kafka: KafkaConnection, folder: Path) -> Iterator[Case]:
    """Kafka to Kafka, what Beam takes to start included."""
    topics = Topics("direct.")
    create_topics(kafka, topics)
    load = Load(kafka, topics)
    for _ in range(_BOUNDED_EVENTS // 10_000):
        load.send(10_000)
    load.end()
    source = KafkaSettings(kafka, topics, start="earliest", until="end")
    began = time.perf_counter()
    counters = run_feed(FeedOptions(FeedRanking().feed_config(), source, runner="direct"), threading.Event())
    elapsed, events = time.perf_counter() - began, counters["records_read"]
    yield {
        "case": "millrace, direct, bounded, Kafka to Kafka",
        "value": round(events / elapsed),
        "unit": "events/s",
        "events": events,
        "rows": counters["rows_emitted_positive"] + counters["rows_emitted_negative"],
    }
    yield _bounded_peer(kafka, topics)


def _bounded_peer(kafka: KafkaConnection, topics: Topics) -> Case:
    limit = _PEER_EVENTS // (2 * PARTITIONS)
    command = ["-m", "tests.benchmarks.peer_feed", "--kafka", kafka.bootstrap_servers, "--prefix", topics.prefix]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *command, "--runner", "direct", "--until-end", "--limit", str(limit)], check=True, timeout=300
    )
    elapsed = time.perf_counter() - began
    read = (topics.impressions, topics.actions)
    ends = [high for topic in read for _, high in watermarks(kafka, topic).values()]
    events = sum(min(limit, end) for end in ends)
    return {
        "case": "usual Beam, direct, bounded, Kafka to Kafka",
        "value": round(events / elapsed),
        "unit": "events/s",
        "events": events,
    }


def create_topics(kafka: KafkaConnection, topics: Topics) -> None:
    for topic in (topics.impressions, topics.actions, topics.train(FeedRanking.name), topics.train("peer")):
        ensure_topic(kafka, topic, PARTITIONS)


if __name__ == "__main__":
    main()
