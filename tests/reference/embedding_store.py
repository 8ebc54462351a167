"""A dict-and-numpy model of the embedding store: what it should do, with no thought of speed."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from millrace.ops.table_config import PooledFeature, Segment, TableConfig
from tests.reference import compressors, sparse_optimizers
from tests.reference.occurrence_filters import CountingModel

_SECONDS_PER_DAY = 86400
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# Ids with a float32 [dim] row each.
Rows = Iterable[tuple[int, np.ndarray]]


class ModelError(Exception):
    """What the store refuses."""


def mix64(x: int) -> int:
    """SplitMix64's finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def parts_of(table: TableConfig) -> Iterator[tuple[int, Segment, slice]]:
    """Number, rules and dims of each segment."""
    first = 0
    for index, segment in enumerate(table.segments):
        yield index, segment, slice(first, first + segment.dim)
        first += segment.dim


class Entry:
    """Weights float32 [dim], a state for each segment, Unix seconds of the last write."""

    def __init__(self, table: TableConfig, fid: int) -> None:
        self.weights = np.concatenate(
            [
                sparse_optimizers.first_weights(s.initializer, table.seed, table.name, fid, s.dim, part.start)
                for _, s, part in parts_of(table)
            ]
        )
        optimized = [] if table.serving else table.segments
        self.states = [sparse_optimizers.initial_state(s.optimizer, s.dim) for s in optimized]
        self.timestamp = 0

    def values(self) -> np.ndarray:
        """Weights and state as the store's `entries` gives them."""
        return np.concatenate([self.weights, *map(sparse_optimizers.state_floats, self.states)])


@dataclasses.dataclass
class _Merged:
    gradient: np.ndarray
    read_values: np.ndarray | None
    count: int = 1


class TableModel:
    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.entries: dict[int, Entry] = {}
        self.touched: set[int] = set()
        self.newest_timestamp = 0
        self.not_finite = 0
        self.forget_sightings()

    def forget_sightings(self) -> None:
        self.filter = CountingModel(self.config.occurrence) if self.config.occurrence else None

    def _admits(self, fid: int, count: int) -> bool:
        return self.filter is None or self.filter.admit(fid, count)

    def _stored(self, weights: np.ndarray) -> np.ndarray:
        """Weights as entries hold them."""
        if not self.config.serving:
            return weights
        return np.concatenate(
            [
                compressors.decode(s.compressor, compressors.encode(s.compressor, weights[part]), s.dim)
                for _, s, part in parts_of(self.config)
            ]
        )

    def _new_entry(self, fid: int) -> Entry:
        entry = Entry(self.config, fid)
        entry.weights = self._stored(entry.weights)
        return entry

    def _shown(self, weights: np.ndarray, step: int) -> np.ndarray:
        if self.config.serving:
            return weights
        return np.concatenate(
            [compressors.forward(s.compressor, weights[part], step) for _, s, part in parts_of(self.config)]
        )

    def lookup(self, ids: Sequence[int], missing: str, step: int) -> np.ndarray:
        rows = np.zeros((len(ids), self.config.dim), np.float32)
        for row, fid in zip(rows, ids, strict=True):
            if fid in self.entries or missing != "zeros":
                row[:] = self._shown(self.entries.get(fid, self._new_entry(fid)).weights, step)
        if missing == "create" and self.filter is None:
            for fid in ids:
                self.entries.setdefault(fid, self._new_entry(fid))
        return rows

    def merge(self, rows: Rows, read_values: np.ndarray | None = None) -> dict[int, _Merged]:
        """Sums the gradients of equal ids in order, checked and clipped as the table says.

        Raises:
          ModelError: a sum is not finite where that is an error.
        """
        merged: dict[int, _Merged] = {}
        for i, (fid, gradient) in enumerate(rows):
            if fid in merged:
                with np.errstate(invalid="ignore"):
                    merged[fid].gradient = merged[fid].gradient + gradient
                merged[fid].count += 1
            else:
                merged[fid] = _Merged(gradient, None if read_values is None else read_values[i])
        if self.config.non_finite == "error" and not all(np.isfinite(m.gradient).all() for m in merged.values()):
            raise ModelError("not finite")
        return merged

    def apply(self, merged: Mapping[int, _Merged], step: int, timestamp: int) -> None:
        self.newest_timestamp = max(self.newest_timestamp, timestamp)
        limit = np.float32(self.config.gradient_limit)
        for fid, update in merged.items():
            if not np.isfinite(update.gradient).all():
                self.not_finite += 1
                if self.config.non_finite == "skip":
                    continue
            if fid not in self.entries:
                if not self._admits(fid, update.count):
                    continue
                self.entries[fid] = self._new_entry(fid)
            clipped = np.where(np.isnan(update.gradient), np.float32(0), np.clip(update.gradient, -limit, limit))
            self._step(fid, clipped, update.read_values, step)
            self.entries[fid].timestamp = max(self.entries[fid].timestamp, timestamp)
            self.touched.add(fid)

    def _step(self, fid: int, gradient: np.ndarray, read_values: np.ndarray | None, step: int) -> None:
        entry = self.entries[fid]
        rates = self.config.learning_rates(step)
        new = entry.weights.copy()
        for index, segment, part in parts_of(self.config):
            weights = entry.weights[part]
            own = compressors.backward(segment.compressor, weights, gradient[part], step)
            if segment.delay_compensation and read_values is not None:
                own = sparse_optimizers.compensate_delay(segment.delay_compensation, weights, read_values[part], own)
            state = entry.states[index]
            new[part] = sparse_optimizers.update(segment.optimizer, weights, state, own, rates[index], step)
            if segment.stochastic_rounding:
                key = mix64(self.config.seed + index) ^ mix64(step & _MASK) ^ mix64((fid + _GOLDEN) & _MASK)
                new[part] = sparse_optimizers.round_to_half(key, new[part])
        entry.weights = new

    def assign(self, rows: Rows, timestamp: int, ask_filter: bool, add: bool) -> None:
        self.newest_timestamp = max(self.newest_timestamp, timestamp)
        for fid, row in rows:
            if fid not in self.entries:
                if ask_filter and not self._admits(fid, 1):
                    continue
                self.entries[fid] = self._new_entry(fid)
            entry = self.entries[fid]
            entry.weights = self._stored(entry.weights + row if add else row.copy())
            entry.timestamp = timestamp

    def import_copies(self, pairs: Sequence[tuple[int, int]], timestamp: int) -> None:
        """Gives each target of (source, target) a copy of the source's entry as it was before."""
        copies = [copy.deepcopy(self.entries[source]) for source, _ in pairs]
        for (_, target), entry in zip(pairs, copies, strict=True):
            entry.timestamp = timestamp
            self.entries[target] = entry
            self.newest_timestamp = max(self.newest_timestamp, timestamp)

    def reinitialize(self, ids: Sequence[int], timestamp: int) -> list[bool]:
        self.newest_timestamp = max(self.newest_timestamp, timestamp)
        existed = []
        for fid in ids:
            existed.append(fid in self.entries)
            self.entries[fid] = self._new_entry(fid)
            self.entries[fid].timestamp = timestamp
            self.touched.add(fid)
        return existed

    def erase(self, ids: Iterable[int]) -> int:
        present = {fid for fid in ids if fid in self.entries}
        for fid in present:
            del self.entries[fid]
        self.touched |= present
        return len(present)

    def _is_expired(self, fid: int, watermark: int) -> bool:
        days = dict(self.config.slot_expire_days).get(fid >> 48 & 0x7FFF, self.config.expire_days)
        return watermark - self.entries[fid].timestamp >= days * _SECONDS_PER_DAY

    def evict(self, watermark: int) -> int:
        return self.erase([fid for fid in self.entries if self._is_expired(fid, watermark)])

    def clear(self) -> None:
        self.entries.clear()
        self.touched.clear()
        self.forget_sightings()

    def saved(self) -> dict[int, Entry]:
        """A copy of what a snapshot holds."""
        kept = [fid for fid in self.entries if not self._is_expired(fid, self.newest_timestamp)]
        return {fid: copy.deepcopy(self.entries[fid]) for fid in kept}

    def restore(self, entries: dict[int, Entry], sightings: CountingModel | None) -> None:
        """What was saved just now, as into a store that was just opened; a file remembers the newest time stamp."""
        self.clear()
        self.entries = entries
        self.filter = copy.deepcopy(sightings) if self.filter else None
        self.not_finite = 0


class StoreModel:
    """What concerns several tables."""

    def __init__(self, tables: Sequence[TableConfig]) -> None:
        self.tables = {table.name: TableModel(table) for table in tables}

    def pooled_lookup(
        self, features: Sequence[PooledFeature], ragged: Sequence[Sequence[Sequence[int]]], missing: str, step: int
    ) -> list[np.ndarray]:
        """`ragged`: for each feature its rows of ids. Reads all features before any id is created."""
        wanted = "first_vector" if missing == "create" else missing
        pooled = [
            np.stack([self._pool(feature, ids, wanted, step) for ids in rows])
            for feature, rows in zip(features, ragged, strict=True)
        ]
        for feature, rows in zip(features, ragged, strict=True):
            self.tables[feature.table].lookup([fid for ids in rows for fid in ids], missing, step)
        return pooled

    def _pool(self, feature: PooledFeature, ids: Sequence[int], missing: str, step: int) -> np.ndarray:
        table = self.tables[feature.table]
        vectors = table.lookup(ids, missing, step)
        if feature.combiner == "first_n":
            padded = np.zeros((feature.max_length, table.config.dim), np.float32)
            padded[: len(ids)] = vectors[: feature.max_length]
            return padded
        total = np.zeros(table.config.dim, np.float32)
        for vector in vectors:
            total = total + vector
        return total * (np.float32(1) / np.float32(len(ids))) if feature.combiner == "mean" and ids else total

    def apply_pooled_gradients(
        self,
        features: Sequence[PooledFeature],
        ragged: Sequence[Sequence[Sequence[int]]],
        gradients: Sequence[np.ndarray],
        step: int,
        timestamp: int,
    ) -> None:
        rows: dict[str, list[tuple[int, np.ndarray]]] = {}
        for feature, of_feature, gradient in zip(features, ragged, gradients, strict=True):
            for ids, row in zip(of_feature, gradient, strict=True):
                rows.setdefault(feature.table, []).extend(_spread(feature, ids, row))
        merged = {table: self.tables[table].merge(of_table) for table, of_table in rows.items()}
        for table, of_table in merged.items():
            self.tables[table].apply(of_table, step, timestamp)

    def steal_touched(self) -> dict[str, list[int]]:
        stolen = {name: sorted(table.touched) for name, table in self.tables.items() if table.touched}
        for table in self.tables.values():
            table.touched = set()
        return stolen


def _spread(feature: PooledFeature, ids: Sequence[int], gradient: np.ndarray) -> Rows:
    """The gradient of one row for each of its ids."""
    if feature.combiner == "first_n":
        return zip(ids, gradient, strict=False)
    scale = np.float32(1) / np.float32(len(ids)) if feature.combiner == "mean" and ids else np.float32(1)
    return [(fid, scale * gradient) for fid in ids]
