"""Keeps one loaded version fresh: applies the model's deltas from Kafka in order, in memory."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError

from millrace.protos import model_delta_pb2
from millrace.runtime import telemetry
from millrace.runtime.topic_reader import Record

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 1
_MAX_RECORDS = 200
_POLL_SECONDS = 0.02
_RETRY_SECONDS = 1.0

_APPLIED = telemetry.counter("deltas_applied", "Deltas applied, counted once per loaded version.")
_ENTRIES = telemetry.counter("delta_entries_applied", "Embedding entries assigned or erased by deltas.")
_IGNORED = telemetry.counter("deltas_ignored", "Deltas that were already inside the export or applied before.")
_MALFORMED = telemetry.counter("deltas_malformed", "Deltas that were skipped because they do not fit the model.")
_LAG_MS = telemetry.gauge("delta_lag_ms", "Age of the newest applied delta when it was applied.", ("model",))
_RESYNC = telemetry.gauge("resync_required", "1 after a gap in the deltas, until the next export.", ("model",))


class DeltaError(ValueError):
    """A delta that does not fit the model, or that the model refused to take."""


class EmbeddingTables(Protocol):
    """The part of `millrace.ops.embedding_table.EmbeddingStore` that deltas write to."""

    def table(self, name: str) -> Any: ...

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> Any: ...

    def erase(self, table: str, ids: np.ndarray) -> Any: ...


class DeltaApplier:
    """Applies deltas of one model, by sequence number and shard, to tables and dense variables.

    Args:
      store: embedding tables, None for a model without.
      tables: names that a delta may write to.
      dense: {name: variable with `shape`, `dtype` and `assign`}.
      last_sequence: last delta whose content the export holds.
    """

    def __init__(
        self,
        store: EmbeddingTables | None,
        tables: Sequence[str],
        dense: Mapping[str, Any],
        last_sequence: int = 0,
    ) -> None:
        self._store = store
        self._tables = frozenset(tables) if store is not None else frozenset()
        self._dense = dense
        self._base_sequence = last_sequence
        self._sequences: dict[int, int] = {}
        self.applied = 0
        self.entries = 0
        self.resync_required = False

    def apply(self, value: bytes) -> model_delta_pb2.ModelDelta | None:
        """Applies one serialized ModelDelta; returns it, or None when its sequence number was seen before.

        A jump in the sequence sets `resync_required`. Later deltas still apply: values are absolute, so what was lost
        stays stale only until it is touched again or exported.

        Raises:
          DeltaError: the delta does not fit the model; checked before anything is written. Or the model refused it.
        """
        delta = _decode(value)
        last = self._sequences.get(delta.shard, self._base_sequence)
        if delta.sequence <= last:
            return None
        # Noted first: a delta that is skipped as malformed must not count as a gap too.
        self._sequences[delta.shard] = delta.sequence
        if delta.sequence > last + 1:
            self._note_gap(delta, last)
        writes = [self._table_write(table) for table in delta.tables]
        dense = [self._dense_write(variable) for variable in delta.dense]
        try:
            for name, fids, values, evicted in writes:
                self._write(name, fids, values, evicted)
            for variable, array in dense:
                variable.assign(array)
        except Exception as error:
            # Skipped, not retried: one delta that cannot be written must not delay those after it.
            self.resync_required = True
            raise DeltaError(f"cannot be written: {type(error).__name__}: {str(error)[:200]}") from error
        self.applied += 1
        return delta

    def _note_gap(self, delta: model_delta_pb2.ModelDelta, last: int) -> None:
        if not self.resync_required:
            _LOG.warning(
                "deltas of %s shard %d: %d follows %d; what was between them is stale until the next export",
                delta.model_name,
                delta.shard,
                delta.sequence,
                last,
            )
        self.resync_required = True

    def _table_write(self, table: model_delta_pb2.ModelDelta.Table) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        if table.name not in self._tables:
            raise DeltaError(f"table '{table.name}' is unknown; tables: {', '.join(sorted(self._tables)) or 'none'}")
        if len(table.fids) % 8 or len(table.evicted_fids) % 8:
            raise DeltaError(f"table '{table.name}': fids are not a whole number of int64")
        assert self._store is not None  # a model without a store has no tables
        dim = self._store.table(table.name).dim
        if table.dim != dim:
            raise DeltaError(f"table '{table.name}': entries of {table.dim} floats, must be {dim}")
        fids = np.frombuffer(table.fids, "<i8")
        if len(table.values) != 4 * dim * len(fids):
            raise DeltaError(f"table '{table.name}': {len(fids)} fids x {table.dim} with {len(table.values)} bytes")
        values = np.frombuffer(table.values, "<f4").reshape(len(fids), table.dim)
        if not np.isfinite(values).all():
            raise DeltaError(f"table '{table.name}': a value is not finite")
        return table.name, fids, values, np.frombuffer(table.evicted_fids, "<i8")

    def _write(self, name: str, fids: np.ndarray, values: np.ndarray, evicted: np.ndarray) -> None:
        assert self._store is not None  # `_table_write` refuses every table of a model without a store
        if len(fids):
            self._store.assign(name, fids, values)
        if len(evicted):
            self._store.erase(name, evicted)
        self.entries += len(fids) + len(evicted)

    def _dense_write(self, dense: model_delta_pb2.ModelDelta.Dense) -> tuple[Any, np.ndarray]:
        variable = self._dense.get(dense.name)
        if variable is None:
            raise DeltaError(f"dense variable '{dense.name}' is unknown")
        shape = tuple(int(size) for size in variable.shape)
        dtype = np.dtype(variable.dtype.as_numpy_dtype if hasattr(variable.dtype, "as_numpy_dtype") else variable.dtype)
        if tuple(dense.shape) != shape or dense.dtype != dtype.name:
            wanted = f"{dtype.name}{list(shape)}"
            raise DeltaError(f"dense variable '{dense.name}': {dense.dtype}{list(dense.shape)}, must be {wanted}")
        if len(dense.data) != dtype.itemsize * int(np.prod(shape)):
            raise DeltaError(f"dense variable '{dense.name}': {len(dense.data)} bytes for shape {list(shape)}")
        return variable, np.frombuffer(dense.data, dtype.newbyteorder("<")).reshape(shape)


def _decode(value: bytes) -> model_delta_pb2.ModelDelta:
    try:
        delta = model_delta_pb2.ModelDelta.FromString(value)
    except DecodeError as error:
        raise DeltaError(f"not a ModelDelta ({error})") from error
    if delta.schema_version != _SCHEMA_VERSION:
        raise DeltaError(f"schema_version is {delta.schema_version}, this server reads {_SCHEMA_VERSION}")
    return delta


class DeltaSource(Protocol):
    """The part of `millrace.runtime.topic_reader.TopicReader` that is used here."""

    def read(self, max_records: int = ..., seconds: float = ...) -> list[Record]: ...

    def reached_end(self) -> bool: ...

    def close(self) -> None: ...


class DeltaConsumer:
    """Reads deltas on a thread of its own and applies them until it is closed.

    Args:
      model: label of the metrics.
      open_source: opens the topic at the export's offsets; called on the consumer's thread.
      clock: Unix seconds.
    """

    def __init__(
        self,
        model: str,
        applier: DeltaApplier,
        open_source: Callable[[], DeltaSource],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._applier = applier
        self._open_source = open_source
        self._clock = clock
        self._stop = threading.Event()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"deltas-{model}", daemon=True)
        _RESYNC.labels(model).set(0)

    def start(self) -> None:
        self._thread.start()

    def wait_caught_up(self, seconds: float) -> bool:
        """Whether, within `seconds`, all deltas that the topic held at the start were applied."""
        return self._caught_up.wait(seconds)

    def close(self) -> None:
        """Stops applying; returns when the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow(self._open_source())
            except Exception:  # if this thread ended, stale scores would be served and nobody would notice
                _LOG.exception("deltas of %s: starting over from the export's offsets", self._model)
                self._stop.wait(_RETRY_SECONDS)

    def _follow(self, source: DeltaSource) -> None:
        try:
            while not self._stop.is_set():
                for record in source.read(_MAX_RECORDS, _POLL_SECONDS):
                    self._apply(record)
                if not self._caught_up.is_set() and source.reached_end():
                    self._caught_up.set()
        finally:
            source.close()

    def _apply(self, record: Record) -> None:
        entries_before = self._applier.entries
        try:
            delta = self._applier.apply(record.value or b"")
        except DeltaError as error:
            _MALFORMED.inc()
            _LOG.warning("delta at partition %d offset %d skipped: %s", record.partition, record.offset, error)
            return
        _RESYNC.labels(self._model).set(int(self._applier.resync_required))
        if delta is None:
            _IGNORED.inc()
            return
        _APPLIED.inc()
        _ENTRIES.inc(self._applier.entries - entries_before)
        _LAG_MS.labels(self._model).set(max(0.0, self._clock() * 1000 - delta.created_at_ms))
