"""A broker, a feed on a runner, and producers of events; a trainer's reading of the train topic counts every row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import Deadline, wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, make_admin
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.runtime.topics import Topics
from tests.chaos.audit import Audit, Ledger, TrainTopicAudit, count_dead_letters, source_of
from tests.chaos.feeds import FEEDS, Feed, millrace
from tests.chaos.scenario import Runner

PARTITIONS = 4
READY_SECONDS = 600.0  # quiet: 10 s; a busy machine takes minutes, and a process that has ended is told at once
_DRAIN_SECONDS = 300.0  # without a row
_QUIET_SECONDS = 3.0
_TOPIC = {"max.message.bytes": "8000000"}


class FeedWorld:
    """Starts with a feed that reads and nothing sent; `close` stops every process but the broker.

    Args:
      window_seconds: of the feed's join.
      flags: more flags of `millrace feed`.
      env: of the processes in which rows are made.
    """

    def __init__(
        self,
        runner: Runner,
        server: KafkaServer,
        folder: Path,
        window_seconds: float = 1.0,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.server, self._folder = server, folder
        self.kafka, self.topics = KafkaConnection(server.address or ""), Topics("chaos.")
        self.train_topic = self.topics.train("feed")
        for topic in (self.topics.impressions, self.topics.actions, self.train_topic):
            ensure_topic(self.kafka, topic, PARTITIONS, _TOPIC)
        self._window = ("--window-seconds", str(window_seconds))
        all_flags = (*self._window, "--negative-rate", "1", *flags)
        self.feed: Feed = FEEDS[runner](self.kafka, self.topics, folder, all_flags, env)
        self.train = TrainTopicAudit(self.kafka, self.train_topic)
        self._producer: ChildProcess | None = None
        self.ledgers: list[Ledger] = []

    def __enter__(self) -> "FeedWorld":
        try:
            self.feed.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, rate: int, seed: int = 0, bad_records: int = 5) -> None:
        """Starts a producer of `rate` events per second; another one than before has another `seed`."""
        ledger = Ledger(self._folder / f"ledger-{seed}.parquet", source_of(self.kafka, self.topics.impressions))
        self._producer = millrace(
            self._folder, f"events-{seed}", "events", "generate", "--kafka", self.kafka.bootstrap_servers,
            "--topic-prefix", self.topics.prefix, *self._window, "--rate", str(rate), "--seed", str(seed),
            "--bad-records", str(bad_records), "--ledger", str(ledger.path),
        )  # fmt: skip
        self._producer.start()
        self._producer.wait_ready(READY_SECONDS)
        self.ledgers.append(ledger)

    def stop_sending(self) -> None:
        """Returns when all that was sent is acknowledged."""
        if self._producer is not None and self._producer.stop(60.0) != 0:
            raise RuntimeError(f"the producer failed: {self._producer.log_tail()[-500:]}")
        self._producer = None

    def read_more(self) -> None:
        """Waits for a row: on Flink, Beam waits for ever for a worker that is killed while it starts."""
        before = self.train.applied
        wait_until(lambda: self._read() > before, READY_SECONDS, "rows")

    def read_for(self, seconds: float) -> None:
        """Reads the train topic for so long."""
        deadline = Deadline(seconds)
        while not deadline.expired():
            self._read()

    def make_anew(self, topic: str) -> None:
        """Deletes the topic and makes it again."""
        admin = make_admin(self.kafka)  # a variable: futures are cancelled with their client
        admin.delete_topics([topic], operation_timeout=30)[topic].result()
        wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, READY_SECONDS, f"{topic} is gone")
        ensure_topic(self.kafka, topic, PARTITIONS, _TOPIC)

    def drain(self) -> None:
        """Waits until all rows have come, or none for a long time; then reads on for rows that come more than once."""
        rows = sum(len(ledger.rows()[0]) for ledger in self.ledgers)
        seen, deadline = self._read(), Deadline(_DRAIN_SECONDS)
        while seen < rows and not deadline.expired():
            now = self._read()
            if now > seen:
                seen, deadline = now, Deadline(_DRAIN_SECONDS)
        self.read_for(_QUIET_SECONDS)

    def audit(self, labels: bool = False) -> Audit:
        """Stops the producer, drains and counts; `labels`: also compares the labels with what was sent in time."""
        self.stop_sending()
        self.drain()
        if labels and any(ledger.summary["undelivered"] for ledger in self.ledgers):
            raise RuntimeError("actions were not delivered: their rows' labels are not known")
        return self.train.against(self.ledgers, self._dead_letters(), labels)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.stop()
        self.feed.close()
        self.train.close()

    def _read(self) -> int:
        self.feed.check()
        return self.train.read()

    def _dead_letters(self) -> int:
        sent, found = sum(ledger.summary["bad_records"] for ledger in self.ledgers), [0]

        def all_there() -> bool:
            found[0] = count_dead_letters(self.kafka, self.topics.dead_letter)
            return found[0] >= sent

        try:
            wait_until(all_there, _QUIET_SECONDS, "every dead letter", 0.5)
        except TimeoutError:
            pass  # the audit tells how many are missing
        return found[0]
