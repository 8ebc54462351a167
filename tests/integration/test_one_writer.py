"""One trainer at a time writes a model: what a second one is told, and what becomes of one that was replaced."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, flush_or_raise, make_admin, make_producer
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics
from millrace.training.online.options import OnlineOptions
from millrace.training.online.trainer import train_online
from millrace.training.state.checkpoint import newest_manifest
from millrace.training.state.lease import read_owner
from tests.fakes.topics import read_all
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

TASK = FeedRanking()
SECONDS = 90.0


class Running:
    """`train_online` in a thread."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, model_dir: Path, **options: object) -> None:
        self.model_dir = model_dir
        self._stop, self.error = threading.Event(), None
        saving = {"export_seconds": 1.0, "checkpoint_seconds": 0.5, "create_topics": True}
        self._options = OnlineOptions(model_dir, audit=True, **(saving | options))  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run, args=(kafka, topics))
        self._thread.start()

    def _run(self, kafka: KafkaConnection, topics: Topics) -> None:
        try:
            train_online(TASK, kafka, topics, self._options, self._stop)
        except BaseException as error:
            self.error = error

    def rows(self) -> int:
        if self.error is not None:
            raise self.error
        newest = newest_manifest(self.model_dir)
        return newest[1].rows_applied if newest else 0

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(SECONDS)
        assert self.ended()


@pytest.fixture
def train(kafka: KafkaConnection, topics: Topics) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(model_dir: Path, connection: KafkaConnection = kafka, **options: object) -> Running:
        started.append(Running(connection, topics, model_dir, **options))
        return started[-1]

    yield start
    for running in started:
        running.stop()


def deltas_of(kafka: KafkaConnection, topics: Topics) -> list[ModelDelta]:
    return [ModelDelta.FromString(record.value or b"") for record in read_all(kafka, topics.deltas(TASK.name))]


def events_of(kafka: KafkaConnection, topics: Topics, kind: str) -> list[dict[str, object]]:
    events = [json.loads(record.value or b"{}") for record in read_all(kafka, topics.model_events)]
    return [event for event in events if event["kind"] == kind]


def learn(kafka: KafkaConnection, topics: Topics, trainer: Running, first: int = 0) -> None:
    """Has the trainer learn ten rows of each of four blocks, and announce a version."""
    rows = trainer.rows()
    produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, first, 10)])
    wait_until(lambda: trainer.rows() > rows, SECONDS, "the rows are in a checkpoint")
    step = newest_manifest(trainer.model_dir)[1].global_step  # type: ignore[index]
    wait_until(
        lambda: any(int(str(e["global_step"])) >= step for e in events_of(kafka, topics, "EXPORT")),
        SECONDS,
        "a version",
    )


def test_nothing_is_published_of_a_model_that_has_learned_nothing_but_heartbeats(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, train: Callable[..., Running]
) -> None:
    trainer = train(tmp_path / "m", delta_seconds=0.2)
    wait_until(lambda: trainer.rows() == 0 and len(deltas_of(kafka, topics)) > 3, SECONDS, "heartbeats")
    assert not (tmp_path / "m" / "exports").exists()
    assert events_of(kafka, topics, "EXPORT") == []
    owner = read_owner(tmp_path / "m")
    deltas = deltas_of(kafka, topics)
    assert {(d.lineage, d.epoch, len(d.tables)) for d in deltas} == {(owner.lineage, 1, 0)}
    learn(kafka, topics, trainer)
    event = events_of(kafka, topics, "EXPORT")[-1]
    assert (event["lineage"], event["epoch"], event["schema_version"]) == (owner.lineage, "1", 2)
    assert event["quality"]["rows"] > 0 and int(str(event["event_time_ms"])) > 0  # type: ignore[index]


def test_an_empty_folder_and_one_whose_checkpoints_cannot_be_read_replace_no_model_that_readers_know(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, train: Callable[..., Running]
) -> None:
    first = train(tmp_path / "m")
    learn(kafka, topics, first)
    first.stop()
    lineage = read_owner(tmp_path / "m").lineage
    versions = len(events_of(kafka, topics, "EXPORT"))

    empty = train(tmp_path / "unmounted")
    wait_until(empty.ended, SECONDS, "the trainer of the empty folder has ended")
    assert isinstance(empty.error, UserError)
    assert "holds no checkpoint, but model.events knows this model" in str(empty.error)
    assert lineage in str(empty.error) and "--new-model" in str(empty.error)

    shutil.copytree(tmp_path / "m", tmp_path / "damaged")
    for manifest in (tmp_path / "damaged" / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{")
    damaged = train(tmp_path / "damaged")
    wait_until(damaged.ended, SECONDS, "the trainer of the damaged folder has ended")
    assert "none of its checkpoints can be read" in str(damaged.error)
    assert len(events_of(kafka, topics, "EXPORT")) == versions

    anew = train(tmp_path / "unmounted", new_model=True)
    learn(kafka, topics, anew, 10)
    assert anew.error is None
    owner = read_owner(tmp_path / "unmounted")
    assert owner.lineage != lineage and owner.epoch == 2
    anew.stop()

    again = train(tmp_path / "m")
    wait_until(again.ended, SECONDS, "the trainer of the model that was replaced has ended")
    assert f"its newest checkpoint is of lineage {lineage}" in str(again.error)


def test_numbers_go_on_when_the_topic_of_deltas_was_made_anew_or_ends_in_a_foreign_record(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, train: Callable[..., Running]
) -> None:
    first = train(tmp_path / "m", delta_seconds=0.1)
    learn(kafka, topics, first)
    first.stop()
    saved = newest_manifest(tmp_path / "m")[1].delta_sequence  # type: ignore[index]
    assert saved > 0
    admin = make_admin(kafka)
    admin.delete_topics([topics.deltas(TASK.name)], operation_timeout=10)[topics.deltas(TASK.name)].result()

    second = train(tmp_path / "m", delta_seconds=0.1)
    wait_until(lambda: read_owner(tmp_path / "m").epoch == 2, SECONDS, "the second trainer")
    wait_until(lambda: len(deltas_of(kafka, topics)) > 1, SECONDS, "its deltas")
    second.stop()
    assert second.error is None
    deltas = deltas_of(kafka, topics)
    assert [d.sequence for d in deltas] == list(range(saved + 1, saved + 1 + len(deltas)))

    producer = make_producer(kafka)
    producer.produce(topics.deltas(TASK.name), b"\xff\xff not a delta", partition=0)
    foreign = ModelDelta(model_name="other", sequence=2**60).SerializeToString()
    producer.produce(topics.deltas(TASK.name), foreign, partition=0)
    flush_or_raise(producer)
    third = train(tmp_path / "m", delta_seconds=0.1)
    wait_until(lambda: third.rows() > 0 and read_owner(tmp_path / "m").epoch == 3, SECONDS, "the third trainer")

    def third_deltas() -> list[ModelDelta]:
        values = [record.value or b"" for record in read_all(kafka, topics.deltas(TASK.name))]
        known = [ModelDelta.FromString(value) for value in values if not value.startswith(b"\xff")]
        return [delta for delta in known if delta.epoch == 3]

    wait_until(lambda: len(third_deltas()) > 0, SECONDS, "its deltas")
    assert third_deltas()[0].sequence == deltas[-1].sequence + 1


def test_a_broker_that_is_away_during_an_announcement_costs_no_second_export(
    own_servers: DevServers, topics: Topics, tmp_path: Path
) -> None:
    kafka = KafkaConnection(own_servers.kafka_address)
    trainer = Running(kafka, topics, tmp_path / "m", checkpoint_seconds=3600.0)
    try:
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 0, 10)])
        exports = tmp_path / "m" / "exports" / "standalone"

        def versions() -> list[str]:
            return sorted(path.name for path in exports.glob("[0-9]*"))

        wait_until(lambda: len(versions()) == 1, SECONDS, "a first version")
        wait_until(lambda: len(events_of(kafka, topics, "EXPORT")) == 1, SECONDS, "it is announced")
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 10, 10)])
        wait_until(lambda: progress_rows(tmp_path / "m") == 80, SECONDS, "the second block is learned")
        own_servers.kafka.kill()
        wait_until(lambda: len(versions()) == 2, SECONDS, "a version that nobody can hear of")
        produced = [path.stat().st_mtime_ns for path in exports.glob("[0-9]*")]
        before = reports(tmp_path / "m")  # training goes on without a broker
        wait_until(lambda: reports(tmp_path / "m") > before + 15, SECONDS, "an outage of several periods of exports")
        assert [path.stat().st_mtime_ns for path in exports.glob("[0-9]*")] == produced
        own_servers.kafka.start()
        wait_until(lambda: len(events_of(kafka, topics, "EXPORT")) == 2, SECONDS, "it is announced")
        assert [str(e["version"]) for e in events_of(kafka, topics, "EXPORT")] == versions()
        sequences = [delta.sequence for delta in deltas_of(kafka, topics)]
        assert sequences == list(range(1, len(sequences) + 1))
    finally:
        trainer.stop()
    assert trainer.error is None


def progress_rows(model_dir: Path) -> int:
    path = model_dir / "progress.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["rows_trained"]) if lines else 0


def reports(model_dir: Path) -> int:
    """How often training has reported, once per second."""
    return len((model_dir / "progress.jsonl").read_text().splitlines())


@pytest.fixture
def start_trainer(
    kafka: KafkaConnection, topics: Topics, start_millrace: Callable[..., ChildProcess]
) -> Callable[..., ChildProcess]:
    def start(model_dir: Path, name: str, *flags: str) -> ChildProcess:
        return start_millrace(
            "train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--audit", "--create-topics",
            "--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--model-dir", str(model_dir),
            "--checkpoint-seconds", "0.5", "--export-seconds", "1", *flags, name=name,
        )  # fmt: skip

    return start


def test_a_second_trainer_is_told_who_has_the_folder_and_a_spare_takes_over_from_a_killed_one(
    kafka: KafkaConnection,
    topics: Topics,
    tmp_path: Path,
    start_trainer: Callable[..., ChildProcess],
    assert_user_error: Callable[..., str],
) -> None:
    model_dir = tmp_path / "m"
    trainer = start_trainer(model_dir, "trainer")
    trainer.wait_ready(SECONDS)
    assert_user_error(
        "train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--kafka", kafka.bootstrap_servers,
        "--topic-prefix", topics.prefix, "--model-dir", str(model_dir),
        mentions=["--model-dir", "in use by process", str(trainer.pid), "--wait-for-lease"],
    )  # fmt: skip
    spare = start_trainer(model_dir, "spare", "--wait-for-lease")
    wait_until(lambda: "waiting for the lease" in spare.log_path.read_text(), SECONDS, "the spare waits")
    os.kill(trainer.pid, signal.SIGKILL)
    spare.wait_ready(SECONDS)
    owner = read_owner(model_dir)
    assert (owner.pid, owner.epoch) == (spare.pid, 2)
    wait_until(lambda: deltas_of(kafka, topics)[-1].epoch == 2, SECONDS, "its first delta")
    assert spare.stop() == 0


def test_a_trainer_that_stood_still_while_another_took_over_publishes_nothing_more_and_ends(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_trainer: Callable[..., ChildProcess]
) -> None:
    zombie = start_trainer(tmp_path / "m", "zombie")
    zombie.wait_ready(SECONDS)
    produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 0, 10)])
    wait_until(lambda: newest_manifest(tmp_path / "m") is not None, SECONDS, "a checkpoint")
    wait_until(lambda: len(events_of(kafka, topics, "EXPORT")) > 0, SECONDS, "a version")
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        shutil.copytree(tmp_path / "m", tmp_path / "other host")
        successor = start_trainer(tmp_path / "other host", "successor")
        successor.wait_ready(SECONDS)
        wait_until(lambda: deltas_of(kafka, topics)[-1].epoch == 2, SECONDS, "a delta of the successor")
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 10, 10)])
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    wait_until(lambda: zombie.exit_code is not None, SECONDS, "the zombie has ended")
    assert zombie.exit_code == 3
    assert "the trainer of epoch 2 has taken over" in zombie.log_path.read_text()
    deltas = deltas_of(kafka, topics)
    assert [d.epoch for d in deltas] == sorted(d.epoch for d in deltas)
    assert [d.sequence for d in deltas] == list(range(1, len(deltas) + 1))
    assert successor.stop() == 0
