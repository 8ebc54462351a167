"""The step: predicts before it learns, traces once, masks invalid labels, counts in the audit table."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW
from millrace.training.step.train_step import AUDIT_TABLE, TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.training.task import Head, LabelRule, Task
from millrace.training.task.heads import correct_logits, total_loss
from millrace.transforms.batch.record_batch import INVALID_LABEL, LABEL, WEIGHT
from tests.fakes.train_blocks import make_batch

HEADS = (Head("click", LabelRule("click", ("click",))),)


class Harness:
    """A step with its queue."""

    def __init__(self, audit: bool = True, task: Task | None = None, **settings: Any) -> None:
        task = task or FeedRanking()
        self.layout = TrainLayout.of(task, audit)
        self.queue = BatchQueue(self.layout, "test-step")
        self.store, self.audit = new_stores(task, self.queue.name, audit)
        self.step = TrainStep(task, self.store, self.queue, self.audit, **settings)

    def learn(self, batch: pa.RecordBatch) -> np.ndarray:
        self.queue.put(Ticket.of(batch, 1), batch)
        return np.asarray(self.step.step(NOW).logits)

    def finite(self, batch: pa.RecordBatch) -> list[bool]:
        """Learns a batch; which of its rows were learned."""
        self.queue.put(Ticket.of(batch, 1), batch)
        return np.asarray(self.step.step(NOW).finite).tolist()

    def state(self) -> dict[str, Any]:
        """All that a step may change."""
        tables = {table.name: [a.tolist() for a in self.store.dump(table.name, True)] for table in self.store.tables}
        dense = [v.numpy().tolist() for v in (*self.step.dense.variables, *self.step.optimizer.variables)]
        audit = [a.tolist() for a in self.audit.dump(AUDIT_TABLE.name)] if self.audit is not None else []
        return {"tables": tables, "dense": dense, "audit": audit, "step": int(self.step.global_step)}

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


def with_weights(rows: pa.RecordBatch, weights: dict[int, float]) -> pa.RecordBatch:
    column = pa.array([weights.get(i, 1.0) for i in range(rows.num_rows)], pa.float32())
    return rows.set_column(rows.schema.get_field_index(WEIGHT), rows.schema.field(WEIGHT), column)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_batch_whose_gradient_is_not_finite_changes_nothing_and_the_next_is_learned(
    harness: Harness, weight: float
) -> None:
    harness.learn(batch(0))
    before = harness.state()
    bad = with_weights(batch(1000), {3: weight})  # with ids that have no entry yet
    assert harness.finite(bad) == [False] * bad.num_rows
    assert harness.state() == before
    assert all(harness.finite(batch(2000)))
    assert harness.state()["step"] == 2


def test_a_label_that_is_infinite_changes_nothing(harness: Harness) -> None:
    before = harness.state()
    assert not any(harness.finite(with_labels(batch(0), float("inf"))))
    assert harness.state() == before


def test_of_a_batch_in_slices_only_the_slice_that_is_not_finite_is_left_out() -> None:
    rows = batch(0, 5)
    harness, other = (Harness(audit=False, micro_batch=8, epochs=2) for _ in range(2))
    expected = [True] * 8 + [False] * 8 + [True] * 4
    assert harness.finite(with_weights(rows, {9: float("nan")})) == expected
    assert all(other.finite(pa.Table.from_batches([rows.slice(0, 8), rows.slice(16)]).combine_chunks().to_batches()[0]))
    assert harness.state()["tables"] == other.state()["tables"]
    for each in (harness, other):
        each.queue.close()


def test_moving_averages_of_a_batch_that_is_not_finite_stay() -> None:
    class Normalised(FeedRanking):
        def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
            whole = keras.layers.BatchNormalization()(keras.layers.Concatenate()(list(embeddings.values())))
            return {"click": keras.layers.Dense(1)(whole)}

    harness = Harness(task=Normalised())
    harness.learn(batch(0))
    before = harness.state()
    assert not any(harness.finite(with_weights(batch(1000), {3: float("nan")})))
    assert harness.state() == before
    harness.queue.close()


def test_entries_are_stamped_with_the_time_that_the_step_is_given(harness: Harness) -> None:
    for time in (1000, 900):
        harness.queue.put(Ticket.of(batch(time), 1), batch(time))
        harness.step.step(time)
    stamps = {stamp for page in harness.store.entries("user") for stamp in page.timestamps.tolist()}
    assert stamps == {900, 1000} or stamps == {1000}


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
    assert harness.step.traced.experimental_get_tracing_count() == 1


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
