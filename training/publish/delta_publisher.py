"""Deltas: each second, the embedding entries that changed, in numbered messages on `model.deltas.<model>`."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from millrace.ops.embedding_table import EmbeddingStore
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.kafka_client import (
    KafkaConnection,
    UndeliveredError,
    make_producer,
    watermarks,
)
from millrace.runtime.telemetry import counter
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topic_setup import ensure_deltas
from millrace.training.task.heads import DenseModel

_LOG = logging.getLogger(__name__)
_DELTAS = counter("deltas_published", "delta messages that the broker acknowledged")
_ENTRIES = counter("delta_entries_published", "embedding entries in acknowledged deltas")
PUBLISH_FAILURES = counter("publish_failures", "deltas or events that could not be delivered yet", ("what",))
MAX_MESSAGE_BYTES = 900_000  # brokers refuse records above 1 MB unless they are told otherwise
_DENSE_LIMIT_BYTES = 256 * 1024  # larger dense parts reach servers with exports: each delta would repeat them
_READ_SECONDS = 10.0  # for the last message of the topic, at the start
_DELIVERY_SECONDS = 30  # after that a delta counts as refused, and a later one carries newer values of its entries
_RETRY_SECONDS = 2.0  # between attempts to reach the broker again; meanwhile training goes on
_SCHEMA_VERSION = 1


def delta_messages(
    store: EmbeddingStore, touched: dict[str, np.ndarray], max_bytes: int = MAX_MESSAGE_BYTES
) -> Iterator[list[ModelDelta.Table]]:
    """The tables of each message, at most `max_bytes` of ids and values per message.

    Args:
      store: where the values are read from.
      touched: {table: int64 [n], ids whose entry changed}; an id without an entry goes out as evicted.
    """
    tables: list[ModelDelta.Table] = []
    space = max_bytes
    for name, ids in touched.items():
        dim = store.table(name).dim
        there = np.asarray(store.contains(name, ids))
        evicted, ids = ids[~there], ids[there]
        entry_bytes = 8 + 4 * dim
        while len(ids) or len(evicted):
            if space < entry_bytes:
                yield tables
                tables, space = [], max_bytes
            part = ids[: space // entry_bytes]
            space -= len(part) * entry_bytes
            gone = evicted[: space // 8]
            space -= len(gone) * 8
            ids, evicted = ids[len(part) :], evicted[len(gone) :]
            tables.append(
                ModelDelta.Table(
                    name=name,
                    dim=dim,
                    fids=part.astype("<i8").tobytes(),
                    values=np.asarray(store.lookup(name, part)).astype("<f4").tobytes(),
                    evicted_fids=gone.astype("<i8").tobytes(),
                )
            )
    if tables:
        yield tables


class DeltaPublisher:
    """Publishes the entries and dense variables that changed since the delta before, in numbered messages.

    When the broker does not take a message, the ids of the delta are marked as touched again, so that a later delta
    carries their newest values. Numbers go on from the last message of the topic, also after a restart.

    Args:
      topic: is created if it is missing; it has one partition.
      dense: its variables go along whole when one changed, unless they are larger than 256 KiB.
      make: makes a Kafka producer.
      clock: seconds, monotonic.

    Attributes:
      sequence: number of the last acknowledged message.
      next_offset: offset after it.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        model_name: str,
        store: EmbeddingStore,
        dense: DenseModel,
        make: Callable[..., Any] = make_producer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self.topic, self._model_name = connection, topic, model_name
        self._store, self._dense, self._make, self._clock = store, dense, make, clock
        self.sequence = self.next_offset = 0
        self._producer: Any = None
        self._touched: dict[str, np.ndarray] = {}
        self._waiting = 0
        self._failed: str | None = None
        self._retry_at = 0.0
        self._last_dense: list[bytes] = []
        self._lost_ids = False
        ensure_deltas(connection, topic)
        self._resume()

    @property
    def in_flight(self) -> bool:
        """Whether messages are on their way: neither acknowledged nor refused."""
        return self._waiting > 0

    def publish(self, global_step: int, base_version: int, event_time_ms: int) -> int:
        """Sends what changed, unless the delta before is on its way or the broker is away.

        Args:
          global_step: step of the model.
          base_version: newest version that is exported, 0 without one.
          event_time_ms: newest event that was learned.

        Returns:
          How many messages were sent.
        """
        self.poll()
        if self.in_flight or not self._ready():
            return 0
        touched = self._store.steal_touched()
        if touched.overflowed:
            _LOG.warning("%s: some touched ids of %s were forgotten", self.topic, ", ".join(touched.overflowed))
            self._lost_ids = True
        self._touched = dict(touched)
        dense = self._changed_dense()
        batches = list(delta_messages(self._store, self._touched)) or ([[]] if dense else [])
        for i, tables in enumerate(batches):
            message = ModelDelta(
                model_name=self._model_name,
                sequence=self.sequence + 1 + i,
                base_version=base_version,
                global_step=global_step,
                created_at_ms=time.time_ns() // 1_000_000,
                event_time_ms=event_time_ms,
                tables=tables,
                dense=dense if i == len(batches) - 1 else [],
                schema_version=_SCHEMA_VERSION,
            )
            self._produce(message)
        return len(batches)

    def has_lost_ids(self) -> bool:
        """Whether touched ids were forgotten since the last call; their values reach servers with an export only."""
        lost, self._lost_ids = self._lost_ids, False
        return lost

    def poll(self, seconds: float = 0.0) -> None:
        """Takes acknowledgements. After a failure marks the ids as touched again, once nothing is in flight."""
        if self._producer is not None:
            self._producer.poll(seconds)
        if self._waiting or self._failed is None:
            return
        _LOG.warning("deltas of %s are not delivered (%s); their ids stay touched", self._model_name, self._failed)
        PUBLISH_FAILURES.labels("delta").inc()
        self._store.restore_touched(self._touched)
        self._touched, self._last_dense = {}, []
        self._failed = None
        self._retry_at = self._clock() + _RETRY_SECONDS
        self._producer = None

    def flush(self, seconds: float) -> None:
        """Waits until what was sent is acknowledged or has failed, at most `seconds`."""
        until = self._clock() + seconds
        while self.in_flight and self._clock() < until:
            self.poll(0.05)
        self.poll()

    def _ready(self) -> bool:
        """Whether there is a producer and it is known where the topic ends."""
        if self._producer is not None:
            return True
        if self._clock() < self._retry_at:
            return False
        try:
            self._resume()
        except Exception as error:  # whatever the client raises: the broker is away, training goes on
            _LOG.warning("%s cannot be reached: %s", self.topic, error)
            self._retry_at = self._clock() + _RETRY_SECONDS
            return False
        return True

    def _resume(self) -> None:
        """Makes a new producer and goes on after the last message of the topic.

        A message that the old producer gave up may be in the topic all the same.
        """
        low, high = watermarks(self._connection, self.topic)[0]
        if high > low:
            last = _last_record(self._connection, self.topic, high)
            self.sequence = max(self.sequence, ModelDelta.FromString(last).sequence)
        self.next_offset = high
        self._producer = self._make(self._connection, message_timeout_ms=_DELIVERY_SECONDS * 1000)

    def _produce(self, message: ModelDelta) -> None:
        sequence, entries = message.sequence, sum(len(table.fids) // 8 for table in message.tables)

        def delivered(error: Any, record: Any) -> None:
            self._waiting -= 1
            if error is not None:
                self._failed = str(error)
            elif self._failed is None:
                self.sequence, self.next_offset = sequence, record.offset() + 1
                _DELTAS.inc()
                _ENTRIES.inc(entries)

        self._waiting += 1
        try:
            self._producer.produce(self.topic, message.SerializeToString(), partition=0, on_delivery=delivered)
        except Exception as error:  # queue full or a fatal client error: as if the broker had refused it
            self._waiting -= 1
            self._failed = str(error)

    def _changed_dense(self) -> list[ModelDelta.Dense]:
        """All dense variables if one changed since they were last sent; none when they are too large for deltas."""
        arrays = [np.asarray(variable) for variable in self._dense.variables]
        if sum(array.nbytes for array in arrays) > _DENSE_LIMIT_BYTES:
            return []
        data = [array.tobytes() for array in arrays]
        if data == self._last_dense:
            return []
        self._last_dense = data
        return [
            ModelDelta.Dense(name=name, dtype=array.dtype.name, shape=array.shape, data=content)
            for name, array, content in zip(self._dense.names, arrays, data, strict=True)
        ]


def _last_record(connection: KafkaConnection, topic: str, end: int) -> bytes:
    """Value of the record before offset `end` of partition 0."""
    reader = TopicReader(connection, topic, {0: end - 1})
    until = time.monotonic() + _READ_SECONDS
    try:
        while time.monotonic() < until:
            for record in reader.read():
                return record.value or b""
    finally:
        reader.close()
    raise UndeliveredError(f"{topic}: its last message could not be read within {_READ_SECONDS:g} s")
