"""A dict-and-numpy model of the embedding store: what it should do, with no thought of speed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from reference import sparse_optimizers

from ops.table_config import PooledFeature, TableConfig


class Entry:
    def __init__(self, table: TableConfig, fid: int) -> None:
        self.weights = sparse_optimizers.first_vector(table, fid)
        self.state = sparse_optimizers.initial_state(table.optimizer, table.dim)


class StoreModel:
    """Same calls as EmbeddingStore, on Python integers and numpy arrays."""

    def __init__(self, tables: Sequence[TableConfig]) -> None:
        self.tables = {table.name: table for table in tables}
        self.entries: dict[str, dict[int, Entry]] = {name: {} for name in self.tables}
        self.touched: dict[str, set[int]] = {name: set() for name in self.tables}

    def _entry(self, table: str, fid: int) -> Entry:
        return self.entries[table].setdefault(fid, Entry(self.tables[table], fid))

    def lookup(self, table: str, ids: Sequence[int], create: bool = False) -> np.ndarray:
        rows = np.zeros((len(ids), self.tables[table].dim), np.float32)
        for row, fid in zip(rows, ids, strict=True):
            if create:
                self._entry(table, fid)
            if fid in self.entries[table]:
                row[:] = self.entries[table][fid].weights
        return rows

    def pooled_lookup(
        self, features: Sequence[PooledFeature], ragged: Sequence[Sequence[Sequence[int]]], create: bool
    ) -> list[np.ndarray]:
        result = []
        for feature, rows in zip(features, ragged, strict=True):
            pooled = np.zeros((len(rows), self.tables[feature.table].dim), np.float32)
            for out, ids in zip(pooled, rows, strict=True):
                for vector in self.lookup(feature.table, ids, create):
                    out += vector
                if feature.combiner == "mean" and ids:
                    out *= np.float32(1) / np.float32(len(ids))
            result.append(pooled)
        return result

    def apply_gradients(self, table: str, ids: Sequence[int], gradients: np.ndarray) -> None:
        sums: dict[int, np.ndarray] = {}
        for fid, gradient in zip(ids, gradients, strict=True):
            sums[fid] = sums[fid] + gradient if fid in sums else gradient
        self._step(table, sums)

    def apply_pooled_gradients(
        self,
        features: Sequence[PooledFeature],
        ragged: Sequence[Sequence[Sequence[int]]],
        gradients: Sequence[np.ndarray],
    ) -> None:
        sums: dict[str, dict[int, Any]] = {}
        for feature, rows, rows_gradient in zip(features, ragged, gradients, strict=True):
            of_table = sums.setdefault(feature.table, {})
            for ids, gradient in zip(rows, rows_gradient, strict=True):
                scale = np.float32(1) / np.float32(max(len(ids), 1)) if feature.combiner == "mean" else np.float32(1)
                for fid in ids:
                    part = scale * gradient
                    of_table[fid] = of_table[fid] + part if fid in of_table else part
        for table, of_table in sums.items():
            self._step(table, of_table)

    def _step(self, table: str, sums: dict[int, np.ndarray]) -> None:
        optimizer: Any = self.tables[table].optimizer
        for fid, gradient in sums.items():
            entry = self._entry(table, fid)
            entry.weights = sparse_optimizers.update(
                optimizer, entry.weights, entry.state, gradient, optimizer.learning_rate
            )
            self.touched[table].add(fid)

    def assign(self, table: str, ids: Sequence[int], values: np.ndarray) -> None:
        for fid, row in zip(ids, values, strict=True):
            self._entry(table, fid).weights = row.copy()

    def erase(self, table: str, ids: Sequence[int]) -> int:
        present = [fid for fid in dict.fromkeys(ids) if fid in self.entries[table]]
        for fid in present:
            del self.entries[table][fid]
            self.touched[table].add(fid)
        return len(present)

    def steal_touched(self) -> dict[str, list[int]]:
        stolen = {table: sorted(ids) for table, ids in self.touched.items() if ids}
        self.touched = {table: set() for table in self.tables}
        return stolen
