"""The bounded queue between the thread that reads batches and the thread that trains on them."""

import itertools
import queue
import threading
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf

from millrace.training.stream.layout import TrainLayout, TrainTensors, labels_of
from millrace.training.stream.position import Passed
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import provenance_of

_queue_numbers = itertools.count()
_QUEUE_BATCHES = 16  # enough to train on while the reader decodes a block, and at most some MB


Place = tuple[int, int, str]
"""(partition, offset, id of the incarnation) of a block in the train topic."""


class BlockRows(NamedTuple):
    """Where rows come from: the place of a block in the train topic, and how many rows of it.

    Attributes:
      topic_id: id of the topic's incarnation in which `offset` counts.
    """

    partition: int
    offset: int
    rows: int
    topic_id: str = ""

    @property
    def place(self) -> Place:
        return self.partition, self.offset, self.topic_id


@dataclass(frozen=True)
class Ticket:
    """What the trainer must know about one batch beside its tensors: labels, provenance and offsets.

    Attributes:
      rows: rows of the batch; 0 means that nothing is in the queue for this ticket.
      labels: float32 [rows, heads].
      sample_rates: float32 [rows].
      partition, offset, row: int64 [rows], provenance.
      event_times_ms: int64 [rows].
      event_time_ms: newest event time in the batch, 0 without rows.
      passed: what is true once the batch is applied.
      blocks: the blocks that the rows come from, in the order of the rows.
      batch: the rows themselves; None without rows.
    """

    rows: int
    labels: np.ndarray
    sample_rates: np.ndarray
    partition: np.ndarray
    offset: np.ndarray
    row: np.ndarray
    event_times_ms: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    event_time_ms: int = 0
    passed: Passed = field(default_factory=Passed)
    blocks: tuple[BlockRows, ...] = ()
    batch: pa.RecordBatch | None = None

    @classmethod
    def of(cls, batch: pa.RecordBatch, heads: int) -> "Ticket":
        """The ticket of a batch with `heads` labels per row; `passed` and `blocks` say nothing."""
        partition, offset, row = provenance_of(batch)
        times = record_batch.numpy_column(batch, record_batch.EVENT_TIME_MS)
        newest = int(times.max()) if len(times) else 0
        rates = record_batch.numpy_column(batch, record_batch.SAMPLE_RATE)
        labels = labels_of(batch, heads)
        return cls(batch.num_rows, labels, rates, partition, offset, row, times, newest, batch=batch)

    def select(self, chosen: np.ndarray) -> "Ticket":
        """The ticket of the rows where `chosen`, bool [rows], is true; it names all blocks, and passes the same."""
        if chosen.all():
            return self
        columns = ("labels", "sample_rates", "partition", "offset", "row", "event_times_ms")
        parts = {name: getattr(self, name)[chosen] for name in columns}
        batch = self.batch.filter(pa.array(chosen)) if self.batch is not None else None
        return replace(self, rows=int(chosen.sum()), batch=batch, **parts)


class BatchQueue:
    """A bounded FIFO of batches inside TensorFlow; the train step takes a batch from it with an op.

    `put` belongs to the reader's thread, `next_ticket` to the trainer's. For each ticket with rows that `next_ticket`
    returned, the trainer must run one `dequeue`: it gets the batch of that ticket.

    Args:
      layout: of the batches.
      name: prefix of the queue's name; a number that is unique in the process is appended.
      capacity: batches that the queue holds before `put` blocks.
    """

    def __init__(self, layout: TrainLayout, name: str, capacity: int = _QUEUE_BATCHES) -> None:
        self.layout = layout
        self.name = f"{name}/{next(_queue_numbers)}"
        self._specs = layout.specs
        self._queue = tf.queue.FIFOQueue(
            capacity,
            [spec.dtype for spec in tf.nest.flatten(self._specs)],
            shared_name=f"batches/{self.name}",
        )
        self._tickets: queue.Queue[Ticket] = queue.Queue()
        self._closed = threading.Event()
        self.error: BaseException | None = None

    def put(self, ticket: Ticket, batch: pa.RecordBatch | None) -> None:
        """Appends a batch; blocks while the queue is full.

        Args:
          batch: a batch as `Gate` lets it through; None, or no rows, for a ticket without rows.

        Raises:
          tf.errors.CancelledError: the queue is closed.
        """
        if ticket.rows and batch is not None:
            self._queue.enqueue([tf.constant(array) for array in tf.nest.flatten(self.layout.arrays(batch))])
        self._tickets.put(ticket)

    def dequeue(self) -> TrainTensors:
        """The next batch, with the shapes of `layout.specs`; to be called inside a tf.function."""
        tensors = self._queue.dequeue()
        for tensor, spec in zip(tensors, tf.nest.flatten(self._specs), strict=True):
            tensor.set_shape(spec.shape)
        batch: TrainTensors = tf.nest.pack_sequence_as(self._specs, tensors)
        return batch

    def next_ticket(self, seconds: float) -> Ticket | None:
        """The next ticket, or None if none came within `seconds`. Raises the error that was given to `fail`."""
        try:
            return self._tickets.get(timeout=seconds) if seconds > 0 else self._tickets.get_nowait()
        except queue.Empty:
            if self.error is not None:
                raise self.error from None
            return None

    def fail(self, error: BaseException) -> None:
        """Makes `next_ticket` raise `error` once the tickets that are left were taken."""
        self.error = error

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Wakes a `put` that waits for space, which then raises; the batches in the queue are dropped."""
        self._closed.set()
        self._queue.close(cancel_pending_enqueues=True)
