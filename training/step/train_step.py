"""One train step as one traced function: look up, predict, compute the loss, update dense variables and tables."""

import keras
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.layout import TrainLayout, TrainTensors
from millrace.training.task import Task
from millrace.training.task.heads import DenseModel, total_loss
from millrace.transforms.batch.record_batch import AUDIT

AUDIT_TABLE = TableConfig("audit", dim=1, optimizer=Sgd(1.0), initializer=Zeros())


class TrainStep:
    """Predicts a batch, then trains on it.

    Traced once for all sizes: the numbers of rows and of ids are unknown to the graph.

    Args:
      store: the tables of the task.
      batches: where `step` takes its batch from.
      audit_store: counts in table `audit` how often each source row was trained, when given; the batches must then
        have the column `__AUDIT__`.
      micro_batch: rows per update; a batch is predicted whole, then learned in slices of this many rows. 0: at once.
      epochs: passes over a batch after its prediction.

    Attributes:
      dense, optimizer: the dense part of the model, and the Keras optimizer of its variables.
      global_step: int64 variable, batches learned since the model was born.
      step: takes a batch from the queue and learns it; returns its logits, float32 [rows, heads], from before that.
      predict: logits float32 [rows, heads] of `TrainTensors`; nothing is learned, and no entry is created.
    """

    def __init__(
        self,
        task: Task,
        store: EmbeddingStore,
        batches: BatchQueue,
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
        self._batches = batches
        self._features = list(task.pooled_features())
        columns = task.fid_columns()
        self._columns = [columns[feature.name] for feature in task.features]
        self._micro_batch, self._epochs = micro_batch, epochs
        self.step = tf.function(self._step, input_signature=[])
        self.predict = tf.function(self._predict, input_signature=[batches.layout.specs])

    def _predict(self, batch: TrainTensors) -> tf.Tensor:
        return self.dense.logits(self._embeddings(self._lookup(batch, missing="zeros")))

    def _step(self) -> tf.Tensor:
        batch = self._batches.dequeue()
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

    def _learn_in_slices(self, batch: TrainTensors) -> None:
        rows = tf.shape(batch.labels)[0]
        size = tf.minimum(self._micro_batch or rows, rows)
        slices = (rows + size - 1) // tf.maximum(size, 1)

        def learn(index: tf.Tensor) -> tuple[tf.Tensor]:
            start = (index % slices) * size
            self._learn(batch.rows(start, tf.minimum(start + size, rows)))
            return (index + 1,)

        tf.while_loop(lambda index: index < slices * self._epochs, learn, [tf.constant(0)], parallel_iterations=1)

    def _learn(self, batch: TrainTensors) -> tf.Tensor:
        """One update of everything; returns the logits before it."""
        pooled = self._lookup(batch, missing="create")
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pooled)
            variables = self.dense.trainable
            tape.watch([variable.value for variable in variables])
            logits = self.dense.logits(self._embeddings(pooled), training=True)
            heads, early = tuple(self.task.heads), self.task.early_negatives
            loss = total_loss(heads, logits, batch.labels, batch.weights, batch.sample_rates, early)
        gradients, pooled_gradients = tape.gradient(
            loss, ([v.value for v in variables], pooled), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        if variables:
            self.optimizer.apply(gradients, variables)
        values, splits = self._inputs(batch)
        self.store.apply_pooled_gradients(self._features, values, splits, pooled_gradients, self.global_step)
        return logits

    def _inputs(self, batch: TrainTensors) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """(fids, row splits) of each feature."""
        return [batch.values[name] for name in self._columns], [batch.splits[name] for name in self._columns]

    def _lookup(self, batch: TrainTensors, missing: str) -> list[tf.Tensor]:
        values, splits = self._inputs(batch)
        return self.store.pooled_lookup(self._features, values, splits, missing, self.global_step)

    def _embeddings(self, pooled: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        for feature, tensor in zip(self.task.features, pooled, strict=True):
            tensor.set_shape([None, feature.dim])
        return {feature.name: tensor for feature, tensor in zip(self.task.features, pooled, strict=True)}

    def _audit(self, batch: TrainTensors) -> None:
        fids = batch.values[AUDIT]
        minus_one = tf.fill([tf.shape(fids)[0], 1], -1.0)
        self.audit_store.apply_gradients(AUDIT_TABLE.name, fids, minus_one)  # type: ignore[union-attr]


def limit_threads(intra: int = 1, inter: int = 2) -> None:
    """Limits TensorFlow's threads within an op and between ops; to be called before TensorFlow runs anything.

    A train step is many small ops: with more threads it only waits longer for their hand-overs.
    """
    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(inter)


def new_step(task: Task, name: str) -> TrainStep:
    """A step over empty tables that takes no batches: for what is restored or imported into it, and saved again.

    Args:
      name: of its tables in the process, until `EmbeddingStore.release`.
    """
    batches = BatchQueue(TrainLayout.of(task), name)
    store, _ = new_stores(task, batches.name, audit=False)
    return TrainStep(task, store, batches)


def new_stores(task: Task, shared_name: str, audit: bool) -> tuple[EmbeddingStore, EmbeddingStore | None]:
    """(store of the task's tables, store of the audit table or None), both empty.

    The process keeps them under `shared_name` and `shared_name#audit` until `EmbeddingStore.release`.
    """
    store = EmbeddingStore(list(task.tables()), shared_name=shared_name)
    return store, EmbeddingStore([AUDIT_TABLE], shared_name=f"{shared_name}#audit") if audit else None
