"""A broker, train blocks that are sent without pause, trainers that count what they learn, and servers of the model."""

import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import Deadline, wait_until
from millrace.runtime.kafka_client import (
    KafkaConnection,
    UndeliveredError,
    ensure_topic,
    make_admin,
    make_producer,
    watermarks,
)
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.runtime.topics import Topics
from millrace.training.state.checkpoint import newest_manifest, read_audit
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.provenance import provenance_of
from tests.chaos.audit import Audit
from tests.chaos.feed_world import PARTITIONS, READY_SECONDS
from tests.chaos.feeds import TASK, millrace
from tests.fakes.train_blocks import make_batch

MODEL_TASK = FeedRanking()
_RECORDS = 10  # source records of a block
_BLOCK_SECONDS = 0.05
_DRAIN_SECONDS = 300.0  # without a row
_FLUSH_SECONDS = 120.0
_SOURCE_PARTITIONS = 3


class BlockSender:
    """Sends train blocks from a thread until `stop`; `acknowledged` holds the audit fids of those that a broker has."""

    def __init__(self, kafka: KafkaConnection, topic: str, first: int = 0) -> None:
        self._producer, self._topic = make_producer(kafka), topic
        self._next, self._stop = first, threading.Event()
        self.acknowledged: list[np.ndarray] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def send_for(self, seconds: float) -> None:
        """Goes on for so long."""
        self._stop.wait(seconds)

    def stop(self) -> int:
        """Returns the number of the block that would be next, when all are acknowledged."""
        self._stop.set()
        self._thread.join()
        if self._producer.flush(_FLUSH_SECONDS):
            raise UndeliveredError("blocks were not acknowledged")
        return self._next

    def _run(self) -> None:
        while not self._stop.wait(_BLOCK_SECONDS):
            number = self._next
            batch = make_batch(MODEL_TASK, number * _RECORDS, _RECORDS, partition=number % _SOURCE_PARTITIONS)
            fids = audit_fid(*provenance_of(batch))

            def delivered(error: object, _: object, fids: np.ndarray = fids) -> None:
                if error is not None:
                    raise UndeliveredError(str(error))
                self.acknowledged.append(fids)

            partition = number % PARTITIONS
            self._producer.produce(
                self._topic, record_batch.to_bytes(batch), partition=partition, on_delivery=delivered
            )
            self._producer.poll(0)
            self._next = number + 1


class TrainerWorld:
    """Starts with a train topic and nothing in it; `close` stops every process but the broker."""

    def __init__(self, server: KafkaServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.kafka, self.topics = KafkaConnection(server.address or ""), Topics("chaos.")
        self.train_topic = self.topics.train(MODEL_TASK.name)
        ensure_topic(self.kafka, self.train_topic, PARTITIONS)
        self._processes: list[ChildProcess] = []
        self._senders: list[BlockSender] = []

    def __enter__(self) -> "TrainerWorld":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sender in self._senders:
            try:
                sender.stop()
            except UndeliveredError:
                if error is None:
                    raise
        for process in reversed(self._processes):
            process.stop()

    def start_trainer(self, model_dir: Path, name: str, *flags: str, wait: bool = True) -> ChildProcess:
        """Starts `millrace train`; returns when it is ready unless not to `wait`."""
        trainer = self._start(
            name, "train", *TASK, "--online", "--audit", "--model-dir", str(model_dir), "--checkpoint-seconds", "1",
            "--export-seconds", "3", *flags,
        )  # fmt: skip
        if wait:
            trainer.wait_ready(READY_SECONDS)
        return trainer

    def start_server(self, exports: Path, name: str = "serve") -> ChildProcess:
        """Starts `millrace serve`, which follows the exports below `exports`."""
        exports.mkdir(parents=True, exist_ok=True)
        server = self._start(
            name, "serve", "--port", "0", "--control-port", "0", "--model-name", MODEL_TASK.name,
            "--base-path", str(exports),
        )  # fmt: skip
        server.wait_ready(READY_SECONDS)
        return server

    def send(self, again: bool = False) -> BlockSender:
        """Sends blocks, which go on where those before ended, or begin with the first one `again`."""
        ended = self._senders[-1].stop() if self._senders else 0
        first = 0 if again else ended
        self._senders.append(BlockSender(self.kafka, self.train_topic, first))
        return self._senders[-1]

    def stop_sending(self) -> int:
        """Returns the number of different rows that were sent."""
        for sender in self._senders[-1:]:
            sender.stop()
        return len(self._sent())

    def learn_more(self, model_dir: Path, trainer: ChildProcess) -> None:
        """Waits for rows that are in no checkpoint yet."""
        before = rows_of(model_dir)
        wait_until(lambda: check(trainer) and rows_of(model_dir) > before, READY_SECONDS, "more rows in a checkpoint")

    def drain(self, model_dir: Path, trainer: ChildProcess, more_rows: int = 0) -> None:
        """Stops sending, and waits until the trainer has saved all rows, or no more for a long time."""
        sent = self.stop_sending() + more_rows
        saved, deadline = 0, Deadline(_DRAIN_SECONDS)

        def all_saved() -> bool:
            nonlocal saved, deadline
            check(trainer)
            now = rows_of(model_dir)
            if now > saved:
                saved, deadline = now, Deadline(_DRAIN_SECONDS)
            return now >= sent or deadline.expired()

        wait_until(all_saved, 10 * _DRAIN_SECONDS, "all rows in a checkpoint", 0.5)

    def audit(self, model_dir: Path, trainer: ChildProcess, more: Sequence[np.ndarray] = (), letters: int = 0) -> Audit:
        """Drains, stops the trainer and counts.

        Args:
          more: audit fids of rows that others sent.
          letters: rows and whole blocks that others sent and that are to be refused.
        """
        self.drain(model_dir, trainer, sum(map(len, more)))
        if trainer.stop(READY_SECONDS) != 0:
            raise RuntimeError(f"{trainer.name} ended with {trainer.exit_code}: {trainer.log_tail()[-500:]}")
        sent = np.concatenate([self._sent(), *more])
        learned, counts = read_audit(model_dir)
        return Audit(
            sent=len(sent),
            applied=int(counts.sum()),
            repeated=0,
            lost=len(np.setdiff1d(sent, learned)),
            doubled=int((counts > 1).sum()),
            unknown=len(np.setdiff1d(learned, sent)),
            dead_letters=self.dead_letters(),
            dead_letters_sent=letters,
        )

    def make_anew(self, topic: str, partitions: int = PARTITIONS) -> None:
        """Deletes the topic and makes it again."""
        admin = make_admin(self.kafka)  # a variable: futures are cancelled with their client
        admin.delete_topics([topic], operation_timeout=30)[topic].result()
        wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, READY_SECONDS, f"{topic} is gone")
        ensure_topic(self.kafka, topic, partitions)

    def dead_letters(self) -> int:
        """Records of the train topic's dead letters; the first one makes their topic."""
        if self.topics.train_dead_letter not in make_admin(self.kafka).list_topics(timeout=30).topics:
            return 0
        return sum(high - low for low, high in watermarks(self.kafka, self.topics.train_dead_letter).values())

    def _sent(self) -> np.ndarray:
        """int64 [rows]: audit fids of the rows that were sent, each once."""
        acknowledged = [fids for sender in self._senders for fids in sender.acknowledged]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *acknowledged]))

    def _start(self, name: str, *words: str) -> ChildProcess:
        address = ("--kafka", self.kafka.bootstrap_servers, "--topic-prefix", self.topics.prefix)
        process = millrace(self.folder, name, *words, *address, "--metrics-port", "0")
        self._processes.append(process)
        process.start()
        return process


def check(process: ChildProcess) -> bool:
    """True; raises RuntimeError when the process has ended by itself."""
    if not process.running():
        raise RuntimeError(f"{process.name} ended with {process.exit_code}: {process.log_tail()[-500:]}")
    return True


def rows_of(model_dir: Path) -> int:
    """Rows in the newest checkpoint."""
    newest = newest_manifest(model_dir)
    return newest[1].rows_applied if newest else 0


def metric(process: ChildProcess, name: str) -> float:
    """Sum of the values of a metric."""
    with urllib.request.urlopen(f"http://{process.ready['metrics']}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
