"""The feed from outside: from an action's sending to its row in the train topic, and the speed of a bounded run.

python tests/benchmarks/bench_feed.py [--json] [--seconds 12] [--only prism|flink|direct]
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from examples.feed_ranking import FeedRanking
from pipelines.launch import run_feed
from pipelines.options import FeedOptions, KafkaSettings
from runtime.child_process import ChildProcess
from runtime.deadline import Deadline
from runtime.dev_servers import DevServers
from runtime.kafka_client import KafkaConnection, ensure_topic
from runtime.topic_reader import TopicReader
from runtime.topics import Topics
from transforms import record_batch
from transforms.sampling import positive_rows

_TASK = ("--task", "examples.feed_ranking:FeedRanking")
_LIVE = (("prism", 1000), ("prism", 5000), ("flink", 1000))
_PARTITIONS = 4
_START_SECONDS = 120.0
# First bundles load code and open clients; they tell nothing about the rest.
_WARM_SECONDS = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=12.0, help="measured time of a live case")
    parser.add_argument("--only", choices=("prism", "flink", "direct"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        servers = DevServers(Path(name) / "servers", progress=lambda text: print(text, file=sys.stderr))
        stack.callback(servers.down)
        servers.up()
        for case in _cases(KafkaConnection(servers.kafka_address), Path(name), arguments.seconds, arguments.only):
            if arguments.json:
                print(json.dumps(case), flush=True)
            else:
                extra = "  ".join(f"{k}={v}" for k, v in case.items() if k not in ("case", "value", "unit"))
                print(f"{case['case']!s:<44} {case['value']:>12,.0f} {case['unit']}  {extra}", flush=True)


def _cases(kafka: KafkaConnection, folder: Path, seconds: float, only: str | None) -> Iterator[dict[str, object]]:
    for runner, rate in _LIVE:
        if only in (None, runner):
            latencies, reached = _LiveCase(kafka, folder / f"{runner}-{rate}", runner, rate, seconds).run()
            for quantile in (50, 99):
                yield {
                    "case": f"action to train row, {runner}, {rate} events/s, p{quantile}",
                    "value": round(float(np.percentile(latencies, quantile)), 1),
                    "unit": "ms",
                    "n": len(latencies),
                    "events_per_second": reached,
                }
    if only in (None, "direct"):
        yield _bounded_case(kafka, folder / "direct")


class _LiveCase:
    """A feed process, a producer process, and this process at the end of the train topic."""

    def __init__(self, kafka: KafkaConnection, folder: Path, runner: str, rate: int, seconds: float) -> None:
        folder.mkdir()
        self._kafka, self._topics, self._seconds = kafka, Topics(f"{runner}-{rate}."), seconds
        _create_topics(kafka, self._topics)
        common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", self._topics.prefix)
        self._feed = _command(
            folder, "feed", *_TASK, *common, "--runner", runner, "--work-dir", str(folder / "work")
        )  # fmt: skip
        self._ledger = folder / "ledger.parquet"
        self._producer = _command(
            folder, "events", "generate", *common, "--rate", str(rate), "--ledger", str(self._ledger)
        )  # fmt: skip

    def run(self) -> tuple[np.ndarray, float]:
        """(latencies of positive rows in ms, events a second that were sent)."""
        reader = TopicReader(self._kafka, self._topics.train(FeedRanking.name), dict.fromkeys(range(_PARTITIONS), 0))
        try:
            self._feed.start()
            self._feed.wait_ready(_START_SECONDS)
            self._producer.start()
            self._producer.wait_ready(_START_SECONDS)
            self._read(reader, _WARM_SECONDS)
            latencies = self._read(reader, self._seconds)
            if not self._feed.running():
                raise RuntimeError(f"the feed ended: {self._feed.log_tail()}")
        finally:
            self._producer.stop()
            self._feed.stop()
            reader.close()
        if not len(latencies):
            raise RuntimeError(f"no row arrived: {self._feed.log_tail()}")
        return latencies, json.loads(self._ledger.with_suffix(".json").read_text("utf-8"))["events_per_second"]

    def _read(self, reader: TopicReader, seconds: float) -> np.ndarray:
        deadline, found = Deadline(seconds), [np.zeros(0)]
        while not deadline.expired():
            records = reader.read()
            now_ms = time.time() * 1000
            for record in records:
                batch = record_batch.decode_ipc(record.value or b"")
                acted = positive_rows(batch.column(record_batch.LABEL))
                found.append(now_ms - batch.column(record_batch.EVENT_TIME_MS).to_numpy()[acted])
        return np.concatenate(found)


def _bounded_case(kafka: KafkaConnection, folder: Path) -> dict[str, object]:
    """Kafka to Kafka in this process, what Beam takes to start included."""
    folder.mkdir()
    topics = Topics("direct.")
    _create_topics(kafka, topics)
    common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
    producer = _command(folder, "events", "generate", *common, "--rate", "15000", "--duration", "8")
    producer.start()
    try:
        producer.wait(_START_SECONDS)
    finally:
        producer.stop()
    source = KafkaSettings(kafka, topics, start="earliest", until="end")
    began = time.perf_counter()
    counters = run_feed(FeedOptions(FeedRanking().feed_config(), source, runner="direct"), threading.Event())
    elapsed, events = time.perf_counter() - began, counters["records_read"]
    return {
        "case": "bounded, direct, Kafka to Kafka",
        "value": round(events / elapsed),
        "unit": "events/s",
        "events": events,
        "rows": counters["rows_emitted_positive"] + counters["rows_emitted_negative"],
    }


def _create_topics(kafka: KafkaConnection, topics: Topics) -> None:
    for topic in (topics.impressions, topics.actions, topics.train(FeedRanking.name)):
        ensure_topic(kafka, topic, _PARTITIONS)


def _command(folder: Path, *words: str) -> ChildProcess:
    return ChildProcess(words[0], [sys.executable, "-m", "cli.main", *words], folder)


if __name__ == "__main__":
    main()
