"""A trainer in this process: a disk that fails does not stop it, blocks that cannot be used are passed over."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, flush_or_raise, make_producer
from millrace.runtime.topics import Topics
from millrace.training.online_trainer import OnlineOptions, train_online
from millrace.training.state.checkpoint import newest_manifest
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

TASK = FeedRanking()
BLOCK_ROWS = 40


class Running:
    """`train_online` in a thread."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, model_dir: Path) -> None:
        self.options = OnlineOptions(
            model_dir, audit=True, export_seconds=1.0, checkpoint_seconds=0.5, create_topics=True
        )
        self._stop, self.error = threading.Event(), None
        self._thread = threading.Thread(target=self._run, args=(kafka, topics))
        self._thread.start()

    def _run(self, kafka: KafkaConnection, topics: Topics) -> None:
        try:
            train_online(TASK, kafka, topics, self.options, self._stop)
        except BaseException as error:
            self.error = error

    def rows(self) -> int:
        if self.error is not None:
            raise self.error
        newest = newest_manifest(self.options.model_dir)
        return newest[1].rows_applied if newest else 0

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive() and self.error is None


@pytest.fixture
def running(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> Iterator[Running]:
    # A file where a folder belongs makes every save fail, for root too.
    (tmp_path / "checkpoints").write_text("in the way")
    (tmp_path / "exports").write_text("in the way")
    trainer = Running(kafka, topics, tmp_path)
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
