"""Any sequence of operations on a store against a dict-and-numpy model of it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from millrace.ops.embedding_table import Cut, EmbeddingStore, Entries
from millrace.ops.table_config import PooledFeature
from tests.fakes.stores import open_store
from tests.reference.embedding_store import Entry, ModelError, StoreModel, TableModel
from tests.reference.every_rule import TABLES

CONFIGS = {table.name: table for table in TABLES}
FEATURES = (
    PooledFeature("a", "late", "sum"),
    PooledFeature("b", "late", "mean"),
    PooledFeature("c", "many", "mean"),
    PooledFeature("d", "many", "first_n", max_length=2),
    PooledFeature("e", "plain", "first_n", max_length=1),
    PooledFeature("f", "groups", "sum"),
)
_FUSED = ("plain", "many", "late")

# Ids meet often, in slots of other thresholds and expiry too, and the extremes of int64 are ids like any other.
_IDS = st.lists(
    st.sampled_from([0, 1, 2, -1, 1 << 48 | 7, 1 << 48 | 8, 2 << 48 | 1, (1 << 63) - 1, -(1 << 63)]), max_size=6
)
_NAMES = st.sampled_from(list(CONFIGS))
_TRAINING = st.sampled_from([table.name for table in TABLES if table.trains])
_MISSING = st.sampled_from(["zeros", "first_vector", "create"])
_SEEDS = st.integers(0, 1 << 30)
_STEPS = st.sampled_from([0, 1, 2, 7, 50, 1000])
_TIMES = st.sampled_from([0, 1_000, 100_000, 200_000, 400_000])
_ROWS = st.lists(st.tuples(*[_IDS] * len(FEATURES)), min_size=1, max_size=4)


def _flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Values and row splits of ragged rows."""
    ids = np.array([fid for row in rows for fid in row], np.int64)
    return ids, np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)


def _agree(table: str, actual: Any, expected: Any) -> None:
    """Bit for bit, but for tanh and for lengths of vectors, which sum in another order."""
    if table == "groups":
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(actual, expected)


class StoreAndModel(RuleBasedStateMachine):
    """A store and its model, driven alike and compared after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saves = 0
        self.store = open_store(*TABLES)
        self.model = StoreModel(TABLES)
        self.cut: Cut | None = None
        self.at_cut: dict[str, dict[int, Entry]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    def _new_folder(self) -> Path:
        self.saves += 1
        return Path(self.folder.name) / str(self.saves)

    def _values(self, table: str, count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(count, CONFIGS[table].dim)).astype(np.float32)

    def _refuse_alike(self, update_store: Any, update_model: Any) -> None:
        """Runs both; what the model refuses, the store must refuse."""
        try:
            update_model()
        except ModelError:
            with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or infinite; nothing was applied"):
                update_store()
        else:
            update_store()

    @rule(table=_NAMES, ids=_IDS, missing=_MISSING, step=_STEPS)
    def lookup(self, table: str, ids: list[int], missing: str, step: int) -> None:
        expected = self.model.tables[table].lookup(ids, missing, step)
        _agree(table, self.store.lookup(table, ids, missing, step), expected)

    @rule(rows=_ROWS, missing=_MISSING, step=_STEPS)
    def pooled_lookup(self, rows: list[tuple[list[int], ...]], missing: str, step: int) -> None:
        ragged = list(zip(*rows, strict=True))
        values, splits = zip(*map(_flat, ragged), strict=True)
        pooled = self.store.pooled_lookup(FEATURES, values, splits, missing, step)
        expected = self.model.pooled_lookup(FEATURES, ragged, missing, step)
        for feature, actual, wanted in zip(FEATURES, pooled, expected, strict=True):
            _agree(feature.table, actual, wanted)

    @rule(table=_TRAINING, ids=_IDS, seed=_SEEDS, step=_STEPS, time=_TIMES, late=st.booleans(), bad=st.booleans())
    def apply(self, table: str, ids: list[int], seed: int, step: int, time: int, late: bool, bad: bool) -> None:
        gradients = self._values(table, len(ids), seed)
        gradients[:: 2 if bad else 100, -1:] *= np.float32(np.inf if bad else 1)
        gradients[: 1 if bad else 0] = np.nan
        read = self._values(table, len(ids), seed + 1) if late else None
        model = self.model.tables[table]
        self._refuse_alike(
            lambda: self.store.apply_gradients(table, ids, gradients, step, time, read),
            lambda: model.apply(model.merge(zip(ids, gradients, strict=True), read), step, time),
        )

    @rule(rows=_ROWS, seed=_SEEDS, step=_STEPS, time=_TIMES, bad=st.booleans())
    def apply_pooled(self, rows: list[tuple[list[int], ...]], seed: int, step: int, time: int, bad: bool) -> None:
        ragged = list(zip(*rows, strict=True))
        values, splits = zip(*map(_flat, ragged), strict=True)
        gradients = [self._values(f.table, len(rows) * max(f.max_length, 1), seed + i) for i, f in enumerate(FEATURES)]
        for feature, gradient in zip(FEATURES, gradients, strict=True):
            if feature.combiner == "first_n":
                gradient.shape = (len(rows), feature.max_length, -1)
        gradients[seed % len(FEATURES)][0] *= np.float32(np.nan if bad else 1)
        self._refuse_alike(
            lambda: self.store.apply_pooled_gradients(FEATURES, values, splits, gradients, step, time),
            lambda: self.model.apply_pooled_gradients(FEATURES, ragged, gradients, step, time),
        )

    @rule(pieces=st.tuples(*[_IDS] * (2 * len(_FUSED))), step=_STEPS)
    def fused_lookup(self, pieces: tuple[list[int], ...], step: int) -> None:
        ids, _ = _flat(pieces)
        fused = self.store.fused_lookup(_FUSED, ids, [len(piece) for piece in pieces], 2, step)
        begins = fused.embedding_offsets.numpy()
        assert fused.embedding_splits.numpy().tolist() == [begins[3], begins[6] - begins[3]]
        for i, piece in enumerate(pieces):
            table = _FUSED[i % len(_FUSED)]
            expected = self.model.tables[table].lookup(piece, "zeros", step)
            _agree(table, fused.embeddings.numpy()[begins[i] : begins[i + 1]], expected.ravel())

    @rule(pieces=st.tuples(*[_IDS] * (2 * len(_FUSED))), seed=_SEEDS, step=_STEPS, time=_TIMES)
    def fused_apply(self, pieces: tuple[list[int], ...], seed: int, step: int, time: int) -> None:
        ids, _ = _flat(pieces)
        tables = _FUSED * 2
        sizes = [len(piece) for piece in pieces]
        gradients = [self._values(table, sizes[i], seed + i) for i, table in enumerate(tables)]
        flat = np.concatenate([rows.ravel() for rows in gradients])
        self.store.fused_apply_gradients(_FUSED, ids, sizes, flat, 2, step, time)
        for table, piece, rows in zip(tables, pieces, gradients, strict=True):
            model = self.model.tables[table]
            model.apply(model.merge(zip(piece, rows, strict=True)), step, time)

    @rule(table=_NAMES, ids=_IDS, seed=_SEEDS, time=_TIMES, ask_filter=st.booleans(), add=st.booleans())
    def assign(self, table: str, ids: list[int], seed: int, time: int, ask_filter: bool, add: bool) -> None:
        rows = self._values(table, len(ids), seed)
        (self.store.assign_add if add else self.store.assign)(table, ids, rows, time, ask_filter)
        self.model.tables[table].assign(zip(ids, rows, strict=True), time, ask_filter, add)

    @rule(table=_NAMES, sources=_IDS, ids=_IDS, time=_TIMES)
    def import_entries(self, table: str, sources: list[int], ids: list[int], time: int) -> None:
        """Gives ids the entries of others, optimizer state and all."""
        model = self.model.tables[table]
        pairs = [(source, fid) for source, fid in zip(sources, ids, strict=False) if source in model.entries]
        values = self.store.lookup_entries(table, [source for source, _ in pairs])[0].values
        targets = np.array([fid for _, fid in pairs], np.int64)
        self.store.import_entries(table, Entries(targets, values, np.full(len(pairs), time)))
        model.import_copies(pairs, time)

    @rule(table=_NAMES, ids=_IDS, time=_TIMES)
    def reinitialize(self, table: str, ids: list[int], time: int) -> None:
        existed = self.store.reinitialize(table, ids, time).numpy().tolist()
        assert existed == self.model.tables[table].reinitialize(ids, time)

    @rule(table=_NAMES, ids=_IDS)
    def erase(self, table: str, ids: list[int]) -> None:
        assert int(self.store.erase(table, ids)) == self.model.tables[table].erase(ids)

    @rule(watermark=_TIMES)
    def evict(self, watermark: int) -> None:
        evicted = self.store.evict(watermark).numpy().tolist()
        assert evicted == [table.evict(watermark) for table in self.model.tables.values()]

    @rule(table=_NAMES)
    def clear(self, table: str) -> None:
        self.store.clear(table)
        self.model.tables[table].clear()

    @rule(give_back=st.booleans())
    def steal_touched(self, give_back: bool) -> None:
        stolen = self.store.steal_touched()
        expected = self.model.steal_touched()
        assert {table: ids.tolist() for table, ids in stolen.items()} == expected
        assert stolen.overflowed == ()
        if give_back:
            self.store.restore_touched(stolen)
            for table, ids in expected.items():
                self.model.tables[table].touched = set(ids)

    @precondition(lambda self: self.cut is None)
    @rule()
    def begin_cut(self) -> None:
        self.cut = self.store.cut()
        self.at_cut = {name: table.saved() for name, table in self.model.tables.items()}

    @precondition(lambda self: self.cut is not None)
    @rule()
    def write_cut(self) -> None:
        """What came after the cut is not in it."""
        folder = self._new_folder()
        assert self.cut is not None
        self.cut.write(folder)
        self.cut = None
        restored = open_store(*TABLES)
        restored.restore(folder)
        for table, entries in self.at_cut.items():
            _compare_entries(restored, table, entries)

    @precondition(lambda self: self.cut is None)
    @rule(shards=st.integers(1, 3))
    def save_and_restore(self, shards: int) -> None:
        """Goes on from a store that came through `shards` shards; only one keeps what filters saw."""
        whole, split = self._new_folder(), self._new_folder()
        self.store.save(whole)
        for table in self.model.tables.values():
            table.restore(table.saved(), table.filter)
        if shards > 1:
            for shard in range(shards):
                part = open_store(*TABLES)
                part.restore(whole, shard, shards)
                assert all(fid % shards == shard for table in CONFIGS for fid in part.dump(table)[0].tolist())
                part.save(split, shard=shard, num_shards=shards)
            for table in self.model.tables.values():
                table.restore(table.saved(), None)
                table.forget_sightings()
        self.store = open_store(*TABLES)
        self.store.restore(split if shards > 1 else whole)

    @precondition(lambda self: self.cut is None)
    @rule()
    def serve(self) -> None:
        """An export without state reads in a serving store as the codes of the weights."""
        folder = self._new_folder()
        self.store.save(folder, with_state=False)
        serving = [table.for_serving() for table in TABLES]
        served = open_store(*serving)
        served.restore(folder)
        for config in serving:
            model = TableModel(config)
            for fid, entry in self.model.tables[config.name].saved().items():
                model.assign([(fid, entry.weights)], entry.timestamp, ask_filter=False, add=False)
            if config.name != "groups":
                _compare_entries(served, config.name, model.entries)

    @invariant()
    def agree(self) -> None:
        for name, table in self.model.tables.items():
            _compare_entries(self.store, name, table.entries)
            known = [*table.entries, 12345]
            assert self.store.contains(name, known).numpy().tolist() == [True] * len(table.entries) + [False]
        stats = self.store.stats("groups")
        assert stats.not_finite == self.model.tables["groups"].not_finite


def _compare_entries(store: EmbeddingStore, table: str, expected: dict[int, Entry]) -> None:
    """Ids, weights, optimizer state and time stamps."""
    pages = list(store.entries(table, page_size=3))
    found: dict[int, tuple[np.ndarray, int]] = {}
    for page in pages:
        found |= zip(page.ids.tolist(), zip(page.values, page.timestamps.tolist(), strict=True), strict=True)
    assert sum(len(page.ids) for page in pages) == len(found) == store.size(table)
    assert found.keys() == expected.keys()
    for fid, entry in expected.items():
        _agree(table, found[fid][0], entry.values())
        assert found[fid][1] == entry.timestamp


def test_any_sequence_of_operations_equals_a_dict_and_numpy_model() -> None:
    run_state_machine_as_test(
        StoreAndModel,
        settings=settings(
            max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("seed", range(4))
def test_tens_of_thousands_of_ids_come_and_go_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    store = open_store(TABLES[0])
    expected: dict[int, float] = {}
    for _ in range(8):
        first = int(random.integers(-(1 << 62), 1 << 62))
        ids = np.concatenate([first + np.arange(6000), random.integers(-(1 << 63), 1 << 63, 6000)])
        values = random.integers(1, 100, (len(ids), 1)).astype(np.float32)
        store.assign("plain", ids, values)
        expected |= zip(ids.tolist(), values[:, 0].tolist(), strict=True)
        gone = random.choice(list(expected), len(expected) // 3, replace=False)
        assert int(store.erase("plain", gone)) == len(gone)
        for fid in gone.tolist():
            del expected[fid]
        found, weights = store.dump("plain")
        assert dict(zip(found.tolist(), weights[:, 0].tolist(), strict=True)) == expected
        assert len(found) == len(expected)
        assert not store.lookup("plain", gone).numpy().any()
