"""Kills, restarts and resubmits a feed while events flow, and counts what a trainer would apply.

python -m tests.chaos.run [--seeds 20] [--only prism|flink] [--seed N]

Each seed gets a broker of its own. A scenario passes when every row of the ledger is applied exactly once, no other one
is, and every bad record has its dead letter.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from millrace.runtime.deadline import Deadline, wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.runtime.topics import Topics
from tests.chaos.audit import Audit, TrainTopicAudit, count_dead_letters, ledger_rows
from tests.chaos.feeds import FEEDS, Feed, millrace
from tests.chaos.scenario import FaultKind, Runner, Scenario, scenario_of

_PARTITIONS = 4
_WINDOW_SECONDS = 1.0
_READY_SECONDS = 120.0
_DRAIN_SECONDS = 120.0
_QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Result:
    """The outcome of a scenario; `problem` is "" when it passed."""

    scenario: Scenario
    audit: Audit | None
    seconds: float
    problem: str

    def line(self) -> str:
        audit = self.audit
        counts = ["-"] * 6
        if audit is not None:
            letters = f"{audit.dead_letters}/{audit.dead_letters_sent}"
            counts = [*map(str, (audit.sent, audit.applied, audit.repeated, audit.lost, audit.unknown)), letters]
        columns = _columns(self.scenario.name, *counts, f"{self.seconds:.0f} s")
        return f"{columns}  {self.problem or 'ok'}: {self.scenario.describe()}"


def _columns(*cells: str) -> str:
    return "  ".join(f"{cell:>8}" for cell in cells)


HEADER = _columns("seed", "sent", "applied", "repeated", "lost", "unknown", "letters", "time")


def run_scenario(scenario: Scenario, folder: Path) -> Result:
    """Runs it in `folder`, which keeps the logs."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    server = KafkaServer(folder / "kafka", lambda _: None)
    audit, problem = None, ""
    try:
        server.start()
        audit = _Run(scenario, server, folder).result()
        problem = "" if audit.clean else "FAILED"
    except (AssertionError, OSError, RuntimeError, ValueError) as error:  # the others must still run
        problem = f"FAILED: {str(error).splitlines()[0][:200]}"
    finally:
        server.stop()
    return Result(scenario, audit, time.monotonic() - began, problem)


class _Run:
    """One scenario on a broker that runs."""

    def __init__(self, scenario: Scenario, server: KafkaServer, folder: Path) -> None:
        self._scenario, self._server = scenario, server
        self._kafka, self._topics = KafkaConnection(server.address or ""), Topics("chaos.")
        for topic in (self._topics.impressions, self._topics.actions, self._topics.train("feed")):
            ensure_topic(self._kafka, topic, _PARTITIONS, {"max.message.bytes": "8000000"})
        window = ("--window-seconds", str(_WINDOW_SECONDS))
        flags = (*window, "--negative-rate", "1")
        self._feed: Feed = FEEDS[scenario.runner](self._kafka, self._topics, folder, flags)
        self._ledger = folder / "ledger.parquet"
        self._producer = millrace(
            folder, "events", "events", "generate", "--kafka", self._kafka.bootstrap_servers,
            "--topic-prefix", self._topics.prefix, *window, "--rate", str(scenario.rate), "--seed", str(scenario.seed),
            "--bad-records", "5", "--ledger", str(self._ledger),
        )  # fmt: skip

    def result(self) -> Audit:
        train = TrainTopicAudit(self._kafka, self._topics.train("feed"))
        try:
            self._feed.start()
            self._producer.start()
            self._producer.wait_ready(_READY_SECONDS)
            self._strike(train)
            if self._producer.stop(60.0) != 0:
                raise RuntimeError(f"the producer failed: {self._producer.log_tail()[-500:]}")
            self._drain(train)
            self._feed.check()
            return train.against(self._ledger, self._dead_letters())
        finally:
            self._producer.stop()
            self._feed.close()
            train.close()

    def _strike(self, train: TrainTopicAudit) -> None:
        faults: dict[FaultKind, Callable[[], None]] = {
            "kill feed": self._feed.kill_feed,
            "kill worker": self._feed.kill_worker,
            "kill broker": self._kill_broker,
            "restart broker": self._server.restart,
            "resubmit": self._feed.resubmit,
        }
        for fault in self._scenario.faults:
            self._read_more(train)
            self._read_for(train, fault.after_seconds)
            faults[fault.kind]()
        self._read_for(train, self._scenario.seconds)

    def _kill_broker(self) -> None:
        self._server.kill()
        self._server.restart()  # on the same port, which start() does not promise

    def _read_more(self, train: TrainTopicAudit) -> None:
        """Waits for a row: on Flink, Beam waits for ever for a worker that is killed while it starts."""
        before = train.applied
        wait_until(lambda: train.read() > before, _READY_SECONDS, "rows")

    def _read_for(self, train: TrainTopicAudit, seconds: float) -> None:
        deadline = Deadline(seconds)
        while not deadline.expired():
            train.read()
            self._feed.check()

    def _drain(self, train: TrainTopicAudit) -> None:
        """Waits for all rows, or `_DRAIN_SECONDS`; then reads on for rows that come more than once."""
        rows, deadline = len(ledger_rows(self._ledger)), Deadline(_DRAIN_SECONDS)
        while train.read() < rows and not deadline.expired():
            self._feed.check()
        quiet = Deadline(_QUIET_SECONDS)
        while not quiet.expired():
            train.read()

    def _dead_letters(self) -> int:
        topic, found = self._topics.dead_letter, [0]

        def all_there() -> bool:
            found[0] = count_dead_letters(self._kafka, topic)
            return found[0] >= _bad_records(self._ledger)

        try:
            wait_until(all_there, _QUIET_SECONDS, "every dead letter", 0.5)
        except TimeoutError:
            pass  # the audit tells how many are missing
        return found[0]


def _bad_records(ledger: Path) -> int:
    return int(json.loads(ledger.with_suffix(".json").read_text("utf-8"))["bad_records"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="scenarios in all, over both runners (default: 20)")
    parser.add_argument("--only", choices=("prism", "flink"))
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--keep", type=Path, help="folder for the logs; default: a temporary one that is removed")
    arguments = parser.parse_args()
    runners: tuple[Runner, ...] = (arguments.only,) if arguments.only else ("prism", "flink")
    seeds = range(arguments.seeds // len(runners)) if arguments.seed is None else [arguments.seed]
    print(HEADER, flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        for seed in seeds:
            for runner in runners:
                scenario = scenario_of(runner, seed)
                result = run_scenario(scenario, folder / scenario.name)
                failed += bool(result.problem)
                print(result.line(), flush=True)
    print("all passed" if not failed else f"{failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
