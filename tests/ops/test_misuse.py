"""What a store refuses: the error names the table, the id or the argument, and nothing has changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops import library
from millrace.ops.embedding_table import EmbeddingStore, Entries
from millrace.ops.table_config import Constant, Ftrl, PooledFeature, Segment, Sgd, TableConfig, Zeros
from tests.fakes.stores import open_store

_INVALID = tf.errors.InvalidArgumentError
_FEATURE = PooledFeature("genre", "movies")


@pytest.fixture
def store() -> EmbeddingStore:
    segments = Segment(1, Sgd(1.0), Constant(1.0)), Segment(1, Sgd(1.0), Constant(1.0))
    return open_store(TableConfig("movies", segments=segments), TableConfig("fixed", 2, None, Zeros()))


def _entries(width: int, timestamp: int) -> Entries:
    return Entries(np.array([1]), np.ones((1, width)), np.array([timestamp]))


Call = Callable[[EmbeddingStore], Any]


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.lookup("films", [1]),
        lambda store: store.lookup_entries("films", [1]),
        lambda store: store.contains("films", [1]),
        lambda store: store.size("films"),
        lambda store: store.stats("films"),
        lambda store: list(store.entries("films")),
        lambda store: store.dump("films"),
        lambda store: store.pooled_lookup([PooledFeature("f", "films")], [[1]], [[0, 1]]),
        lambda store: store.apply_pooled_gradients([PooledFeature("f", "films")], [[1]], [[0, 1]], [[[1.0]]]),
        lambda store: store.apply_gradients("films", [1], [[1.0]]),
        lambda store: store.fused_lookup(["movies", "films"], [1], [1, 0]),
        lambda store: store.fused_apply_gradients(["films"], [1], [1], [1.0]),
        lambda store: store.assign("films", [1], [[1.0]]),
        lambda store: store.assign_add("films", [1], [[1.0]]),
        lambda store: store.reinitialize("films", [1]),
        lambda store: store.erase("films", [1]),
        lambda store: store.clear("films"),
        lambda store: store.restore_touched({"films": np.array([1])}),
        lambda store: store.import_entries("films", _entries(2, 0)),
    ],
)
def test_an_unknown_table_is_a_key_error_with_the_choices(store: EmbeddingStore, call: Call) -> None:
    with pytest.raises(KeyError, match="no table 'films'; it has movies, fixed"):
        call(store)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.lookup("movies", [[1]]),
        lambda store: store.lookup("movies", 1),
        lambda store: store.lookup_entries("movies", [[1]]),
        lambda store: store.contains("movies", [[1]]),
        lambda store: store.fused_lookup(["movies"], [[1]], [1]),
        lambda store: store.apply_gradients("movies", [[1]], [[1.0, 1.0]]),
        lambda store: store.assign("movies", [[1]], [[1.0, 1.0]]),
        lambda store: store.reinitialize("movies", [[1]]),
        lambda store: store.erase("movies", [[1]]),
        lambda store: store.restore_touched({"movies": np.array([[1]])}),
    ],
)
def test_ids_must_have_rank_1(store: EmbeddingStore, call: Call) -> None:
    with pytest.raises(_INVALID, match=r"ids must have rank 1, got shape \["):
        call(store)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda store: store.assign("movies", [1], np.ones((1, 3))), "table 'movies' has dim 2, not 3"),
        (lambda store: store.assign("movies", [1], np.ones(2)), r"expected shape \[1, 2\], got \[2\]"),
        (lambda store: store.assign_add("movies", [1], np.ones((2, 2))), r"expected shape \[1, 2\], got \[2,2\]"),
        (lambda store: store.apply_gradients("movies", [1], np.ones((1, 1))), "table 'movies' has dim 2, not 1"),
        (lambda store: store.apply_gradients("movies", [1, 2], np.ones((1, 2))), r"expected shape \[2, 2\], got"),
        (
            lambda store: store.apply_gradients("movies", [1], np.ones((1, 2)), read_values=np.ones((1, 1))),
            "table 'movies' has dim 2, not 1",
        ),
        (lambda store: store.fused_lookup(["movies"], [1, 2], [1]), "must add up to the number of ids, 2, not 1"),
        (lambda store: store.fused_lookup(["movies"], [1], [2]), "must add up to the number of ids, 1, not 2"),
        (lambda store: store.fused_lookup(["movies", "fixed"], [1], [2, -1]), "must not be negative|must add up"),
        (lambda store: store.fused_lookup(["movies"], [1], [1], num_shards=2), "num_shards x tables = 2 numbers"),
        (lambda store: store.fused_apply_gradients(["movies"], [1], [1], [1.0]), r"gradients must be \[2\], got"),
        (lambda store: store.pooled_lookup([_FEATURE], [[[1]]], [[0, 1]]), "feature 'genre': values and row_splits"),
        (lambda store: store.pooled_lookup([_FEATURE], [[1]], [[[0, 1]]]), "feature 'genre': values and row_splits"),
        (lambda store: store.lookup("movies", [1], global_step=[1, 2]), "global_step must be a scalar"),
        (lambda store: store.assign("movies", [1], [[1.0, 1.0]], timestamp=[1]), "timestamp must be a scalar"),
        (lambda store: store.assign("movies", [1], [[1.0, 1.0]], timestamp=1 << 32), "timestamp must be seconds"),
        (lambda store: store.evict(1 << 32), "timestamp must be seconds"),
        (lambda store: store.import_entries("movies", _entries(3, 0)), "table 'movies'"),
        (lambda store: store.import_entries("movies", _entries(2, -1)), "time ?stamp"),
        (lambda store: store.import_entries("movies", _entries(2, 1 << 32)), "time ?stamp"),
        (lambda store: list(store.entries("movies", page_size=0)), "limit at least 1"),
        (lambda store: list(store.entries("movies", part=2, num_parts=2)), "part must be below num_parts"),
    ],
)
def test_a_wrong_shape_or_number_says_what_was_expected(store: EmbeddingStore, call: Call, problem: str) -> None:
    with pytest.raises(_INVALID, match=problem):
        call(store)
    assert store.sizes() == {"movies": 0, "fixed": 0}


def test_ids_must_be_integers(store: EmbeddingStore) -> None:
    with pytest.raises(TypeError, match="ids must be integers, not float64"):
        store.lookup("movies", [1.5])
    assert store.lookup("movies", []).shape == (0, 2)


def test_an_unknown_way_with_missing_ids_is_refused_with_the_choices(store: EmbeddingStore) -> None:
    for call in (
        lambda: store.lookup("movies", [1], missing="x"),
        lambda: store.pooled_lookup([_FEATURE], [[1]], [[0, 1]], missing="x"),
    ):
        with pytest.raises(ValueError, match="missing must be one of zeros, first_vector, create, not 'x'"):
            call()


def test_a_table_without_optimizer_takes_no_gradients(store: EmbeddingStore) -> None:
    feature = PooledFeature("f", "fixed")
    for call in (
        lambda: store.apply_gradients("fixed", [1], [[1.0, 1.0]]),
        lambda: store.apply_pooled_gradients([feature], [[1]], [[0, 1]], [[[1.0, 1.0]]]),
        lambda: store.fused_apply_gradients(["movies", "fixed"], [1], [1, 0], [1.0, 1.0]),
    ):
        with pytest.raises(ValueError, match="table 'fixed' of store .* has no optimizer: it takes no gradients"):
            call()


def _raw_update(store: EmbeddingStore, op: str, learning_rates: list[float]) -> None:
    """An update of id 1 of table movies with learning rates as a caller of the bare ops would give them."""
    shared = {
        "store": store.resource_handle,
        "learning_rates": learning_rates,
        "global_step": tf.constant(0, tf.int64),
        "timestamp": tf.constant(0, tf.int64),
    }
    ids = tf.constant([1], tf.int64)
    raw = library.load()
    match op:
        case "apply":
            read = tf.zeros([0, 0])
            raw.millrace_apply_gradients(ids=ids, gradients=[[1.0, 1.0]], read_values=read, table="movies", **shared)
        case "fused":
            raw.millrace_fused_apply_gradients(
                ids=ids, fused_slot_size=[1], gradients=[1.0, 1.0], tables=["movies"], num_shards=1, **shared
            )
        case "pooled":
            splits = tf.constant([0, 1], tf.int64)
            raw.millrace_apply_pooled_gradients(
                values=[ids], row_splits=[splits], gradients=[[[1.0, 1.0]]], features=["genre"], tables=["movies"],
                dims=[2], combiners=["sum"], max_lengths=[0], apply=True, **shared,
            )  # fmt: skip


@pytest.mark.parametrize("op", ["apply", "fused", "pooled"])
def test_learning_rates_must_be_one_a_segment(store: EmbeddingStore, op: str) -> None:
    for rates in ([1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(_INVALID, match="learning_rates must hold"):
            _raw_update(store, op, rates)
        assert store.size("movies") == 0
    _raw_update(store, op, [1.0, 2.0])
    assert store.lookup("movies", [1]).numpy().tolist() == [[0, -1]]


@pytest.mark.parametrize("op", ["apply", "fused", "pooled"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_learning_rate_that_is_not_finite_is_refused(store: EmbeddingStore, op: str, bad: float) -> None:
    store.assign("movies", [1], [[1.0, 1.0]])
    with pytest.raises(_INVALID, match="table 'movies': the learning rate of segment 1 is NaN or infinite"):
        _raw_update(store, op, [1.0, bad])
    assert store.lookup("movies", [1]).numpy().tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda raw, _: raw.millrace_find_store(store_name=["a", "b"]), "store_name"),
        (lambda raw, _: raw.millrace_verify_table_file(path=["a", "b"]), "path"),
        (lambda raw, _: raw.millrace_read_table_file(path=["a", "b"], cursor=[0, 0], limit=1), "path"),
        (lambda raw, _: raw.millrace_read_table_file(path="a", cursor=[0, 0], limit=[1]), "limit"),
        (lambda raw, _: raw.millrace_reshard_files(files=["a"], folder=["a", "b"], num_shards=1), "folder"),
        (lambda raw, _: raw.millrace_write_cut(cut=1, folder=["a", "b"]), "folder"),
        (lambda raw, _: raw.millrace_write_cut(cut=[1, 2], folder="a"), "cut"),
        (lambda raw, _: raw.millrace_drop_cut(cut=[1, 2]), "cut"),
        (lambda raw, store: raw.millrace_begin_cut(store=store, watermark=[1, 2]), "watermark"),
        (lambda raw, store: raw.millrace_evict(store=store, watermark=[1, 2]), "timestamp"),
        (lambda raw, store: raw.millrace_sizes(store=tf.stack([store, store])), "the handle of a store"),
        (lambda raw, store: raw.millrace_close_store(store=tf.stack([store])), "the handle of a store"),
    ],
)
def test_a_vector_where_a_scalar_is_meant_is_an_error(store: EmbeddingStore, call: Any, name: str) -> None:
    with pytest.raises(_INVALID, match=f"{name}.* must be a scalar"):
        call(library.load(), store.resource_handle)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_named_and_no_table_changes(bad: float) -> None:
    store = open_store(TableConfig("movies", 1), TableConfig("users", 1))
    features = [PooledFeature("u", "users"), PooledFeature("m", "movies")]
    problem = "table 'movies': the gradient of id 77 is NaN or infinite; nothing was applied"
    with pytest.raises(_INVALID, match=problem):
        store.apply_pooled_gradients(features, [[5], [77]], [[0, 1]] * 2, [[[1.0]], [[bad]]])
    store.apply_pooled_gradients(features, [[5], [77]], [[0, 1]] * 2, [[[1.0]], [[bad]]], apply=False)
    with pytest.raises(_INVALID, match=problem):
        store.fused_apply_gradients(["users", "movies"], [5, 77], [1, 1], [1.0, bad])
    with pytest.raises(_INVALID, match=problem):
        store.apply_gradients("movies", [5, 77, 78], [[1.0], [bad], [bad]])
    with pytest.raises(_INVALID, match="table 'movies': the value of id 77 is NaN or infinite; nothing was assigned"):
        store.assign("movies", [5, 77], [[1.0], [bad]])
    assert store.sizes() == {"movies": 0, "users": 0}
    assert store.steal_touched() == {}


def test_a_sum_that_overflows_is_not_finite_either() -> None:
    store = open_store(TableConfig("t", 1, Sgd(1.0), Zeros()))
    with pytest.raises(_INVALID, match="the gradient of id 1 is NaN or infinite"):
        store.apply_gradients("t", [1, 2, 1], [[3e38], [1.0], [3e38]])


def test_a_step_or_addition_that_would_not_be_finite_is_left_out_and_counted() -> None:
    store = open_store(TableConfig("t", 2, Ftrl(0.1), Zeros()))
    store.apply_gradients("t", [1, 2], [[1.0, 1.0], [1.0, 1.0]])
    before = store.dump("t", with_state=True)[1]
    store.apply_gradients("t", [1, 2], [[2e19, 0.0], [0.0, -3e38]])
    store.assign("t", [3], [[3e38, 0.0]])
    store.assign_add("t", [3, 3], [[3e38, 0.0], [-3e38, 1.0]])
    np.testing.assert_array_equal(store.dump("t", with_state=True)[1][:2], before)
    assert store.lookup("t", [3]).numpy().tolist() == [[0, 1]]
    assert store.stats("t").overflows == 3
    store.apply_gradients("t", [1, 2], [[1.0, 1.0], [1.0, 1.0]])
    assert np.all(store.lookup("t", [1, 2]).numpy() != before[:, :2])


def test_skipped_gradients_are_counted() -> None:
    store = open_store(TableConfig("t", 2, Sgd(1.0), Zeros(), non_finite="skip"))
    store.apply_gradients("t", [1, 2, 3, 1], [[np.nan, 1.0], [1.0, 2.0], [np.inf, 0.0], [1.0, 1.0]])
    assert store.lookup("t", [1, 2, 3]).numpy().tolist() == [[0, 0], [-1, -2], [0, 0]]
    assert store.size("t") == 1
    assert store.stats("t").not_finite == 2
    assert store.steal_touched()["t"].tolist() == [2]


def test_clipped_gradients_are_counted_where_they_were_not_finite() -> None:
    store = open_store(TableConfig("t", 1, Sgd(1.0), Zeros(), non_finite="clip", gradient_limit=2.5))
    store.apply_gradients("t", range(5), [[np.nan], [np.inf], [-np.inf], [3.0], [1.0]])
    assert store.lookup("t", range(5)).numpy()[:, 0].tolist() == [0, -2.5, 2.5, -2.5, -1]
    assert store.stats("t").not_finite == 3


def test_finite_gradients_are_clipped_to_a_limit_without_being_counted() -> None:
    store = open_store(TableConfig("t", 1, Sgd(1.0), Zeros(), gradient_limit=2.0))
    store.apply_gradients("t", [1, 1, 2], [[1.5], [1.5], [-5.0]])
    assert store.lookup("t", [1, 2]).numpy()[:, 0].tolist() == [-2, 2]
    assert store.stats("t").not_finite == 0
    with pytest.raises(_INVALID, match="the gradient of id 1 is NaN"):
        store.apply_gradients("t", [1], [[np.inf]])
