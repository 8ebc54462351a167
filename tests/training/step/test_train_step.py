"""The step: predicts before it learns, traces once, masks invalid labels, counts in the audit table."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.step.train_step import AUDIT_TABLE, TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.training.task import Head, LabelRule
from millrace.training.task.heads import correct_logits, total_loss
from millrace.transforms.batch.record_batch import INVALID_LABEL, LABEL
from tests.fakes.train_blocks import make_batch

HEADS = (Head("click", LabelRule("click", ("click",))),)


class Harness:
    """A step with its queue."""

    def __init__(self, audit: bool = True, **settings: Any) -> None:
        task = FeedRanking()
        self.layout = TrainLayout.of(task, audit)
        self.queue = BatchQueue(self.layout, "test-step")
        self.store, self.audit = new_stores(task, self.queue.name, audit)
        self.step = TrainStep(task, self.store, self.queue, self.audit, **settings)

    def learn(self, batch: pa.RecordBatch) -> np.ndarray:
        self.queue.put(Ticket.of(batch, 1), batch)
        return np.asarray(self.step.step())

    def predict(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.asarray(self.step.predict(self.layout.arrays(batch)))


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.queue.close()


def batch(first: int = 0, records: int = 50) -> pa.RecordBatch:
    return make_batch(FeedRanking(), first, records)


def with_labels(rows: pa.RecordBatch, value: float) -> pa.RecordBatch:
    labels = pa.array([[value]] * rows.num_rows, pa.list_(pa.float32()))
    return rows.set_column(rows.schema.get_field_index(LABEL), rows.schema.field(LABEL), labels)


def test_a_batch_is_predicted_before_it_is_learned(harness: Harness) -> None:
    harness.learn(batch(0))
    expected = harness.predict(batch(0))
    assert np.allclose(harness.learn(batch(0)), expected, atol=1e-6)
    assert not np.allclose(harness.predict(batch(0)), expected, atol=1e-3)


def test_slices_of_a_batch_are_predicted_with_what_was_known_before_the_batch() -> None:
    harness = Harness(micro_batch=7, epochs=2)
    harness.learn(batch(0))
    expected = harness.predict(batch(0))
    assert np.allclose(harness.learn(batch(0)), expected, atol=1e-6)
    assert int(harness.step.global_step) == 2
    harness.queue.close()


def test_the_step_is_traced_once_for_all_batch_sizes(harness: Harness) -> None:
    for records in (1, 3, 10):
        harness.learn(batch(0, records))
    assert harness.step.step.experimental_get_tracing_count() == 1


def test_learning_finds_what_the_world_hides(harness: Harness) -> None:
    from millrace.training.step.metrics import auc

    for i in range(60):
        harness.learn(batch(i * 100, 100))
    rows = batch(6000, 500)
    assert auc(np.asarray(rows.column(LABEL).flatten()), harness.predict(rows)[:, 0]) > 0.7


def test_rows_with_an_invalid_label_teach_nothing_but_are_counted(harness: Harness) -> None:
    harness.learn(batch(0))
    before = harness.predict(batch(0))
    harness.learn(with_labels(batch(0), INVALID_LABEL))
    # The dense optimizer's momentum goes on, the tables stay.
    assert np.allclose(harness.predict(batch(0)), before, atol=0.02)
    assert harness.audit is not None
    assert set(harness.audit.dump(AUDIT_TABLE.name)[1][:, 0]) == {2.0}


def test_the_audit_table_counts_how_often_each_row_was_applied() -> None:
    harness = Harness(micro_batch=16, epochs=3)
    harness.learn(batch(0, 10))
    harness.learn(batch(5, 10))
    assert harness.audit is not None
    fids, counts = harness.audit.dump(AUDIT_TABLE.name)
    offsets = (fids >> 14) & ((1 << 28) - 1)
    assert dict(zip(offsets.tolist(), counts[:, 0].tolist(), strict=True)) == {
        offset: 2.0 if 5 <= offset < 10 else 1.0 for offset in range(15)
    }
    harness.queue.close()


def test_the_loss_is_masked_weighted_and_corrected_for_sampling() -> None:
    logits = tf.constant([[0.5], [-1.0], [3.0]])
    labels = tf.constant([[1.0], [0.0], [INVALID_LABEL]])
    loss = total_loss(HEADS, logits, labels, tf.constant([2.0, 1.0, 1.0]), tf.constant([1.0, 0.1, 1.0]))
    corrected = -1.0 - np.log(0.1)
    assert np.isclose(loss, 2 * np.log1p(np.exp(-0.5)) + np.log1p(np.exp(corrected)), atol=1e-5)


def test_logit_correction_matches_the_published_vectors() -> None:
    rates = tf.constant([0.1, 0.1, 0.1])
    corrected = correct_logits(tf.constant([[0.0], [2.0], [-3.0]]), rates)
    assert np.allclose(corrected[:, 0], [2.3025851, 4.3025851, -0.6974149], atol=1e-6)


def test_a_model_that_forgets_a_head_is_refused_by_name() -> None:
    class Forgetful(FeedRanking):
        def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
            return {"other": keras.layers.Dense(1)(embeddings["user"])}

    from millrace.training.task.heads import DenseModel

    with pytest.raises(ValueError, match="click"):
        DenseModel(Forgetful())
