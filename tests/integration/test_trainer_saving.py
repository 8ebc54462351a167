"""A trainer in this process: when it saves, and that neither a failing disk nor blocks of no use stop it."""

import datetime
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, flush_or_raise, make_producer
from millrace.runtime.topics import Topics
from millrace.training.online.options import OnlineOptions
from millrace.training.online.trainer import train_online
from millrace.training.state.checkpoint import newest_manifest
from millrace.training.state.save_schedule import DailyWindow
from tests.conformance.covers import covers
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

TASK = FeedRanking()
BLOCK_ROWS = 40


class Running:
    """`train_online` in a thread."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, options: OnlineOptions) -> None:
        self.options = options
        self.save_now, self._stop, self.error = threading.Event(), threading.Event(), None
        self._thread = threading.Thread(target=self._run, args=(kafka, topics))
        self._thread.start()

    def _run(self, kafka: KafkaConnection, topics: Topics) -> None:
        try:
            train_online(TASK, kafka, topics, self.options, self._stop, save_now=self.save_now)
        except BaseException as error:
            self.error = error

    def rows(self) -> int:
        if self.error is not None:
            raise self.error
        newest = newest_manifest(self.options.model_dir)
        return newest[1].rows_applied if newest else 0

    def rows_trained(self) -> int:
        if self.error is not None:
            raise self.error
        path = self.options.model_dir / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["rows_trained"] if lines else 0

    def saved_steps(self) -> list[str]:
        return sorted(path.parent.name for path in self.options.model_dir.glob("checkpoints/*/manifest.json"))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive() and self.error is None


@pytest.fixture
def running(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> Iterator[Running]:
    # A file where a folder belongs makes every save fail, for root too.
    (tmp_path / "checkpoints").write_text("in the way")
    (tmp_path / "exports").write_text("in the way")
    options = OnlineOptions(tmp_path, audit=True, export_seconds=1.0, checkpoint_seconds=0.5, create_topics=True)
    trainer = Running(kafka, topics, options)
    yield trainer
    trainer.stop()


def test_a_failing_disk_and_bad_blocks_do_not_stop_training(
    running: Running, kafka: KafkaConnection, topics: Topics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_topic = topics.train(TASK.name)
    produce_blocks(kafka, train_topic, [make_batch(TASK, 0, 10)])
    wait_until(lambda: "checkpoint failed" in caplog.text and "export failed" in caplog.text, 90.0, "saving failed")

    producer = make_producer(kafka)
    producer.produce(train_topic, b"not Arrow", partition=0)
    flush_or_raise(producer)
    produce_blocks(kafka, train_topic, [make_batch(TASK, 10, 10).drop_columns(["hour"]), make_batch(TASK, 20, 10)])
    for name in ("checkpoints", "exports"):
        (tmp_path / name).unlink()
    wait_until(lambda: running.rows() == 2 * BLOCK_ROWS, 90.0, "both good blocks are in a checkpoint")
    exports = tmp_path / "exports" / "standalone"
    wait_until(lambda: exports.is_dir() and any(p.name.isdecimal() for p in exports.iterdir()), 90.0, "an export")

    assert "not an Arrow IPC stream" in caplog.text
    assert "column hour: missing" in caplog.text


@covers("emb:K3")
def test_saves_by_steps_come_on_demand_and_at_the_end_and_not_at_the_start(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    options = OnlineOptions(tmp_path, audit=True, checkpoint_seconds=None, checkpoint_steps=100, create_topics=True)
    trainer = Running(kafka, topics, options)
    try:
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 0, 10)])
        wait_until(lambda: trainer.rows_trained() == BLOCK_ROWS, 90.0, "the first block is learned")
        assert trainer.saved_steps() == []
        trainer.save_now.set()
        wait_until(lambda: trainer.saved_steps() == ["1"], 30.0, "the checkpoint that was demanded")
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 10, 10)])
        wait_until(lambda: trainer.rows_trained() == 2 * BLOCK_ROWS, 30.0, "the second block is learned")
        assert trainer.saved_steps() == ["1"]
    finally:
        trainer.stop()
    assert trainer.saved_steps() == ["1", "2"]


def test_checkpoints_are_saved_by_the_seconds_that_hold_outside_of_a_daily_window_and_the_newest_few_are_kept(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=6)
    window = DailyWindow(hour.time(), (hour + datetime.timedelta(hours=6)).time(), seconds_outside=0.2)
    options = OnlineOptions(
        tmp_path,
        audit=True,
        checkpoint_seconds=3600.0,
        checkpoint_window=window,
        keep_checkpoints=2,
        create_topics=True,
    )
    # Learned before the trainer asks a first time whether to save.
    produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 0, 10)])
    trainer = Running(kafka, topics, options)
    try:
        wait_until(lambda: trainer.saved_steps() == ["1"], 90.0, "a checkpoint with the first block")
        for step in ("2", "3", "4"):
            produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 10 * int(step), 10)])
            wait_until(lambda: step in trainer.saved_steps(), 30.0, "a checkpoint with this block")  # noqa: B023
        wait_until(lambda: trainer.saved_steps() == ["3", "4"], 30.0, "the oldest checkpoints are removed")
    finally:
        trainer.stop()
