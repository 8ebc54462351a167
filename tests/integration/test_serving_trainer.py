"""What the trainer exports and publishes is what the server answers: both sides of the wire in one process."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topic_setup import ensure_deltas
from millrace.runtime.topics import Topics
from millrace.serving.server.saved_model_loader import SavedModelLoader, SavedModelServable
from millrace.serving.server.servable import VersionSource
from millrace.serving.server.tensors import InputSpec
from millrace.training.publish.delta_publisher import DeltaPublisher
from millrace.training.publish.exporter import Exporter
from millrace.training.publish.outbox import Outbox
from millrace.training.publish.published import ModelWriter
from millrace.training.publish.transactions import TransactionalProducer
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from tests.fakes.train_blocks import make_batch

pytestmark = pytest.mark.service
_TASK = FeedRanking()
_SECONDS = 30.0
_ROWS = 40


def _train(step: TrainStep, queue: BatchQueue, first: int, batches: int) -> None:
    for number in range(first, first + batches):
        batch = make_batch(_TASK, number * _ROWS, _ROWS)
        queue.put(Ticket.of(batch, 1), batch)
        step.step(NOW)


def _ask(servable: SavedModelServable) -> np.ndarray:
    def value(spec: InputSpec) -> np.ndarray:
        if spec.dtype == tf.string:
            return np.full(_ROWS, b"phone", object)
        return np.arange(_ROWS, dtype=spec.dtype.as_numpy_dtype)

    return servable.run("", {name: value(spec) for name, spec in servable.inputs("").items()})["click"]


def test_a_server_that_follows_the_deltas_answers_like_a_newer_export(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    queue = BatchQueue(TrainLayout.of(_TASK, audit=True), "test-serving-trainer")
    store, audit = new_stores(_TASK, queue.name, audit=True)
    step = TrainStep(_TASK, store, queue, audit)
    writer = ModelWriter(_TASK.name, "line", 1)
    ensure_deltas(kafka, topics.deltas(_TASK.name))
    outbox = Outbox(TransactionalProducer(kafka, topics.prefix, 900_000), lambda: None)
    publisher = DeltaPublisher(outbox, kafka, topics.deltas(_TASK.name), writer, store, step.dense, dense_seconds=0.001)
    exporter = Exporter(_TASK, tmp_path, writer)

    def publish() -> None:
        publisher.publish(int(step.global_step.numpy()), 0, 0)
        publisher.flush(_SECONDS)

    _train(step, queue, 0, 5)
    publish()
    cut = exporter.cut(step, publisher.topic, publisher.position)
    old_export = exporter.write(cut, step)
    _train(step, queue, 5, 10)
    publish()
    cut = exporter.cut(step, publisher.topic, publisher.position)
    new_export = exporter.write(cut, step)

    stale = SavedModelLoader(_TASK.name, old_export.version, VersionSource(str(old_export.path)))
    before = _ask(stale.load())
    stale.unload()
    old = SavedModelLoader(_TASK.name, old_export.version, VersionSource(str(old_export.path)), kafka)
    new = SavedModelLoader(_TASK.name, new_export.version, VersionSource(str(new_export.path)), kafka)
    fresh, reference = old.load(), new.load()
    assert np.abs(before - _ask(reference)).max() > 1e-4
    np.testing.assert_allclose(_ask(fresh), _ask(reference), atol=1e-6)

    _train(step, queue, 15, 5)
    last = _ask(reference)
    publish()
    wait_until(lambda: np.abs(_ask(reference) - last).max() > 1e-5, _SECONDS, "the live delta")
    wait_until(lambda: np.allclose(_ask(fresh), _ask(reference), atol=1e-6), _SECONDS, "both versions fresh")
    old.unload()
    new.unload()
    outbox.close()
