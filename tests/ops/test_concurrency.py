"""Threads on one store: their calls end as some order of them would, and entries are whole at any time."""

import itertools
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adagrad,
    Adam,
    Constant,
    CountingFilter,
    Momentum,
    Occurrence,
    Optimizer,
    PooledFeature,
    RandomUniform,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store
from tests.reference.embedding_store import TableModel


def _run_together(works: Sequence[Callable[[], Any]]) -> None:
    """Runs each on a thread of its own, begun at once; raises what one of them raised."""
    barrier = threading.Barrier(len(works))
    problems: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        barrier.wait(60)
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


@covers("emb:H9")
def test_additions_and_updates_of_a_hundred_threads_all_take_effect() -> None:
    store = open_store(TableConfig("t", 1, Sgd(0.01), Zeros()))

    def work(i: int) -> None:
        store.assign_add("t", [i], [[float(i)]])
        store.apply_gradients("t", [i], [[-200.0 * i]])

    _run_together([partial(work, i) for i in range(100)])
    np.testing.assert_allclose(store.lookup("t", range(100))[:, 0], 3 * np.arange(100), rtol=1e-6)


def test_updates_of_the_same_ids_from_many_threads_are_all_applied() -> None:
    store = open_store(TableConfig("t", 4, Sgd(1.0), Zeros()))
    ids = np.arange(1000)

    def work() -> None:
        for _ in range(20):
            store.apply_gradients("t", ids, -np.ones((1000, 4), np.float32))
            store.lookup("t", ids)

    _run_together([work] * 6)
    assert np.all(store.lookup("t", ids).numpy() == 120)


_IDS = st.lists(st.integers(-3, 3), max_size=8)
_AMOUNTS = st.integers(-8, 8)
# Whole numbers of this size add up exactly in any order.
_COMMUTING = st.lists(st.tuples(st.sampled_from(["add", "apply", "pooled", "lookup"]), _IDS, _AMOUNTS), max_size=6)
_FEATURES = [PooledFeature("f", "t")]


Program = list[tuple[str, list[int], int]]


def _run_program(store: EmbeddingStore, program: Program) -> None:
    for kind, ids, amount in program:
        _commuting(store, kind, ids, amount)


def _commuting(store: EmbeddingStore, kind: str, ids: list[int], amount: int) -> None:
    rows = np.full((len(ids), 2), float(amount))
    match kind:
        case "add":
            store.assign_add("t", ids, rows, timestamp=5)
        case "apply":
            store.apply_gradients("t", ids, rows, timestamp=5)
        case "pooled":
            store.apply_pooled_gradients(_FEATURES, [ids], [np.arange(len(ids) + 1)], [rows], timestamp=5)
        case "lookup":
            shown = store.lookup("t", ids).numpy()
            assert (shown[:, 0] == shown[:, 1]).all()


@settings(max_examples=40, deadline=None)
@given(programs=st.lists(_COMMUTING, min_size=2, max_size=6))
def test_updates_that_commute_end_exactly_as_in_any_serial_order(
    programs: list[Program],
) -> None:
    table = TableConfig("t", 2, Sgd(1.0), Constant(3.0))
    store, serial = open_store(table), open_store(table)
    _run_together([partial(_run_program, store, program) for program in programs])
    for program in programs:
        _run_program(serial, program)
    for actual, expected in zip(store.dump("t"), serial.dump("t"), strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert {t: ids.tolist() for t, ids in store.steal_touched().items()} == {
        t: ids.tolist() for t, ids in serial.steal_touched().items()
    }


def _serial_ends(table: TableConfig, fid: int, programs: np.ndarray) -> list[np.ndarray]:
    """Values of an entry after each order in which threads can take their steps, float32 [threads, steps, dim]."""
    turns = [thread for thread, program in enumerate(programs) for _ in program]
    ends = []
    for order in set(itertools.permutations(turns)):
        model, left = TableModel(table), [iter(program) for program in programs]
        for thread in order:
            model.apply(model.merge([(fid, next(left[thread]))]), 0, 5)
        ends.append(model.entries[fid].values())
    return ends


@pytest.mark.parametrize("optimizer", [Adagrad(0.5), Adam(0.5), Momentum(0.5)])
def test_updates_that_do_not_commute_end_as_some_order_of_them(optimizer: Optimizer) -> None:
    table = TableConfig("t", 2, optimizer, RandomUniform())
    ids = list(range(8))
    gradients = np.random.default_rng(1).normal(size=(3, 2, len(ids), 2)).astype(np.float32)
    ends = [_serial_ends(table, fid, gradients[:, :, i]) for i, fid in enumerate(ids)]
    for _ in range(20):
        store = open_store(table)

        def work(store: EmbeddingStore, program: np.ndarray) -> None:
            for rows in program:
                store.apply_gradients("t", ids, rows, timestamp=5)

        _run_together([partial(work, store, program) for program in gradients])
        entries, _ = store.lookup_entries("t", ids)
        for values, of_id in zip(entries.values, ends, strict=True):
            assert any(np.array_equal(values, end) for end in of_id)


def test_an_entry_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    """Writers give all dims of an id one number; erasing, evicting and saving go on as well."""
    store = open_store(TableConfig("t", 33, Sgd(1.0), Zeros()))
    ids = np.arange(300)
    features = [PooledFeature("f", "t", "first_n", max_length=1)]
    splits = np.arange(len(ids) + 1)

    def check(rows: Any) -> None:
        np.testing.assert_array_equal(rows, np.broadcast_to(np.asarray(rows)[..., :1], np.shape(rows)))

    def write(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            store.assign("t", ids, np.repeat(random.normal(size=(len(ids), 1)), 33, axis=1))
            store.apply_gradients("t", ids[::2], np.repeat(random.normal(size=(150, 1)), 33, axis=1))

    def read() -> None:
        for _ in range(30):
            check(store.lookup("t", ids))
            check(store.pooled_lookup(features, [ids], [splits])[0])
            check(store.lookup_entries("t", ids)[0].values)
            for page in store.entries("t", page_size=50):
                check(page.values)

    def remove() -> None:
        for i in range(30):
            store.erase("t", ids[i::7])
            store.evict(0)
            store.steal_touched()

    def save() -> None:
        for i in range(5):
            store.save(tmp_path / str(i))

    _run_together([partial(write, 1), partial(write, 2), read, read, remove, save])
    for i in range(5):
        restored = open_store(*store.tables)
        restored.restore(tmp_path / str(i))
        check(restored.dump("t")[1])
    check(store.dump("t")[1])


def test_a_snapshot_is_of_one_moment_while_training_goes_on(tmp_path: Path) -> None:
    """A thread moves table a and then table b, so a is ahead of b by one step or by none, and never behind."""
    store = open_store(*[TableConfig(name, 1, Sgd(1.0), Zeros()) for name in "ab"])
    ids = np.arange(200)
    done = threading.Event()

    def train() -> None:
        while not done.is_set():
            for name in "ab":
                store.apply_gradients(name, ids, -np.ones((200, 1)))

    def save() -> None:
        try:
            for i in range(8):
                store.save(tmp_path / str(i))
        finally:
            done.set()

    _run_together([train, save])
    for i in range(8):
        restored = open_store(*store.tables)
        restored.restore(tmp_path / str(i))
        a, b = (restored.lookup(name, ids).numpy() for name in "ab")
        assert np.ptp(a) <= 1 and np.ptp(b) <= 1
        assert set((a - b).ravel().tolist()) <= {0.0, 1.0}


def test_a_walk_gives_every_entry_that_stays_once_while_others_come_and_go() -> None:
    store = open_store(TableConfig("t", 1, Sgd(1.0), Zeros()))
    stay = np.arange(20_000)
    store.assign("t", stay, np.ones((20_000, 1)))
    done = threading.Event()

    def write() -> None:
        first = 1 << 40
        while not done.is_set():
            ids = np.arange(first, first + 2000)
            store.assign("t", ids, np.ones((2000, 1)))
            store.erase("t", ids[::2])
            first += 2000

    def walk() -> None:
        try:
            for _ in range(5):
                seen = np.concatenate([page.ids for page in store.entries("t", page_size=500)])
                np.testing.assert_array_equal(np.sort(seen[seen < 20_000]), stay)
        finally:
            done.set()

    _run_together([write, walk])


def test_a_filter_admits_every_id_at_its_threshold_whoever_sees_it() -> None:
    table = TableConfig("t", 1, Sgd(1.0), Zeros(), occurrence=Occurrence(CountingFilter(), threshold=10))
    store = open_store(table)
    ids = np.arange(500)

    def work() -> None:
        for _ in range(3):
            store.apply_gradients("t", ids, -np.ones((500, 1)))

    _run_together([work] * 5)
    assert np.all(store.lookup("t", ids).numpy() == 5)


def test_a_store_is_released_only_after_the_calls_that_use_it() -> None:
    store = open_store(TableConfig("t", 8, Sgd(1.0), Zeros()))
    ids = np.arange(2000)
    started = threading.Barrier(3)

    def work() -> None:
        started.wait(60)
        with pytest.raises(tf.errors.NotFoundError):
            while True:
                store.apply_gradients("t", ids, np.ones((2000, 8)))

    def release() -> None:
        started.wait(60)
        EmbeddingStore.release(store.shared_name)

    _run_together([work, work, release])
