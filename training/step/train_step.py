"""One train step as one traced function: look up, predict, compute the loss, update dense variables and tables."""

from typing import NamedTuple

import tensorflow as tf

from millrace.ops.embedding_table import NOW, EmbeddingStore
from millrace.ops.judge_update import judge_update
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.training.step.dense_adam import DenseAdam
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.layout import TrainLayout, TrainTensors
from millrace.training.task import Task
from millrace.training.task.heads import DenseModel, total_loss
from millrace.transforms.batch.record_batch import AUDIT

AUDIT_TABLE = TableConfig("audit", dim=1, optimizer=Sgd(1.0), initializer=Zeros())


class Learned(NamedTuple):
    """What became of one batch.

    Attributes:
      logits: float32 [rows, heads], from before the batch was learned.
      finite: bool [rows], whether the row was learned. False for the rows of an update whose loss or gradients are NaN
        or infinite: it changed nothing.
      gradient_rms: float32 [updates], of each update the root of the mean over its rows of the squared norm of a row's
        embedding gradients. NaN or infinite when that of the update is.
    """

    logits: tf.Tensor
    finite: tf.Tensor
    gradient_rms: tf.Tensor


class TrainStep:
    """Predicts a batch, then trains on it.

    Traced once for all sizes: the numbers of rows and of ids are unknown to the graph.

    One update is all or nothing: when its loss or one of its gradients is NaN or infinite, dense variables, optimizer
    state, tables, audit and the global step stay as they are. With `micro_batch` each slice is such an update, so the
    other slices of the batch are learned. A norm of gradients above 1e19, whose square is no float32, is infinite here.

    Args:
      store: the tables of the task.
      batches: where `step` takes its batch from.
      audit_store: counts in table `audit` how often each source row was trained, when given; the batches must then
        have the column `__AUDIT__`.
      micro_batch: rows per update; a batch is predicted whole, then learned in slices of this many rows. 0: at once.
      epochs: passes over a batch after its prediction.

    Attributes:
      dense, optimizer: the dense part of the model, and the Keras optimizer of its variables.
      global_step: int64 variable, batches of which at least one row was learned since the model was born.
      traced: the graph of `step`, a tf.function.
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
        self.optimizer = DenseAdam(task.dense_learning_rate)
        if self.dense.trainable:
            self.optimizer.build(self.dense.trainable)
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False, name="global_step")
        self._batches = batches
        self._features = list(task.pooled_features())
        columns = task.fid_columns()
        self._columns = [columns[feature.name] for feature in task.features]
        self._micro_batch, self._epochs = micro_batch, epochs
        self._state = [v for v in self.dense.variables if all(v is not t.value for t in self.dense.trainable)]
        # A variable: an argument of a traced function costs time per call, which shows in a small step.
        self._timestamp, self._stamp = tf.Variable(NOW, dtype=tf.int64, trainable=False, name="timestamp"), NOW
        self.traced = tf.function(self._step, input_signature=[])
        self.predict = tf.function(self._predict, input_signature=[batches.layout.specs])

    def step(self, timestamp: int = NOW) -> Learned:
        """Takes a batch from the queue and learns it.

        Args:
          timestamp: Unix seconds stamped on the entries that are updated; below 0 means now.
        """
        if timestamp != self._stamp:
            self._timestamp.assign(tf.constant(timestamp, tf.int64), read_value=False)
            self._stamp = timestamp
        return self.traced()

    def _predict(self, batch: TrainTensors) -> tf.Tensor:
        return self.dense.logits(self._embeddings(self._lookup(batch, missing="zeros")))

    def _step(self) -> Learned:
        batch, timestamp = self._batches.dequeue(), self._timestamp.read_value()
        if self._micro_batch or self._epochs > 1:
            logits = self.dense.logits(self._embeddings(self._lookup(batch, missing="first_vector")))
            with tf.control_dependencies([logits]):
                finite, rms = self._learn_in_slices(batch, timestamp)
        else:
            logits, one, rms = self._learn(batch, timestamp)
            finite, rms = tf.fill([tf.shape(batch.labels)[0]], one), rms[tf.newaxis]
        if self.audit_store is not None:
            self._audit(batch, finite)
        self.global_step.assign_add(tf.cast(tf.reduce_any(finite), tf.int64))
        return Learned(logits, finite, rms)

    def _learn_in_slices(self, batch: TrainTensors, timestamp: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(bool [rows]: whether the row was learned in one of the passes; float32 [updates]: their gradient_rms)."""
        rows = tf.shape(batch.labels)[0]
        size = tf.minimum(self._micro_batch or rows, rows)
        slices = (rows + size - 1) // tf.maximum(size, 1)
        updates = slices * self._epochs

        def learn(index: tf.Tensor, finite: tf.TensorArray, rms: tf.TensorArray) -> tuple[tf.Tensor, ...]:
            start = (index % slices) * size
            part = batch.rows(start, tf.minimum(start + size, rows))
            _, one, gradient = self._learn(part, timestamp)
            return index + 1, finite.write(index, one), rms.write(index, gradient)

        arrays = [tf.TensorArray(dtype, updates, element_shape=[]) for dtype in (tf.bool, tf.float32)]
        _, finite, rms = tf.while_loop(
            lambda index, *_: index < updates, learn, [tf.constant(0), *arrays], parallel_iterations=1
        )
        by_slice = tf.reduce_any(tf.reshape(finite.stack(), [self._epochs, slices]), axis=0)
        return tf.repeat(by_slice, size)[:rows], rms.stack()

    def _learn(self, batch: TrainTensors, timestamp: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One update of everything, or of nothing: (the logits before it, whether it was finite, its gradient_rms)."""
        # An id that is new reads as its first vector and gets its entry from the update: a lookup changes nothing.
        pooled = self._lookup(batch, missing="first_vector")
        before = [tf.identity(variable) for variable in self._state]
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
        finite, gradient_rms = judge_update(loss, gradients, pooled_gradients)

        # Ops that take the decision as an input: a tf.cond around them costs more.
        if variables:
            self.optimizer.apply_if(finite, gradients, variables)
        for variable, value in zip(self._state, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        values, splits = self._inputs(batch)
        self.store.apply_pooled_gradients(
            self._features, values, splits, pooled_gradients, self.global_step, timestamp, finite
        )
        return logits, finite, gradient_rms

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

    def _audit(self, batch: TrainTensors, learned: tf.Tensor) -> None:
        fids = tf.gather(batch.values[AUDIT], tf.where(learned)[:, 0])
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
