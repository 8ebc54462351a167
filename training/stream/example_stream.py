"""Batches for the train step: a feeder thread reads Kafka or Arrow and fills a bounded, process-wide TensorFlow queue.

Each batch in the queue has a ticket beside it: what the step does not need but a checkpoint does.
"""

import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import tensorflow as tf

from millrace.runtime.kafka_blocks import BlockReader, KafkaReadError, Positions, resolve_start
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.telemetry import counter
from millrace.training.stream.position import SeenRows
from millrace.training.task import Task
from millrace.transforms.batch import record_batch

_LOG = logging.getLogger(__name__)
_BAD_BLOCKS = counter("train_blocks_bad", "blocks of the train topic that could not be used", ("reason",))
_queue_numbers = itertools.count()
_POLL_SECONDS = 0.01
_RETRY_SECONDS = 1.0
_QUEUE_BATCHES = 16
_JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class Layout:
    """Which columns of a block the step needs, and how they become tensors.

    Args:
      columns: names of the fid columns, without repeats.
      heads: labels a row.
      audit: whether blocks carry `__AUDIT__`.
    """

    columns: tuple[str, ...]
    heads: int
    audit: bool = False

    @classmethod
    def of(cls, task: Task, audit: bool = False) -> "Layout":
        return cls(tuple(dict.fromkeys(task.fid_columns().values())), len(task.heads), audit)

    @property
    def sparse(self) -> tuple[str, ...]:
        return (*self.columns, record_batch.AUDIT) if self.audit else self.columns

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """values int64 [n], row_splits int64 [rows + 1] a sparse column; labels, weights, sample rates."""
        ragged = [tf.TensorSpec([None], tf.int64)] * (2 * len(self.sparse))
        flat = [tf.TensorSpec([None], tf.float32)] * 2
        return [*ragged, tf.TensorSpec([None, self.heads], tf.float32), *flat]

    def arrays(self, batch: pa.RecordBatch) -> list[np.ndarray]:
        """Values of `specs` for a batch that passed `check`."""
        result = []
        for name in self.sparse:
            values, splits = ragged(batch.column(name))
            result += [values.astype(np.int64, copy=False), splits]
        return [
            *result,
            labels_of(batch, self.heads),
            record_batch.numpy_column(batch, record_batch.WEIGHT).astype(np.float32, copy=False),
            record_batch.numpy_column(batch, record_batch.SAMPLE_RATE).astype(np.float32, copy=False),
        ]

    def check(self, batch: pa.RecordBatch) -> None:
        """ValueError naming the column that is missing or wrong."""
        record_batch.validate_train_batch(batch, self.sparse, self.heads)

    def project(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only the columns that a trainer needs, so that blocks of different feeds concatenate."""
        names = (*self.sparse, *_ROW_COLUMNS)
        arrays = [batch.column(name) for name in names]
        return pa.RecordBatch.from_arrays(arrays, schema=record_schema(self.sparse))


_ROW_COLUMNS = (
    record_batch.LABEL,
    record_batch.WEIGHT,
    record_batch.SAMPLE_RATE,
    record_batch.EVENT_TIME_MS,
    record_batch.SOURCE_PARTITION,
    record_batch.SOURCE_OFFSET,
    record_batch.SOURCE_ROW,
)


def record_schema(sparse: tuple[str, ...]) -> pa.Schema:
    """Schema of what `Layout.project` keeps."""
    flat = {field.name: field for field in record_batch.METADATA_FIELDS}
    return pa.schema([record_batch.fid_field(name) for name in sparse] + [flat[name] for name in _ROW_COLUMNS])


def ragged(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(values [n], row_splits int64 [rows + 1]) of a list column; slices included."""
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    return column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def labels_of(batch: pa.RecordBatch, heads: int) -> np.ndarray:
    """float32 [rows, heads]."""
    values, _ = ragged(batch.column(record_batch.LABEL))
    return values.astype(np.float32, copy=False).reshape(batch.num_rows, heads)


@dataclass(frozen=True)
class Ticket:
    """What goes with one batch.

    Attributes:
      rows: rows of the batch; 0 means that nothing is in the queue for this ticket.
      labels: float32 [rows, heads].
      sample_rates: float32 [rows].
      partition, offset, row: int64 [rows], provenance.
      event_time_ms: newest event time in the batch, 0 without rows.
      offsets: {partition of the train topic: next offset} once the batch is applied.
      duplicates, too_old: rows refused on the way to this batch.
    """

    rows: int
    labels: np.ndarray
    sample_rates: np.ndarray
    partition: np.ndarray
    offset: np.ndarray
    row: np.ndarray
    event_time_ms: int = 0
    offsets: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0
    too_old: int = 0

    @classmethod
    def of(cls, batch: pa.RecordBatch, heads: int) -> "Ticket":
        partition, offset, row = record_batch.provenance(batch)
        times = record_batch.numpy_column(batch, record_batch.EVENT_TIME_MS)
        newest = int(times.max()) if len(times) else 0
        rates = record_batch.numpy_column(batch, record_batch.SAMPLE_RATE)
        return cls(batch.num_rows, labels_of(batch, heads), rates, partition, offset, row, newest)


class FeedQueue:
    """A bounded FIFO of batches inside TensorFlow, found by its shared name; the train step dequeues with an op.

    `put` (feeder's thread) and `next_ticket` (trainer's thread) go in step: once a ticket with rows was taken, one
    element of the queue is its batch.
    """

    def __init__(self, layout: Layout, name: str, capacity: int = _QUEUE_BATCHES) -> None:
        self.layout = layout
        self.name = f"{name}/{next(_queue_numbers)}"
        self._queue = tf.queue.FIFOQueue(
            capacity,
            [spec.dtype for spec in layout.specs],
            shared_name=f"feed/{self.name}",
        )
        self._tickets: queue.Queue[Ticket] = queue.Queue()
        self._closed = threading.Event()
        self.error: BaseException | None = None

    def put(self, ticket: Ticket, batch: pa.RecordBatch | None) -> None:
        """Blocks while the queue is full; raises tf.errors.CancelledError once it is closed."""
        if ticket.rows and batch is not None:
            self._queue.enqueue([tf.constant(array) for array in self.layout.arrays(batch)])
        self._tickets.put(ticket)

    def dequeue(self) -> list[tf.Tensor]:
        """Inside a tf.function: tensors of `layout.specs`."""
        tensors = self._queue.dequeue()
        for tensor, spec in zip(tensors, self.layout.specs, strict=True):
            tensor.set_shape(spec.shape)
        return list(tensors)

    def next_ticket(self, seconds: float) -> Ticket | None:
        """The next ticket, None after `seconds` without one. Raises what the feeder died of."""
        try:
            return self._tickets.get(timeout=seconds) if seconds > 0 else self._tickets.get_nowait()
        except queue.Empty:
            if self.error is not None:
                raise self.error from None
            return None

    def fail(self, error: BaseException) -> None:
        """Makes `next_ticket` raise `error` after the tickets that are left."""
        self.error = error

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Wakes a feeder that waits for space; what is queued is forgotten."""
        self._closed.set()
        self._queue.close(cancel_pending_enqueues=True)


@dataclass(frozen=True)
class _Mark:
    """What is true once all rows of a block are applied: where to go on, and how many of its rows were refused."""

    partition: int
    next_offset: int
    duplicates: int = 0
    too_old: int = 0


class Batcher:
    """Cuts blocks into batches of at most `batch_size` new rows and keeps the books about offsets and duplicates.

    Args:
      seen: source rows that were queued or applied before; this object goes on marking them.
    """

    def __init__(self, layout: Layout, batch_size: int, seen: SeenRows) -> None:
        self._layout, self._batch_size, self._seen = layout, batch_size, seen
        self._pieces: list[tuple[pa.RecordBatch, _Mark]] = []
        self.rows = 0

    @property
    def pending(self) -> bool:
        """Whether anything waits, be it only an offset."""
        return bool(self._pieces)

    def add(self, block: pa.RecordBatch, partition: int, next_offset: int) -> None:
        """Takes the new rows of one block; with the last of them goes its offset."""
        admission = self._seen.admit(*record_batch.provenance(block))
        rows = self._layout.project(block)
        if not admission.new.all():
            rows = rows.filter(pa.array(admission.new))
        self._pieces.append((rows, _Mark(partition, next_offset, admission.duplicates, admission.too_old)))
        self.rows += rows.num_rows

    def skip(self, partition: int, next_offset: int) -> None:
        """Passes over a block that cannot be used."""
        nothing = record_batch.empty(record_schema(self._layout.sparse))
        self._pieces.append((nothing, _Mark(partition, next_offset)))

    def take(self) -> tuple[Ticket, pa.RecordBatch]:
        """The next batch of at most `batch_size` rows, in order, with its ticket."""
        taken: list[pa.RecordBatch] = []
        marks: list[_Mark] = []
        space = self._batch_size
        while self._pieces:
            rows, mark = self._pieces[0]
            if rows.num_rows > space:
                if space:
                    taken.append(rows.slice(0, space))
                    self._pieces[0] = (rows.slice(space), mark)
                break
            taken.append(rows)
            space -= rows.num_rows
            self._pieces.pop(0)
            marks.append(mark)
        batch = record_batch.concat(taken, record_schema(self._layout.sparse))
        self.rows -= batch.num_rows
        ticket = replace(
            Ticket.of(batch, self._layout.heads),
            offsets={mark.partition: mark.next_offset for mark in marks},
            duplicates=sum(mark.duplicates for mark in marks),
            too_old=sum(mark.too_old for mark in marks),
        )
        return ticket, batch


class KafkaFeeder:
    """Fills a queue from the train topic in a thread of its own.

    A batch is handed over when it has `batch_size` rows, or `max_wait_seconds` after its first row came.

    Args:
      offsets: {partition: next offset}; partitions not named start at their beginning.
      seen: source rows already applied; the feeder keeps a copy of its own.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        feed_queue: FeedQueue,
        offsets: dict[int, int],
        seen: SeenRows,
        batch_size: int = 512,
        max_wait_seconds: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._topic, self._queue = connection, topic, feed_queue
        self._group = f"millrace-trainer-{topic}"
        self._batcher = Batcher(feed_queue.layout, batch_size, SeenRows.load(seen.save()))
        self._batch_size, self._max_wait, self._clock = batch_size, max_wait_seconds, clock
        self._reader = self._open(offsets)
        self._to_commit: Positions = {}
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what was read but not trained will be read again."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout=_JOIN_SECONDS)

    def close(self) -> None:
        """Ends the thread and the consumer; `commit` works until then."""
        self.stop()
        self._commit()
        self._reader.close()

    def commit(self, offsets: dict[int, int]) -> None:
        """Group offsets for monitoring only; a restart goes by the checkpoint.

        The feeder's own thread sends them: a consumer that is being polled makes another thread wait, without end when
        there is nothing to read.
        """
        self._to_commit = {(self._topic, partition): offset for partition, offset in offsets.items()}

    def _commit(self) -> None:
        offsets, self._to_commit = self._to_commit, {}
        if not offsets:
            return
        try:
            self._reader.commit(offsets)
        except Exception as error:  # a lost commit costs nothing, whatever the broker says
            _LOG.warning("offsets of %s are not committed: %s", self._topic, error)

    def _open(self, offsets: dict[int, int]) -> BlockReader:
        wanted = json.dumps({str(partition): offset for partition, offset in offsets.items()})
        start = resolve_start(self._connection, self._topic, wanted, self._group)
        for partition, offset in offsets.items():
            if start[partition] != offset:
                _LOG.warning(
                    "%s[%d]: offset %d of the checkpoint is gone, going on at %d",
                    self._topic, partition, offset, start[partition],
                )  # fmt: skip
        self._offsets = dict(start)
        start_of = {(self._topic, partition): offset for partition, offset in start.items()}
        return BlockReader(self._connection, start_of, self._group)

    def _run(self) -> None:
        try:
            self._feed()
        except tf.errors.CancelledError:
            pass
        except BaseException as error:  # the trainer's thread must learn of it, whatever it is
            self._queue.fail(error)

    def _feed(self) -> None:
        deadline = None
        while not self._queue.closed:
            self._commit()
            for block, partition, next_offset in self._blocks():
                self._add(block, partition, next_offset)
            if self._batcher.pending and deadline is None:
                deadline = self._clock() + self._max_wait
            while self._batcher.rows >= self._batch_size:
                self._hand_over()
                deadline = self._clock() + self._max_wait
            if self._batcher.pending and deadline is not None and self._clock() >= deadline:
                self._hand_over()
            if not self._batcher.pending:
                deadline = None

    def _hand_over(self) -> None:
        ticket, batch = self._batcher.take()
        self._queue.put(ticket, batch)

    def _blocks(self) -> Iterator[tuple[bytes | None, int, int]]:
        try:
            blocks = self._reader.read(max_records=64, seconds=_POLL_SECONDS)
        except KafkaReadError as error:
            _LOG.warning("%s; going on with what is left", error)
            self._reader.close()
            time.sleep(_RETRY_SECONDS)
            self._reader = self._open(self._offsets)
            return
        for block in blocks:
            for value, partition, offset in zip(block.values, block.partitions, block.offsets, strict=True):
                self._offsets[partition] = offset + 1
                yield value, partition, offset + 1

    def _add(self, value: bytes | None, partition: int, next_offset: int) -> None:
        try:
            batch = record_batch.decode_ipc(value or b"")
            self._queue.layout.check(batch)
            self._batcher.add(batch, partition, next_offset)
        except ValueError as error:
            reason = "not-arrow" if isinstance(error, record_batch.NotArrowError) else "wrong-columns"
            _BAD_BLOCKS.labels(reason).inc()
            _LOG.warning("%s[%d] offset %d is skipped: %s", self._topic, partition, next_offset - 1, error)
            self._batcher.skip(partition, next_offset)


def invalid_rows(labels: np.ndarray) -> np.ndarray:
    """bool [rows, heads]: True where a label is INVALID_LABEL."""
    return np.asarray(labels <= record_batch.INVALID_LABEL / 2)


__all__ = ["Batcher", "FeedQueue", "KafkaFeeder", "Layout", "Ticket", "invalid_rows", "labels_of", "ragged"]
