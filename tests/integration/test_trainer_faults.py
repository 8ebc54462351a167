"""A trainer in this process that meets rows it cannot learn and a step that raises: it goes on and names them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics
from millrace.training.online.options import OnlineOptions
from millrace.training.online.trainer import train_online
from millrace.training.state.checkpoint import newest_manifest, read_audit
from millrace.training.step import train_step
from millrace.transforms.batch.record_batch import WEIGHT
from tests.fakes.train_blocks import make_batch, produce_blocks
from tests.integration.test_trainer_input import dead_letters

pytestmark = pytest.mark.service

TASK = FeedRanking()
RAISES, NOT_FINITE = 7.0, 8.0  # weights of rows on which the loss below fails
BLOCK_ROWS = 40


@pytest.fixture
def failing_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that raises or is NaN for rows with certain weights, as a model or a kernel with a defect would."""
    real = train_step.total_loss

    def loss(heads: Any, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, *rest: Any) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.assert_none_equal(weights, RAISES, message="a kernel's words")]):
            is_bad = tf.reduce_any(tf.equal(weights, NOT_FINITE))
            return real(heads, logits, labels, weights, *rest) * tf.where(is_bad, np.float32(np.nan), 1.0)

    monkeypatch.setattr(train_step, "total_loss", loss)


def weighted(block: pa.RecordBatch, weight: float) -> pa.RecordBatch:
    column = pa.array([weight] + [1.0] * (block.num_rows - 1), pa.float32())
    return block.set_column(block.schema.get_field_index(WEIGHT), block.schema.field(WEIGHT), column)


def test_a_block_on_which_the_step_fails_and_rows_that_are_not_finite_cost_themselves_only(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, failing_loss: None
) -> None:
    blocks = [make_batch(TASK, i * 10, 10) for i in range(8)]
    blocks[3], blocks[5] = weighted(blocks[3], RAISES), weighted(blocks[5], NOT_FINITE)
    produce_blocks(kafka, topics.train(TASK.name), blocks)
    options = OnlineOptions(tmp_path, audit=True, checkpoint_seconds=0.5, micro_batch=20)
    stop, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            train_online(TASK, kafka, topics, options, stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def rows() -> int:
        newest = newest_manifest(tmp_path)
        return newest[1].rows_applied if newest else 0

    try:
        # A slice of 20 rows has rows of one block or of two.
        wait_until(lambda: bool(errors) or rows() >= 6 * BLOCK_ROWS, 120.0, "the other blocks are learned")
    finally:
        stop.set()
        thread.join(60.0)
    assert not errors and not thread.is_alive()
    learned = rows()
    assert 6 * BLOCK_ROWS <= learned <= 6 * BLOCK_ROWS + BLOCK_ROWS - 1
    fids, counts = read_audit(tmp_path)
    assert len(fids) == learned and set(counts.tolist()) == {1.0}
    letters = [headers for _, headers in dead_letters(kafka, topics)]
    assert {headers["reason"] for headers in letters} == {"not_finite"}
    assert ("1", "1") in {(headers["source-partition"], headers["source-offset"]) for headers in letters}
