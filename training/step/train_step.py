"""One step: look up, predict, compare, update dense variables and embedding entries; a single traced function."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.training.stream.example_stream import FeedQueue, Layout
from millrace.training.task import Task
from millrace.training.task.heads import DenseModel, total_loss
from millrace.transforms.batch.record_batch import AUDIT

AUDIT_TABLE = TableConfig("audit", dim=1, optimizer=Sgd(1.0), initializer=Zeros())


class TrainStep:
    """Predicts a batch, then trains on it.

    Traced once: every dimension that varies is unknown to the graph.

    Args:
      micro_batch: rows of one update; a batch is predicted whole, then learned in slices of this many rows. 0: at once.
      epochs: passes over a batch after its prediction.
      audit_store: counts in table `audit` how often each source row was trained, when given.
    """

    def __init__(
        self,
        task: Task,
        store: EmbeddingStore,
        feed_queue: FeedQueue,
        audit_store: EmbeddingStore | None = None,
        micro_batch: int = 0,
        epochs: int = 1,
    ) -> None:
        self.task, self.store, self.audit_store = task, store, audit_store
        self.dense = DenseModel(task)
        self.optimizer = keras.optimizers.Adam(task.dense_learning_rate)
        if self.dense.trainable:
            self.optimizer.build(self.dense.trainable)
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        self._queue, self._layout = feed_queue, feed_queue.layout
        self._features = list(task.pooled_features())
        columns = task.fid_columns()
        self._column_index = [self._layout.columns.index(columns[feature.name]) for feature in task.features]
        self._micro_batch, self._epochs = micro_batch, epochs
        self.step = tf.function(self._step, input_signature=[])
        self.predict = tf.function(self._predict, input_signature=self._layout.specs)

    def _predict(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Logits [rows, heads] of a batch, nothing is learned or created."""
        return self.dense.logits(self._embeddings(self._lookup(tensors, missing="zeros")))

    def _step(self) -> tf.Tensor:
        """Takes a batch from the queue; returns its logits [rows, heads] as they were before it was learned."""
        batch = self._queue.dequeue()
        if self._micro_batch or self._epochs > 1:
            logits = self.dense.logits(self._embeddings(self._lookup(batch, missing="create")))
            with tf.control_dependencies([logits]):
                self._learn_in_slices(batch)
        else:
            logits = self._learn(batch)
        if self.audit_store is not None:
            self._audit(batch)
        self.global_step.assign_add(1)
        return logits

    def _learn_in_slices(self, batch: list[tf.Tensor]) -> None:
        rows = tf.shape(batch[-1])[0]
        size = tf.minimum(self._micro_batch or rows, rows)
        slices = (rows + size - 1) // tf.maximum(size, 1)

        def learn(index: tf.Tensor) -> tuple[tf.Tensor]:
            start = (index % slices) * size
            self._learn(self._slice(batch, start, tf.minimum(start + size, rows)))
            return (index + 1,)

        tf.while_loop(lambda index: index < slices * self._epochs, learn, [tf.constant(0)], parallel_iterations=1)

    def _slice(self, batch: list[tf.Tensor], start: tf.Tensor, stop: tf.Tensor) -> list[tf.Tensor]:
        """Rows [start, stop) of every tensor of the layout."""
        result = []
        sparse = len(self._layout.sparse)
        for values, splits in zip(batch[0 : 2 * sparse : 2], batch[1 : 2 * sparse : 2], strict=True):
            part = splits[start : stop + 1]
            result += [values[part[0] : part[-1]], part - part[0]]
        return result + [tensor[start:stop] for tensor in batch[2 * sparse :]]

    def _learn(self, batch: Sequence[tf.Tensor]) -> tf.Tensor:
        """One update of everything; returns the logits before it."""
        labels, weights, sample_rates = batch[-3:]
        pooled = self._lookup(batch, missing="create")
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pooled)
            variables = self.dense.trainable
            tape.watch([variable.value for variable in variables])
            logits = self.dense.logits(self._embeddings(pooled), training=True)
            heads, early = tuple(self.task.heads), self.task.early_negatives
            loss = total_loss(heads, logits, labels, weights, sample_rates, early)
        gradients, pooled_gradients = tape.gradient(
            loss, ([v.value for v in variables], pooled), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if variables:
            self.optimizer.apply(gradients, variables)
        values, splits = self._inputs(batch)
        self.store.apply_pooled_gradients(self._features, values, splits, pooled_gradients, self.global_step)
        return logits

    def _inputs(self, batch: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        return [batch[2 * i] for i in self._column_index], [batch[2 * i + 1] for i in self._column_index]

    def _lookup(self, batch: Sequence[tf.Tensor], missing: str) -> list[tf.Tensor]:
        values, splits = self._inputs(batch)
        return self.store.pooled_lookup(self._features, values, splits, missing, self.global_step)

    def _embeddings(self, pooled: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        for feature, tensor in zip(self.task.features, pooled, strict=True):
            tensor.set_shape([None, feature.dim])
        return {feature.name: tensor for feature, tensor in zip(self.task.features, pooled, strict=True)}

    def _audit(self, batch: Sequence[tf.Tensor]) -> None:
        fids = batch[2 * self._layout.sparse.index(AUDIT)]
        minus_one = tf.fill([tf.shape(fids)[0], 1], -1.0)
        self.audit_store.apply_gradients(AUDIT_TABLE.name, fids, minus_one)  # type: ignore[union-attr]


def limit_threads(intra: int = 1, inter: int = 2) -> None:
    """Few threads: a step is small, so more of them only wait for each other. To be called before TensorFlow runs."""
    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(inter)


def new_stores(task: Task, shared_name: str, audit: bool) -> tuple[EmbeddingStore, EmbeddingStore | None]:
    """(tables of the task, audit table or None), empty, found process-wide by names that begin with `shared_name`."""
    store = EmbeddingStore(list(task.tables()), shared_name=shared_name)
    return store, EmbeddingStore([AUDIT_TABLE], shared_name=f"{shared_name}#audit") if audit else None


__all__ = ["AUDIT_TABLE", "Layout", "TrainStep", "limit_threads", "new_stores"]
