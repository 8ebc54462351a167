"""The embedding store against a dict-and-numpy model, its errors, and its life in a process."""

import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.embedding_table import (
    Adagrad,
    Adam,
    Constant,
    EmbeddingStore,
    Ftrl,
    PooledFeature,
    RandomUniform,
    Sgd,
    TableConfig,
    Zeros,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference.embedding_store import StoreModel

_names = (f"test-{i}" for i in itertools.count())

TABLES = (
    TableConfig("sgd", 1, Sgd(0.5), Zeros()),
    TableConfig("adagrad", 3, Adagrad(0.1, weight_decay_factor=0.01), RandomUniform(-0.5, 0.5), seed=3),
    TableConfig("adam", 2, Adam(0.1, use_nesterov=True), Constant(0.25)),
    TableConfig("ftrl", 9, Ftrl(0.1, l1_regularization_strength=0.5, l2_regularization_strength=0.1), RandomUniform()),
)
FEATURES = (
    PooledFeature("a", "adagrad", "sum"),
    PooledFeature("b", "adagrad", "mean"),
    PooledFeature("c", "ftrl", "mean"),
)


@pytest.fixture
def name() -> Iterator[str]:
    name = next(_names)
    yield name
    EmbeddingStore.release(name)


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([fid for ids in rows for fid in ids], np.int64),
        np.cumsum([0, *(len(ids) for ids in rows)], dtype=np.int64),
    )


def _close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=2e-6, atol=1e-12)


# Ids meet often, and the extremes of int64 are ids like any other.
_IDS = st.sampled_from([0, 1, 2, 3, -1, (1 << 48) | 7, (1 << 63) - 1, -(1 << 63)])
_ID_LISTS = st.lists(_IDS, max_size=6)
_TABLE_NAMES = st.sampled_from([table.name for table in TABLES])
_SEEDS = st.integers(0, 1 << 30)
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("lookup"), _TABLE_NAMES, _ID_LISTS, st.booleans()),
        st.tuples(st.just("apply"), _TABLE_NAMES, _ID_LISTS, _SEEDS),
        st.tuples(st.just("assign"), _TABLE_NAMES, _ID_LISTS, _SEEDS),
        st.tuples(st.just("erase"), _TABLE_NAMES, _ID_LISTS),
        st.tuples(st.just("pooled"), st.lists(st.tuples(*[_ID_LISTS] * len(FEATURES)), max_size=4), _SEEDS),
        st.tuples(st.just("steal")),
        st.tuples(st.just("save and restore")),
    ),
    max_size=12,
)


class _Pair:
    """A store and its model, driven alike and compared after each operation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = EmbeddingStore(TABLES, next(_names))
        self.model = StoreModel(TABLES)

    def run(self, operation: tuple[Any, ...]) -> None:
        kind, *arguments = operation
        getattr(self, f"_{kind.replace(' ', '_')}")(*arguments)

    def _rows(self, table: str, count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(count, self.store.table(table).dim)).astype(np.float32)

    def _lookup(self, table: str, ids: list[int], create: bool) -> None:
        _close(self.store.lookup(table, ids, create), self.model.lookup(table, ids, create))

    def _apply(self, table: str, ids: list[int], seed: int) -> None:
        gradients = self._rows(table, len(ids), seed)
        self.store.apply_gradients(table, ids, gradients)
        self.model.apply_gradients(table, ids, gradients)

    def _assign(self, table: str, ids: list[int], seed: int) -> None:
        values = self._rows(table, len(ids), seed)
        self.store.assign(table, ids, values)
        self.model.assign(table, ids, values)

    def _erase(self, table: str, ids: list[int]) -> None:
        assert int(self.store.erase(table, ids)) == self.model.erase(table, ids)

    def _pooled(self, rows: list[tuple[list[int], ...]], seed: int) -> None:
        ragged = [[row[f] for row in rows] for f in range(len(FEATURES))]
        values, splits = zip(*map(_flat, ragged), strict=True)
        for create in (False, True):
            pooled = self.store.pooled_lookup(FEATURES, values, splits, create)
            for actual, expected in zip(pooled, self.model.pooled_lookup(FEATURES, ragged, create), strict=True):
                _close(actual, expected)
        gradients = [self._rows(feature.table, len(rows), seed + f) for f, feature in enumerate(FEATURES)]
        self.store.apply_pooled_gradients(FEATURES, values, splits, gradients)
        self.model.apply_pooled_gradients(FEATURES, ragged, gradients)

    def _steal(self) -> None:
        stolen = self.store.steal_touched()
        assert {table: ids.tolist() for table, ids in stolen.items()} == self.model.steal_touched()
        assert stolen.overflowed == ()

    def _save_and_restore(self) -> None:
        """A store of another name goes on from the files; what was touched stays behind."""
        before = {table.name: self.store.dump(table.name, with_state=True) for table in TABLES}
        self.store.save(self.folder)
        self._steal()
        self.store = EmbeddingStore(TABLES, next(_names))
        self.store.restore(self.folder)
        for table, (ids, values) in before.items():
            restored_ids, restored_values = self.store.dump(table, with_state=True)
            np.testing.assert_array_equal(restored_ids, ids)
            np.testing.assert_array_equal(restored_values, values)

    def compare(self) -> None:
        assert self.store.sizes() == {table: len(entries) for table, entries in self.model.entries.items()}
        for table, entries in self.model.entries.items():
            ids, values = self.store.dump(table)
            assert ids.tolist() == sorted(entries)
            for fid, row in zip(ids.tolist(), values, strict=True):
                _close(row, entries[fid].weights)
            known = [*entries, 12345]
            assert self.store.contains(table, known).numpy().tolist() == [True] * len(entries) + [False]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_OPERATIONS)
def test_any_sequence_of_operations_equals_a_dict_and_numpy_model(tmp_path: Path, operations: list[Any]) -> None:
    pair = _Pair(tmp_path)
    for operation in operations:
        pair.run(operation)
        pair.compare()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    dim=st.integers(1, 33),
    combiner=st.sampled_from(["sum", "mean"]),
    seed=_SEEDS,
)
def test_a_pooled_lookup_equals_a_row_wise_one(lengths: list[int], dim: int, combiner: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    store = EmbeddingStore([TableConfig("t", dim)], next(_names))
    splits = np.cumsum([0, *lengths])
    ids = random.integers(-500, 500, splits[-1])
    feature = PooledFeature("f", "t", combiner)
    (pooled,) = store.pooled_lookup([feature], [ids], [splits], create=True)
    vectors = store.lookup("t", ids).numpy()
    for row, (begin, end) in zip(pooled.numpy(), itertools.pairwise(splits), strict=True):
        expected = vectors[begin:end].sum(axis=0, dtype=np.float64)
        if combiner == "mean" and end > begin:
            expected = expected / (end - begin)
        np.testing.assert_allclose(row, expected, atol=2e-6)


def test_a_tape_and_one_fused_update_train_a_tf_function(name: str) -> None:
    store = EmbeddingStore([TableConfig("m", 2, Sgd(1.0), Constant(1.0)), TableConfig("u", 1, Sgd(2.0), Zeros())], name)
    features = [PooledFeature("m", "m", "mean"), PooledFeature("u", "u", "sum"), PooledFeature("unused", "u", "sum")]

    @tf.function
    def step(*ids: tf.Tensor) -> tf.Tensor:
        values, splits = ids[:3], ids[3:]
        pooled = store.pooled_lookup(features, values, splits, create=True)
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            loss = 3.0 * tf.reduce_sum(pooled[0]) + tf.reduce_sum(pooled[1])
        store.apply_pooled_gradients(features, values, splits, tape.gradient(loss, pooled))
        return loss

    values = [np.int64([1, 2, 1]), np.int64([5]), np.int64([6])]
    splits = [np.int64([0, 2, 3]), np.int64([0, 1, 1]), np.int64([0, 0, 1])]
    inputs = [tf.constant(array) for array in values + splits]
    assert float(step(*inputs)) == 3.0 * 4
    _close(store.lookup("m", [1, 2]), [[1 - 4.5] * 2, [1 - 1.5] * 2])
    _close(store.lookup("u", [5, 6]), [[-2.0], [0.0]])
    assert store.steal_touched().keys() == {"m", "u"}
    assert store.contains("u", [5, 6]).numpy().tolist() == [True, True]


def test_a_learning_rate_can_be_a_function_of_the_global_step(name: str) -> None:
    # emb:H5: polynomial decay from .01 to .11 in 10 steps, at step 1.
    rate = tf.keras.optimizers.schedules.PolynomialDecay(0.01, 10, 0.11)
    store = EmbeddingStore([TableConfig("t", 1, Sgd(rate), Zeros())], name)
    store.apply_gradients("t", [0, 0, 1], [[-1.0]] * 3, global_step=1)
    np.testing.assert_allclose(store.lookup("t", [0, 1]), [[0.04], [0.02]], rtol=1e-6)


def test_timestamps_are_stamped_and_saved(name: str, tmp_path: Path) -> None:
    from ops import library

    store = EmbeddingStore([TableConfig("t", 1, Sgd(1.0), Zeros())], name)
    store.apply_gradients("t", [1], [[1.0]], timestamp=1_700_000_000)
    store.lookup("t", [2], create=True)
    (path,) = store.save(tmp_path)
    entries = library.load().millrace_read_table_file(path=path, limit=-1)
    assert entries.ids.numpy().tolist() == [1, 2]
    assert entries.timestamps.numpy().tolist() == [1_700_000_000, 0]


def test_touched_keys_come_back_after_a_failed_publish(name: str) -> None:
    store = EmbeddingStore([TableConfig("t", 1), TableConfig("quiet", 1)], name)
    store.apply_gradients("t", [4, 2], [[1.0], [1.0]])
    stolen = store.steal_touched()
    assert stolen["t"].tolist() == [2, 4] and "quiet" not in stolen
    assert store.steal_touched() == {}
    store.apply_gradients("t", [3], [[1.0]])
    store.restore_touched(stolen)
    assert store.steal_touched()["t"].tolist() == [2, 3, 4]


def test_updates_from_many_threads_are_all_applied(name: str) -> None:
    # emb:H9
    store = EmbeddingStore([TableConfig("t", 4, Sgd(1.0), Zeros())], name)
    ids = np.arange(1000)

    def work() -> None:
        for _ in range(20):
            store.apply_gradients("t", ids, -np.ones((1000, 4), np.float32))
            store.lookup("t", ids)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.all(store.lookup("t", ids).numpy() == 120)


def test_a_store_is_shared_by_name_and_freed_with_its_last_owner(name: str) -> None:
    tables = [TableConfig("t", 1, Sgd(1.0), Zeros())]
    first, second = EmbeddingStore(tables, name), EmbeddingStore(tables, name)
    first.assign("t", [1], [[2.0]])
    view = EmbeddingStore.attach(name)
    assert float(second.lookup("t", [1])[0, 0]) == float(view.lookup("t", [1])[0, 0]) == 2.0
    with pytest.raises(tf.errors.InvalidArgumentError, match="already open in this process with other tables"):
        EmbeddingStore([TableConfig("t", 2)], name)
    del first
    assert second.size("t") == 1
    del second
    with pytest.raises(tf.errors.NotFoundError, match=name):
        view.sizes()
    successor = EmbeddingStore(tables, name)
    with pytest.raises(tf.errors.NotFoundError, match="another one has its name now"):
        view.sizes()
    del view
    assert successor.sizes() == {"t": 0}
    EmbeddingStore.release(name)
    EmbeddingStore.release(name)
    with pytest.raises(tf.errors.NotFoundError):
        successor.sizes()


def test_an_attached_view_knows_the_tables_and_takes_no_gradients(name: str) -> None:
    store = EmbeddingStore(TABLES, name)
    view = EmbeddingStore.attach(name)
    assert [table.to_text() for table in view.tables] == [table.to_text() for table in store.tables]
    with pytest.raises(ValueError, match="is attached"):
        view.apply_gradients("sgd", [1], [[1.0]])
    with pytest.raises(tf.errors.NotFoundError, match="no-such-store"):
        EmbeddingStore.attach("no-such-store")


def test_misuse_is_named(name: str) -> None:
    store = EmbeddingStore([TableConfig("movies", 2), TableConfig("serving", 2, optimizer=None)], name)
    feature = PooledFeature("genre", "movies")
    with pytest.raises(KeyError, match="no table 'films'; it has movies, serving"):
        store.lookup("films", [1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has dim 2, not 3"):
        store.assign("movies", [1], [[1.0, 2.0, 3.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="rank 1"):
        store.lookup("movies", [[1]])
    with pytest.raises(TypeError, match="ids must be integers"):
        store.lookup("movies", [1.5])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="feature 'genre': row_splits must end at the number of ids"
    ):
        store.pooled_lookup([feature], [[1, 2]], [[0, 1]])
    with pytest.raises(ValueError, match="1 features, 2 values"):
        store.pooled_lookup([feature], [[1], [2]], [[0, 1]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="gradient of feature 'genre'"):
        store.apply_pooled_gradients([feature], [[1, 2]], [[0, 2]], [np.ones((2, 2), np.float32)])
    with pytest.raises(ValueError, match="'serving'.*has no optimizer"):
        store.apply_gradients("serving", [1], [[1.0, 1.0]])
    assert store.sizes() == {"movies": 0, "serving": 0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_names_table_and_id_and_changes_nothing(name: str, bad: float) -> None:
    store = EmbeddingStore([TableConfig("movies", 1), TableConfig("users", 1)], name)
    features = [PooledFeature("u", "users"), PooledFeature("m", "movies")]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"table 'movies': the gradient of id 77 is NaN or infinite"
    ):
        store.apply_pooled_gradients(features, [[5], [77]], [[0, 1]] * 2, [[[1.0]], [[bad]]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 'movies': the value of id 77"):
        store.assign("movies", [77], [[bad]])
    assert store.sizes() == {"movies": 0, "users": 0}


def test_shapes_are_known_inside_a_graph_and_bad_ones_refused(name: str) -> None:
    store = EmbeddingStore([TableConfig("t", 4)], name)
    feature = PooledFeature("f", "t")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([9], tf.int64)])
    def pooled(values: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        (result,) = store.pooled_lookup([feature], [values], [splits])
        assert result.shape.as_list() == [8, 4]
        return result

    assert pooled(tf.constant([], tf.int64), tf.zeros([9], tf.int64)).shape == (8, 4)

    @tf.function(input_signature=[tf.TensorSpec([3, 5], tf.float32)])
    def update(gradients: tf.Tensor) -> None:
        store.apply_pooled_gradients([feature], [[1, 2, 3]], [[0, 1, 2, 3]], [gradients])

    with pytest.raises(ValueError, match="Dimension 1 in both shapes must be equal"):
        update.get_concrete_function()


def test_bad_configurations_are_refused_at_construction() -> None:
    for make, problem in [
        (lambda: TableConfig("../x", 1), "table name"),
        (lambda: TableConfig("x", 0), "dim must be"),
        (lambda: TableConfig("x", 1, optimizer="adam"), "optimizer must be"),
        (lambda: TableConfig("x", 1, initializer=None), "initializer must be"),
        (lambda: TableConfig("x", 1, seed=-1), "seed must be"),
        (lambda: Sgd(-1.0), "learning_rate must be finite"),
        (lambda: Adam(beta1=1.0), "beta1 must be below 1"),
        (lambda: RandomUniform(1.0, 0.0), "minval not above maxval"),
        (lambda: PooledFeature("f", "t", "max"), "combiner must be"),
        (lambda: EmbeddingStore([], "x"), "at least one table"),
        (lambda: EmbeddingStore([TableConfig("a", 1)] * 2, "x"), "names must differ"),
    ]:
        with pytest.raises(ValueError, match=problem):
            make()
    for table in TABLES:
        assert TableConfig.from_text(table.to_text()).to_text() == table.to_text()
    assert TABLES[0].for_serving().optimizer is None
