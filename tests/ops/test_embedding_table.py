"""Tables by the numbers: reading, updating, paging, and many tables in one call."""

import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import millrace.ops.embedding_table
import millrace.ops.table_config
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adagrad,
    Constant,
    PolynomialDecay,
    PooledFeature,
    RandomUniform,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store


def _zeros(dim: int = 1, learning_rate: Any = 0.1, name: str = "t") -> TableConfig:
    return TableConfig(name, dim, Sgd(learning_rate), Zeros())


def _column(store: EmbeddingStore, ids: list[int], table: str = "t") -> list[float]:
    return store.lookup(table, ids).numpy()[:, 0].tolist()


def _close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-6)


@covers("emb:H1")
def test_added_values_are_read_back_and_an_unknown_id_reads_as_zeros() -> None:
    store = open_store(_zeros())
    store.assign_add("t", [0, 1], [[1.0], [1.0]])
    assert store.lookup("t", [0, 1, 2]).numpy().tolist() == [[1], [1], [0]]
    assert store.size("t") == 2


@covers("emb:H2")
def test_the_last_of_two_assignments_stays() -> None:
    store = open_store(_zeros())
    store.assign("t", [0, 1], [[1.0], [1.0]])
    store.assign("t", [1], [[5.0]])
    assert store.lookup("t", [0, 1, 2]).numpy().tolist() == [[1], [5], [0]]


# An entry that is absent is an empty text in the original and False in `found` here.
@covers("emb:H3")
def test_whole_entries_are_read_with_their_state_and_time() -> None:
    store = open_store(TableConfig("t", 1, Adagrad(0.1, initial_accumulator_value=0.5), Zeros()))
    store.assign("t", [0, 1, 2], [[0.1], [0.2], [0.3]], timestamp=1_700_000_000)
    entries, found = store.lookup_entries("t", [0, 1, 2, 3])
    assert found.tolist() == [True, True, True, False]
    _close(entries.values[:3], [[0.1, 0.5], [0.2, 0.5], [0.3, 0.5]])
    assert entries.timestamps[:3].tolist() == [1_700_000_000] * 3
    assert entries.ids.tolist() == [0, 1, 2, 3]


@covers("emb:H4")
@pytest.mark.parametrize("rate", [0.1, lambda step: 0.1, lambda step: tf.constant(0.1)])
def test_gradients_of_equal_ids_are_summed(rate: Any) -> None:
    store = open_store(_zeros(learning_rate=rate))
    store.apply_gradients("t", [0, 0, 1], [[-1.0]] * 3)
    _close(_column(store, [0, 1]), [0.2, 0.1])


@covers("emb:H5")
@pytest.mark.parametrize(
    "rate", [PolynomialDecay(0.01, 10, 0.11), tf.keras.optimizers.schedules.PolynomialDecay(0.01, 10, 0.11)]
)
def test_a_learning_rate_is_taken_at_the_global_step(rate: Any) -> None:
    store = open_store(_zeros(learning_rate=rate))
    store.apply_gradients("t", [0, 0, 1], [[-1.0]] * 3, global_step=1)
    _close(_column(store, [0, 1]), [0.04, 0.02])

    @tf.function
    def step(global_step: tf.Tensor) -> None:
        store.apply_gradients("t", [0, 0, 1], [[-1.0]] * 3, global_step)

    step(tf.constant(1, tf.int64))
    _close(_column(store, [0, 1]), [0.08, 0.04])


@covers("emb:H6")
def test_gradients_of_equal_ids_are_summed_in_every_dim() -> None:
    store = open_store(_zeros(dim=10))
    store.apply_gradients("t", [0, 1, 0, 1, 0], -np.ones((5, 10)))
    _close(store.lookup("t", [0, 1]), [[0.3] * 10, [0.2] * 10])


@covers("emb:H7")
def test_ids_between_equal_ones_keep_their_own_gradients() -> None:
    store = open_store(_zeros())
    store.apply_gradients("t", [1, 0, 1], [[-1.0]] * 3)
    _close(_column(store, [0, 1]), [0.1, 0.2])


@covers("emb:H10")
def test_a_cleared_table_is_empty_and_holds_less_memory() -> None:
    store = open_store(_zeros(dim=8))
    store.assign("t", np.arange(5000), np.ones((5000, 8)))
    full = store.stats("t").memory_bytes
    store.clear("t")
    assert _column(store, [0, 4999]) == [0, 0]
    assert store.sizes() == {"t": 0}
    assert store.steal_touched() == {}
    assert store.stats("t").memory_bytes < full


# A page begins where the one before ended; the original counts offsets instead.
@covers("emb:H19")
def test_pages_give_each_entry_once() -> None:
    store = open_store(_zeros())
    store.assign("t", [5, 6], [[0.5], [0.25]])
    pages = list(store.entries("t", page_size=1))
    found = [(fid, weight) for page in pages for fid, (weight,) in zip(page.ids, page.values, strict=True)]
    assert sorted(found) == [(5, 0.5), (6, 0.25)]


@covers("emb:H20")
def test_parts_of_a_walk_share_no_entry_and_miss_none() -> None:
    store = open_store(_zeros())
    store.assign("t", np.arange(100), np.ones((100, 1)))
    pages = [page for part in range(10) for page in store.entries("t", page_size=2, part=part, num_parts=10)]
    assert sorted(np.concatenate([page.ids for page in pages]).tolist()) == list(range(100))
    assert store.dump("t")[0].tolist() == list(range(100))


# 1 and 0 of the vector are True and False. A table that does not exist is a mistake of the program, so it is a KeyError
# that names the tables, where the original gives each id the status -1.
@covers("emb:H22")
def test_reinitialized_ids_start_again_and_become_touched() -> None:
    store = open_store(TableConfig("t", 2, Adagrad(1.0), Zeros()))
    store.assign("t", [2, 3], np.ones((2, 2)))
    store.apply_gradients("t", [2], [[1.0, 1.0]])
    store.steal_touched()
    existed = store.reinitialize("t", [1, 2, 3], timestamp=7)
    assert existed.numpy().tolist() == [False, True, True]
    entries, _ = store.lookup_entries("t", [1, 2, 3])
    _close(entries.values, [[0, 0, 0.1, 0.1]] * 3)
    assert entries.timestamps.tolist() == [7, 7, 7]
    assert store.steal_touched()["t"].tolist() == [1, 2, 3]
    with pytest.raises(KeyError, match="no table 'u'; it has t"):
        store.reinitialize("u", [1, 2, 3])


@pytest.fixture
def three() -> EmbeddingStore:
    """Tables of dims 1, 2, 2 in which id i reads as 2^i."""
    store = open_store(*[_zeros(dim, 1.0, name) for name, dim in (("a", 1), ("b", 2), ("c", 2))])
    for table in store.tables:
        store.assign(table.name, range(4), np.tile([[1.0], [2.0], [4.0], [8.0]], table.dim))
    return store


def _offsets(fused: millrace.ops.embedding_table.FusedLookup) -> list[list[int]]:
    return [numbers.numpy().tolist() for numbers in fused[1:]]


@covers("emb:H24")
def test_a_fused_lookup_lays_tables_end_to_end(three: EmbeddingStore) -> None:
    fused = three.fused_lookup(["a", "b", "c"], [0, 1, 2, 3], [1, 1, 2])
    assert fused.embeddings.numpy().tolist() == [1, 2, 2, 4, 4, 8, 8]
    assert _offsets(fused) == [[7], [0, 1, 2, 4], [0, 1, 3, 7]]


@covers("emb:H25")
def test_a_fused_lookup_lays_shards_end_to_end(three: EmbeddingStore) -> None:
    fused = three.fused_lookup(["a", "b", "c"], [0, 2, 1, 3], [1, 0, 1, 0, 1, 1], num_shards=2)
    assert fused.embeddings.numpy().tolist() == [1, 4, 4, 2, 2, 8, 8]
    assert _offsets(fused) == [[3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 1, 3, 3, 5, 7]]


@covers("emb:H26")
def test_a_fused_lookup_counts_the_floats_of_each_shard() -> None:
    store = open_store(_zeros(1, name="a"), _zeros(1, name="b"), _zeros(2, name="c"))
    fused = store.fused_lookup(["a", "b", "c"], [0, 1, 2, 3, 4, 5], [1] * 6, num_shards=2)
    assert not fused.embeddings.numpy().any()
    assert _offsets(fused) == [[4, 4], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 5, 6, 8]]


@covers("emb:H27")
def test_an_id_in_two_shards_takes_two_steps() -> None:
    store = open_store(_zeros(1, 1.0, "a"), _zeros(1, 1.0, "b"))
    tables, sizes = ["a", "b"], [1, 0, 1, 0]
    store.fused_apply_gradients(tables, [1, 1], sizes, [1.0, 2.0], num_shards=2)
    assert store.fused_lookup(tables, [1, 1], sizes, num_shards=2).embeddings.numpy().tolist() == [-3, -3]


def test_a_fused_update_sums_equal_ids_within_a_piece_only() -> None:
    store = open_store(TableConfig("t", 1, Adagrad(1.0, initial_accumulator_value=1.0), Zeros()))
    store.fused_apply_gradients(["t"], [1, 1], [2], [1.0, 2.0])
    store.fused_apply_gradients(["t"], [2, 2], [1, 1], [1.0, 2.0], num_shards=2)
    _close(_column(store, [1, 2]), [-3 / 10**0.5, -1 / 2**0.5 - 2 / 6**0.5])


# The original makes one table of two with equal rules; here the two features name one table, which adds and sums alike.
@covers("emb:H29")
def test_features_of_one_table_share_values_and_gradients() -> None:
    store = open_store(_zeros(2, 1.0))
    features = [PooledFeature("slot1", "t"), PooledFeature("slot2", "t")]
    store.assign_add("t", [1], [[2.0, 2.0]])
    store.assign_add("t", [1], [[4.0, 4.0]])
    ragged = [[1], [1]], [[0, 1], [0, 1]]
    assert [rows.numpy().tolist() for rows in store.pooled_lookup(features, *ragged)] == [[[6, 6]]] * 2
    store.apply_pooled_gradients(features, *ragged, [np.ones((1, 2))] * 2)
    assert [rows.numpy().tolist() for rows in store.pooled_lookup(features, *ragged)] == [[[4, 4]]] * 2


@covers("emb:H35")
def test_a_first_vector_depends_on_nothing_but_seed_table_id_and_dim() -> None:
    def table(name: str = "t", seed: int = 5, dim: int = 3) -> TableConfig:
        return TableConfig(name, dim, Sgd(), RandomUniform(-1.0, 1.0), seed=seed)

    ids = np.arange(-500, 500)
    batch, single = open_store(table()), open_store(table())
    expected = batch.lookup("t", ids, missing="create").numpy()
    for fid in ids[::-50].tolist():
        np.testing.assert_array_equal(single.lookup("t", [fid], missing="create")[0], expected[fid + 500])
    np.testing.assert_array_equal(open_store(table(dim=2)).lookup("t", ids, missing="first_vector"), expected[:, :2])
    for other in (table(seed=6), table(name="u")):
        vectors = open_store(other).lookup(other.name, ids, missing="first_vector").numpy()
        assert not np.isin(vectors, expected).any()
    assert len(np.unique(expected)) > 2900 and -1 <= expected.min() < -0.99 and 0.99 < expected.max() < 1


@covers("emb:H37")
def test_an_id_reads_as_zeros_until_its_first_write_which_starts_from_its_first_vector() -> None:
    store = open_store(TableConfig("t", 4, Sgd(1.0), RandomUniform()))
    assert not store.lookup("t", [1]).numpy().any()
    first = store.lookup("t", [1], missing="first_vector").numpy()
    assert first.all() and store.size("t") == 0
    store.assign_add("t", [1], np.ones((1, 4)))
    np.testing.assert_array_equal(store.lookup("t", [1]), first + 1)
    first = store.lookup("t", [2], missing="first_vector").numpy()
    store.apply_gradients("t", [2], np.ones((1, 4)))
    np.testing.assert_array_equal(store.lookup("t", [2]), first - 1)


def test_a_lookup_that_creates_marks_nothing_as_touched() -> None:
    store = open_store(TableConfig("t", 1, Sgd(), Constant(0.5)))
    assert _column(store, [1]) == [0]
    assert store.lookup("t", [1, 1], missing="create").numpy().tolist() == [[0.5], [0.5]]
    assert store.size("t") == 1 and store.steal_touched() == {}


@covers("emb:L12")
def test_touched_ids_are_all_stolen_once() -> None:
    store = open_store(_zeros(), _zeros(name="quiet"))
    store.apply_gradients("t", np.arange(1000)[::-1], np.ones((1000, 1)))
    stolen = store.steal_touched()
    assert stolen["t"].tolist() == list(range(1000)) and "quiet" not in stolen
    assert stolen.overflowed == ()
    assert store.steal_touched() == {}


def test_touched_ids_come_back_after_a_failed_publish() -> None:
    store = open_store(_zeros())
    store.apply_gradients("t", [4, 2], [[1.0], [1.0]])
    stolen = store.steal_touched()
    store.erase("t", [4])
    store.apply_gradients("t", [3], [[1.0]])
    store.restore_touched(stolen)
    assert store.steal_touched()["t"].tolist() == [2, 3, 4]
    assert store.contains("t", [2, 3, 4]).numpy().tolist() == [True, True, False]


def test_a_time_stamp_is_that_of_the_last_write_even_an_older_one() -> None:
    store = open_store(_zeros())
    store.apply_gradients("t", [1], [[1.0]], timestamp=2_000)
    store.assign("t", [1], [[1.0]], timestamp=1_000)
    assert store.lookup_entries("t", [1])[0].timestamps.tolist() == [1_000]
    assert store.stats("t").newest_timestamp == 2_000


def test_the_example_of_the_modules_docstring_trains_a_model(tmp_path: Path) -> None:
    example = "\n".join(re.findall(r"^(?:    .*|)$", millrace.ops.embedding_table.__doc__ or "", re.MULTILINE))
    (tmp_path / "example.py").write_text(textwrap.dedent(example))
    names = vars(millrace.ops.table_config) | vars(millrace.ops.embedding_table)
    names["model"] = lambda pooled: tf.reduce_sum(pooled[0], axis=1)
    names["loss_of"] = lambda scores, labels: tf.reduce_mean((scores - labels) ** 2)
    names = runpy.run_path(str(tmp_path / "example.py"), names)
    for _ in range(3):
        names["train_step"]([[7, 8, 7]], [[0, 2, 3]], tf.constant([1.0, 0.0]))
    assert names["store"].sizes() == {"movies": 2}
    assert names["store"].steal_touched()["movies"].tolist() == [7, 8]
