"""A trainer in this process whose rows go wrong: it stops publishing, holds servers, and goes on when it is told to."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, watermarks
from millrace.runtime.telemetry import Condition
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import Topics
from millrace.serving.agent.model_events import parse_event
from millrace.training.online.options import OnlineOptions
from millrace.training.online.trainer import train_online
from millrace.training.state.checkpoint import newest_manifest
from millrace.training.state.guard_file import read_guard_state
from millrace.training.task import Guard
from millrace.transforms.batch.record_batch import LABEL
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

SECONDS = 120.0


class GuardedRanking(FeedRanking):
    guard = Guard(past_rows=8192, gap_rows=3072, least_rows=4096)


TASK = GuardedRanking()


class Running:
    """`train_online` in a thread."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, model_dir: Path, resume: bool = False) -> None:
        options = OnlineOptions(
            model_dir,
            audit=True,
            export_seconds=1.0,
            checkpoint_seconds=0.5,
            resume_from_good="latest" if resume else None,
        )
        self._stop, self.error, self.condition = threading.Event(), None, Condition()
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(kafka, topics, options))
        self._thread.start()

    def _run(self, kafka: KafkaConnection, topics: Topics, options: OnlineOptions) -> None:
        try:
            train_online(TASK, kafka, topics, options, self._stop, self.ready.set, guard=self.condition)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60.0)
        assert not self._thread.is_alive() and self.error is None


@pytest.fixture
def start(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start_one(resume: bool = False) -> Running:
        started.append(Running(kafka, topics, tmp_path, resume))
        return started[-1]

    yield start_one
    for each in started:  # a thread that goes on would keep the whole run of tests from ending
        each.stop()


def blocks(first: int, count: int) -> list[pa.RecordBatch]:
    return [make_batch(TASK, (first + i) * 50, 50) for i in range(count)]


def flipped(block: pa.RecordBatch) -> pa.RecordBatch:
    labels = pa.array([[1 - value for value in row] for row in block.column(LABEL).to_pylist()])
    field = block.schema.field(LABEL)
    return block.set_column(block.schema.get_field_index(LABEL), field, labels.cast(field.type))


def events(kafka: KafkaConnection, topics: Topics) -> list[ModelEvent]:
    messages = itertools.chain.from_iterable(read_messages(resolve_range(kafka, topics.model_events)))
    return [parse_event(message.value()) for message in messages]


def holds(kafka: KafkaConnection, topics: Topics) -> list[ModelEvent]:
    return [event for event in events(kafka, topics) if event.kind in (ModelEvent.ROLLBACK, ModelEvent.RELEASE)]


def test_poisoned_rows_stop_publishing_and_training_goes_on_without_them(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start: Callable[..., Running]
) -> None:
    train_topic = topics.train(TASK.name)
    produce_blocks(kafka, train_topic, blocks(0, 40))  # of 200 rows
    trainer = start()

    def rows() -> int:
        assert trainer.error is None
        newest = newest_manifest(tmp_path)
        return newest[1].rows_applied if newest else 0

    wait_until(lambda: rows() >= 8_000, SECONDS, "a checkpoint from well before the poison")
    produce_blocks(kafka, train_topic, blocks(40, 20))
    wait_until(lambda: rows() >= 12_000, SECONDS, "the clean rows are learned")
    wait_until(lambda: bool(events(kafka, topics)), SECONDS, "a version is announced")
    produce_blocks(kafka, train_topic, [flipped(block) for block in blocks(60, 15)])
    wait_until(lambda: bool(holds(kafka, topics)), SECONDS, "servers are held")
    state, (hold,) = read_guard_state(tmp_path), holds(kafka, topics)
    assert state is not None and "log loss" in state.reason
    assert (hold.kind, hold.held_by, hold.as_of_ms) == (ModelEvent.ROLLBACK, "guard", state.suspect_ms)
    assert (tmp_path / "exports" / "standalone" / str(hold.version)).is_dir()
    reason = trainer.condition.reason()
    assert reason is not None and state.reason in reason
    deltas = watermarks(kafka, topics.deltas(TASK.name))
    versions = len(events(kafka, topics))
    trainer.stop()
    assert watermarks(kafka, topics.deltas(TASK.name)) == deltas and len(events(kafka, topics)) == versions

    trainer = start(resume=True)
    assert trainer.ready.wait(SECONDS), "what is in the topic by now is passed over"
    produce_blocks(kafka, train_topic, blocks(75, 40))
    wait_until(
        lambda: trainer.error is not None or holds(kafka, topics)[-1].kind == ModelEvent.RELEASE,
        SECONDS,
        "servers are released",
    )
    assert trainer.error is None
    wait_until(lambda: read_guard_state(tmp_path) is None, SECONDS, "the alarm is behind")
    newest = max(event.version for event in events(kafka, topics) if event.kind == ModelEvent.EXPORT)
    assert newest > hold.version and trainer.condition.reason() is None
    trainer.stop()
    assert rows() <= 12_000 + 40 * 200, "blocks of the poison were passed over"
