"""The life of a store in a process: shared by name, attached, released; and its cuts."""

import gc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Int8, PolynomialDecay, PooledFeature, Segment, Sgd, TableConfig, Zeros
from tests.fakes.stores import open_store

TABLES = (TableConfig("t", 1, Sgd(1.0), Zeros()),)


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    EmbeddingStore.release(name)


def test_a_store_is_shared_by_name_and_freed_with_its_last_owner(name: str) -> None:
    first, second = EmbeddingStore(TABLES, name), EmbeddingStore(TABLES, name)
    first.assign("t", [1], [[2.0]])
    view = EmbeddingStore.attach(name)
    assert float(second.lookup("t", [1])[0, 0]) == float(view.lookup("t", [1])[0, 0]) == 2.0
    del first
    assert second.size("t") == 1
    del second
    with pytest.raises(tf.errors.NotFoundError, match=name):
        view.sizes()
    successor = EmbeddingStore(TABLES, name)
    with pytest.raises(tf.errors.NotFoundError, match="another one has its name now"):
        view.sizes()
    del view
    assert successor.sizes() == {"t": 0}


_USES: list[Callable[[EmbeddingStore], Any]] = [
    lambda store: store.sizes(),
    lambda store: store.stats("t"),
    lambda store: store.lookup("t", [1]),
    lambda store: store.pooled_lookup([PooledFeature("f", "t")], [[1]], [[0, 1]]),
    lambda store: store.fused_lookup(["t"], [1], [1]),
    lambda store: store.apply_gradients("t", [1], [[1.0]]),
    lambda store: store.assign("t", [1], [[1.0]]),
    lambda store: store.erase("t", [1]),
    lambda store: store.evict(),
    lambda store: store.clear("t"),
    lambda store: store.steal_touched(),
    lambda store: store.dump("t"),
    lambda store: store.cut(),
]


@pytest.mark.parametrize("use", _USES)
def test_a_released_store_is_not_found(name: str, use: Callable[[EmbeddingStore], Any]) -> None:
    store = EmbeddingStore(TABLES, name)
    use(store)
    gc.collect()  # of a cut
    EmbeddingStore.release(name)
    EmbeddingStore.release(name)
    with pytest.raises(tf.errors.NotFoundError, match=f"'{name}' is not open in this process"):
        use(store)


def test_an_open_store_is_not_joined_with_other_tables(name: str) -> None:
    store = EmbeddingStore(TABLES, name)
    for other in (
        TableConfig("t", 2, Sgd(1.0), Zeros()),
        TableConfig("t", 1, Sgd(1.0), Zeros(), seed=1),
        TableConfig("t", 1, Sgd(1.0), Zeros(), compressor=Int8()),
        TableConfig("u", 1, Sgd(1.0), Zeros()),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="already open in this process with other tables"):
            EmbeddingStore([other], name)
    assert EmbeddingStore([TableConfig("t", 1, Sgd(9.0), Zeros())], name).sizes() == store.sizes()


def test_an_attached_view_knows_the_tables_and_takes_no_gradients(name: str) -> None:
    rate = PolynomialDecay(0.1, 10)
    store = EmbeddingStore([TableConfig("t", segments=(Segment(1, Sgd(rate)), Segment(2, None)))], name)
    view = EmbeddingStore.attach(name)
    assert view.shared_name == name
    assert [table.to_text() for table in view.tables] == [table.to_text() for table in store.tables]
    view.assign("t", [1], [[1.0, 2.0, 3.0]])
    assert store.lookup("t", [1]).numpy().tolist() == [[1, 2, 3]]
    with pytest.raises(ValueError, match="is attached: open it with its tables to apply gradients"):
        view.apply_gradients("t", [1], [[1.0, 1.0, 1.0]])
    with pytest.raises(tf.errors.NotFoundError, match=f"'no-such-store' is not open.*{name}"):
        EmbeddingStore.attach("no-such-store")


def test_a_store_has_tables_of_different_names(name: str) -> None:
    with pytest.raises(ValueError, match="needs at least one table"):
        EmbeddingStore([], name)
    with pytest.raises(ValueError, match=r"table names must differ, got \['t', 't'\]"):
        EmbeddingStore([*TABLES, TableConfig("t", 2)], name)


def test_a_cut_holds_one_moment_of_all_tables(tmp_path: Path) -> None:
    store = open_store(*TABLES, TableConfig("u", 2, Sgd(1.0), Zeros()))
    store.assign("t", [1, 2, 3], [[1.0], [2.0], [3.0]])
    store.assign("u", [1], [[1.0, 1.0]])
    cut = store.cut()
    store.apply_gradients("t", [1], [[1.0]])
    store.erase("t", [2])
    store.assign("t", [4], [[4.0]])
    store.clear("u")
    store.assign("u", [1, 2], np.full((2, 2), 9.0))
    cut.write(tmp_path)
    restored = open_store(*store.tables)
    restored.restore(tmp_path)
    assert restored.dump("t")[0].tolist() == [1, 2, 3]
    assert restored.dump("t")[1].tolist() == [[1], [2], [3]]
    assert restored.dump("u")[1].tolist() == [[1, 1]]
    assert store.dump("t")[1].tolist() == [[0], [3], [4]]


def test_a_second_cut_waits_for_the_first_to_be_written_or_dropped(tmp_path: Path) -> None:
    store = open_store(*TABLES)
    cut = store.cut()
    for begin in (store.cut, lambda: store.save(tmp_path / "no")):
        with pytest.raises(tf.errors.FailedPreconditionError, match=f"a snapshot of store '{store.shared_name}'"):
            begin()
    assert not (tmp_path / "no").exists()
    cut.drop()
    cut.drop()
    with pytest.raises(ValueError, match="written or dropped before"):
        cut.write(tmp_path)
    cut = store.cut()
    cut.write(tmp_path)
    with pytest.raises(ValueError, match="written or dropped before"):
        cut.write(tmp_path)
    cut = store.cut()
    del cut
    store.save(tmp_path)


def test_a_cut_that_its_client_never_writes_gives_way_to_the_next(tmp_path: Path) -> None:
    store = open_store(*TABLES)
    store.assign("t", [1], [[1.0]])
    lost = store.cut()
    store.assign("t", [1], [[2.0]])
    cut = store.cut(abandoned_seconds=0)
    with pytest.raises(tf.errors.FailedPreconditionError, match="another cut of the store was begun instead"):
        lost.write(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    store.assign("t", [1], [[3.0]])
    cut.write(tmp_path / "cut")
    restored = open_store(*TABLES)
    restored.restore(tmp_path / "cut")
    assert restored.dump("t")[1].tolist() == [[2]]
    store.save(tmp_path / "after")


def test_a_cut_of_one_store_leaves_that_of_another(tmp_path: Path) -> None:
    here, there = open_store(*TABLES), open_store(*TABLES)
    cut = there.cut()
    here.cut(abandoned_seconds=0).drop()
    cut.write(tmp_path)


def test_a_cut_outlives_its_store(tmp_path: Path) -> None:
    store = open_store(*TABLES)
    store.assign("t", [1], [[5.0]])
    cut = store.cut()
    del store
    cut.write(tmp_path)
    restored = open_store(*TABLES)
    restored.restore(tmp_path)
    assert restored.dump("t")[1].tolist() == [[5]]
