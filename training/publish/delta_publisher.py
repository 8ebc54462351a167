"""Deltas: each second, what changed in a model, in numbered messages on `model.deltas.<model>`."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from millrace.ops.embedding_table import EmbeddingStore
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.kafka_client import KafkaConnection, max_record_bytes
from millrace.runtime.telemetry import counter
from millrace.training.publish.delta_split import (
    are_finite,
    delta_messages,
    dense_messages,
    dense_period,
    part_bytes,
)
from millrace.training.publish.outbox import Outbox
from millrace.training.publish.published import ModelWriter, newest_delta
from millrace.training.publish.transactions import NewRecord, TooLargeError, TransactionalProducer
from millrace.training.task.heads import DenseModel

_LOG = logging.getLogger(__name__)
_DELTAS = counter("deltas_published", "delta messages whose transaction was committed")
_ENTRIES = counter("delta_entries_published", "embedding entries in committed deltas")
_FORGOTTEN = counter("delta_ids_forgotten", "deltas whose content reaches servers with an export only", ("reason",))
PUBLISH_FAILURES = counter("publish_failures", "deltas or events that could not be delivered yet", ("what",))
MAX_MESSAGE_BYTES = 900_000  # also where a topic takes more: a server applies a message at once, and waits with answers
_LEAST_MESSAGE_BYTES = 16_000  # content that a broker refuses even in messages of this size is given up
_DENSE_BYTES_PER_SECOND = 1 << 20  # what a model's dense part may add to the topic, for every server to read
_HEARTBEAT_SECONDS = 0.9  # a little less than the second of a loop whose turns are not exact
_RETRY_SECONDS = 2.0  # between attempts to reach the broker again; meanwhile training goes on
_SCHEMA_VERSION = 2


def message_bytes(connection: KafkaConnection, topic: str) -> int:
    """Largest record to send to `topic`: what the topic takes, and not more than a server applies at once."""
    return min(max_record_bytes(connection, topic), MAX_MESSAGE_BYTES)


class DeltaPublisher:
    """Publishes the entries and dense variables that changed since the delta before, in numbered messages.

    The messages of one delta are one transaction. When it fails, the ids of the delta are marked as touched again, so
    that a later delta carries their newest values. Numbers go on from the last message of the topic, also after a
    restart. When nothing changed for a second, a message without content is sent: the heartbeat.

    Args:
      outbox: sends the messages.
      topic: exists, and has one partition.
      record_bytes: largest message.
      sequence: number of the last delta that a checkpoint knows; the topic may have been emptied since.
      dense: its variables go out whole, those that changed, every `dense_seconds`.
      dense_seconds: None: one second, or more for variables that would take more than 1 MiB per second.
      connection: to read the newest message of the topic with.
      clock: seconds, monotonic.

    Attributes:
      position: (number of the last committed message, offset after it).
      has_sent: whether a message of this epoch is in the topic.
    """

    def __init__(
        self,
        outbox: Outbox,
        connection: KafkaConnection,
        topic: str,
        writer: ModelWriter,
        store: EmbeddingStore,
        dense: DenseModel,
        sequence: int = 0,
        record_bytes: int = MAX_MESSAGE_BYTES,
        dense_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox, self._connection, self.topic, self._writer = outbox, connection, topic, writer
        self._store, self._dense, self._clock = store, dense, clock
        self._record_bytes = record_bytes
        self._period = dense_seconds or dense_period(self._dense_arrays(), _DENSE_BYTES_PER_SECOND)
        self._dense_due = clock()
        self.position, self.has_sent = (sequence, 0), False
        self._next_heartbeat = 0.0
        self._number = sequence  # of the newest message in the topic; the outbox's thread has it
        self._sent: Future[tuple[int, int, int]] | None = None
        self._touched: dict[str, np.ndarray] = {}
        self._retry_at = 0.0
        self._last_dense: dict[str, np.ndarray] = {}
        self._sent_dense: dict[str, np.ndarray] = {}
        self._lost_ids = self._to_tell = False
        self._wide = self._wide_tables()
        self._knows_end = self._was_least = False
        outbox.after_open(self._forget_end)
        _LOG.info(
            "%s: dense variables go out every %g s, messages of up to %d bytes", topic, self._period, record_bytes
        )

    @property
    def in_flight(self) -> bool:
        """Whether a delta is on its way: its transaction neither committed nor failed."""
        return self._sent is not None

    def publish(self, global_step: int, base_version: int, event_time_ms: int) -> int:
        """Sends what changed, or a heartbeat, unless the delta before is on its way or the broker is away.

        Args:
          global_step: step of the model.
          base_version: newest version that is announced, 0 without one.
          event_time_ms: newest event that was learned.

        Returns:
          How many messages were sent.
        """
        self.poll()
        if self.in_flight or self._clock() < self._retry_at:
            return 0
        contents = [ModelDelta(tables=tables) for tables in self._table_parts()]
        contents += [ModelDelta(dense=parts) for parts in self._dense_parts()]
        if not contents and not self._to_tell and self._clock() < self._next_heartbeat:
            return 0
        self._next_heartbeat = self._clock() + _HEARTBEAT_SECONDS
        messages = contents or [ModelDelta()]
        for message in messages:
            message.model_name, message.schema_version = self._writer.model, _SCHEMA_VERSION
            message.lineage, message.epoch = self._writer.lineage, self._writer.epoch
            message.base_version, message.global_step = base_version, global_step
            message.created_at_ms, message.event_time_ms = time.time_ns() // 1_000_000, event_time_ms
        messages[0].ids_forgotten = self._to_tell
        self._sent = self._outbox.submit(lambda producer: self._send(producer, messages))
        return len(messages)

    def has_lost_ids(self) -> bool:
        """Whether touched ids were forgotten since the last call; their values reach servers with an export only."""
        lost, self._lost_ids = self._lost_ids, False
        return lost

    def poll(self) -> None:
        """Takes the result of the delta on its way, if there is one; after a failure its ids are touched again."""
        if self._sent is None or not self._sent.done():
            return
        sent, self._sent = self._sent, None
        error = sent.exception()
        if error is not None:
            self._failed(error)
            return
        number, offset, entries = sent.result()
        self.position, self.has_sent = (number, offset), True
        self._last_dense.update(self._sent_dense)
        self._touched, self._sent_dense, self._to_tell = {}, {}, False
        _ENTRIES.inc(entries)

    def flush(self, seconds: float) -> None:
        """Waits until what was sent is committed or has failed, at most `seconds`."""
        if self._sent is not None:
            try:
                self._sent.exception(seconds)
            except TimeoutError:
                _LOG.warning("%s: the last delta is not committed within %g s", self.topic, seconds)
        self.poll()

    def _table_parts(self) -> list[list[ModelDelta.Table]]:
        touched = self._store.steal_touched()
        if touched.overflowed:
            self._forget("overflow", f"some touched ids of {', '.join(touched.overflowed)}")
        self._touched = {name: ids for name, ids in touched.items() if name not in self._wide}
        return list(delta_messages(self._store, self._touched, part_bytes(self._record_bytes, list(self._touched))))

    def _wide_tables(self) -> list[str]:
        """Tables of which no entry fits into a message."""
        wide = [
            table.name
            for table in self._store.tables
            if 8 + 4 * table.dim > part_bytes(self._record_bytes, [table.name])
        ]
        for name in wide:
            _LOG.warning("%s: an entry of table %s is larger than a message: exports alone carry it", self.topic, name)
        return wide

    def _dense_parts(self) -> list[list[ModelDelta.Dense]]:
        """The variables that changed, when they are due and all of them are finite."""
        if self._clock() < self._dense_due:
            return []
        self._dense_due = self._clock() + self._period
        arrays = dict(zip(self._dense.names, self._dense_arrays(), strict=True))
        changed = {
            name: array.copy()
            for name, array in arrays.items()
            if name not in self._last_dense or not np.array_equal(array, self._last_dense[name])
        }
        if not changed or not are_finite(list(arrays.values())):
            return []
        self._sent_dense = changed
        return list(dense_messages(list(changed.items()), part_bytes(self._record_bytes, list(changed))))

    def _dense_arrays(self) -> Sequence[np.ndarray]:
        return [np.asarray(variable) for variable in self._dense.variables]

    def _send(self, producer: TransactionalProducer, messages: list[ModelDelta]) -> tuple[int, int, int]:
        """On the outbox's thread; returns (sequence, next offset, entries)."""
        if not self._knows_end:
            self._find_end()
        for number, message in enumerate(messages, self._number + 1):
            message.sequence = number
        try:
            offsets = producer.send([NewRecord(self.topic, m.SerializeToString(), None, 0) for m in messages])
        except TooLargeError:
            self._was_least = self._record_bytes <= _LEAST_MESSAGE_BYTES
            self._record_bytes = producer.message_bytes = max(self._record_bytes // 2, _LEAST_MESSAGE_BYTES)
            raise
        self._number = messages[-1].sequence
        _DELTAS.inc(len(messages))
        return self._number, offsets[-1] + 1, sum(len(t.fids) // 8 for message in messages for t in message.tables)

    def _forget_end(self) -> None:
        self._knows_end = False

    def _find_end(self) -> None:
        """On the outbox's thread: a delta of which no answer came may be in the topic all the same."""
        newest, end = newest_delta(self._connection, self.topic, self._writer.model)
        self._number = max(self._number, newest.sequence if newest else 0)
        self.position, self._knows_end = (self._number, end), True

    def _failed(self, error: BaseException) -> None:
        PUBLISH_FAILURES.labels("delta").inc()
        self._sent_dense, self._dense_due = {}, self._clock()
        if isinstance(error, TooLargeError):
            self._too_large()
        else:
            _LOG.warning("deltas of %s are not delivered (%s); ids stay touched", self._writer.model, error)
            self._retry_at = self._clock() + _RETRY_SECONDS
        self._store.restore_touched(self._touched)
        self._touched = {}

    def _too_large(self) -> None:
        """The topic's limit was lowered: smaller messages next. What fits into none is for exports to carry."""
        if not self._was_least:
            _LOG.warning("%s refuses the size of a delta; messages of %d bytes now", self.topic, self._record_bytes)
            return
        self._forget("too large", f"{sum(map(len, self._touched.values()))} changed ids, whose entries fit into none")
        self._touched = {}

    def _forget(self, reason: str, what: str) -> None:
        _LOG.warning("%s: %s are in no delta: an export carries them", self.topic, what)
        _FORGOTTEN.labels(reason).inc()
        self._lost_ids = self._to_tell = True
