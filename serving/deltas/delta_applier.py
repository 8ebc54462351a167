"""Applies deltas to one loaded version, in memory: tables and dense variables."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from google.protobuf.message import DecodeError

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime import telemetry
from millrace.serving.deltas.delta_order import DeltaError, DeltaOrder
from millrace.serving.deltas.dense_writer import DensePart, DenseWriter

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSIONS = (1, 2)

_ENTRIES = telemetry.counter("delta_entries_applied", "Embedding entries assigned or erased by deltas.")
_NOT_FINITE = telemetry.counter(
    "delta_values_not_finite", "Entries and parts of dense variables left out of deltas: a value was NaN or infinite."
)


class EmbeddingTables(Protocol):
    """The part of `millrace.ops.embedding_table.EmbeddingStore` that deltas write to."""

    def table(self, name: str) -> Any: ...

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> Any: ...

    def erase(self, table: str, ids: np.ndarray) -> Any: ...


class DeltaApplier:
    """Applies deltas of one model to tables and dense variables.

    `resync_required` tells that something was lost: a gap, a new epoch, a refused delta, values that are not finite.
    Later deltas still apply: values are absolute, so what was lost stays stale only until it is touched again or a
    newer export is loaded.

    Args:
      store: embedding tables, None for a model without.
      tables: names that a delta may write to.
      dense: {name: variable with `shape`, `dtype`, `numpy` and `assign`}.
      order: where the export stands in the deltas of its model.
    """

    def __init__(
        self, store: EmbeddingTables | None, tables: Sequence[str], dense: Mapping[str, Any], order: DeltaOrder
    ) -> None:
        self._store = store
        self._tables = frozenset(tables) if store is not None else frozenset()
        self._dense = DenseWriter(dense)
        self._order = order
        self.resync_required = False

    def check(self, value: bytes) -> ModelDelta:
        """The delta, if it is one for this version; DeltaError for one of another model, lineage or old epoch."""
        try:
            delta = ModelDelta.FromString(value)
        except DecodeError as error:
            raise self._refused(DeltaError("malformed", f"is not a ModelDelta ({error})")) from error
        if delta.schema_version not in _SCHEMA_VERSIONS:
            problem = f"schema_version is {delta.schema_version}, this server reads 1 and 2"
            raise self._refused(DeltaError("malformed", problem))
        try:
            self._order.check(delta)
        except DeltaError as error:
            raise self._refused(error) from None
        return delta

    def apply(self, delta: ModelDelta) -> bool:
        """Applies a delta of `check`; returns False for one that was applied before or is inside the export.

        Raises:
          DeltaError: the delta does not fit the model, checked before anything is written; or the model refused it.
        """
        is_new, missing = self._order.note(delta)
        if not is_new:
            return False
        if missing or delta.ids_forgotten:
            self._ask_resync(delta, missing or "its trainer has forgotten which ids changed")
        try:
            self._write(delta)
        except DeltaError as error:
            raise self._refused(error) from None
        return True

    def flush(self) -> None:
        """Assigns dense variables whose last part has not come."""
        self._dense.flush()

    def note_loss(self, what: str) -> None:
        """Asks for a resync because of something that only the reader of the topic knows."""
        if not self.resync_required:
            _LOG.warning("%s; what is missing stays stale until the next export is loaded", what)
        self.resync_required = True

    def _ask_resync(self, delta: ModelDelta, why: str) -> None:
        self.note_loss(f"deltas of {delta.model_name}: {why}")

    def _refused(self, error: DeltaError) -> DeltaError:
        self.resync_required = self.resync_required or error.resync
        return error

    def _write(self, delta: ModelDelta) -> None:
        writes = [self._table_write(table) for table in delta.tables]
        parts = [self._dense.check(dense) for dense in delta.dense]
        try:
            for name, fids, values, evicted in writes:
                self._write_table(delta, name, fids, values, evicted)
            for part in parts:
                self._write_dense(delta, part)
        except Exception as error:
            # Skipped, not retried: one delta that cannot be written must not delay those after it.
            problem = f"cannot be written: {type(error).__name__}: {str(error)[:200]}"
            raise DeltaError("not_written", problem) from error

    def _table_write(self, table: ModelDelta.Table) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        if table.name not in self._tables:
            choices = ", ".join(sorted(self._tables)) or "none"
            raise DeltaError("malformed", f"table '{table.name}' is unknown; tables: {choices}")
        if len(table.fids) % 8 or len(table.evicted_fids) % 8:
            raise DeltaError("malformed", f"table '{table.name}': fids are not a whole number of int64")
        assert self._store is not None  # a model without a store has no tables
        dim = self._store.table(table.name).dim
        if table.dim != dim:
            raise DeltaError("malformed", f"table '{table.name}': entries of {table.dim} floats, must be {dim}")
        fids = np.frombuffer(table.fids, "<i8")
        if len(table.values) != 4 * dim * len(fids):
            problem = f"table '{table.name}': {len(fids)} fids x {table.dim} with {len(table.values)} bytes"
            raise DeltaError("malformed", problem)
        values = np.frombuffer(table.values, "<f4").reshape(len(fids), table.dim)
        return table.name, fids, values, np.frombuffer(table.evicted_fids, "<i8")

    def _write_table(
        self, delta: ModelDelta, name: str, fids: np.ndarray, values: np.ndarray, evicted: np.ndarray
    ) -> None:
        assert self._store is not None  # `_table_write` refuses every table of a model without a store
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            self._note_not_finite(delta, f"{len(fids) - finite.sum()} entries of table '{name}'")
            _NOT_FINITE.inc(len(fids) - int(finite.sum()))
            fids, values = fids[finite], values[finite]
        if len(fids):
            self._store.assign(name, fids, values)
        if len(evicted):
            self._store.erase(name, evicted)
        _ENTRIES.inc(len(fids) + len(evicted))

    def _write_dense(self, delta: ModelDelta, part: DensePart) -> None:
        if not np.isfinite(part.values).all():
            self._note_not_finite(delta, f"dense variable '{part.name}'")
            _NOT_FINITE.inc()
            return
        self._dense.write(part)

    def _note_not_finite(self, delta: ModelDelta, what: str) -> None:
        self._ask_resync(delta, f"{what} in delta {delta.sequence} are not finite and left out")
