"""Item pools: draws, weights, memory, saved bytes."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.take_rows import take_rows_of
from millrace.transforms.steps.negatives import item_pool
from millrace.transforms.steps.negatives.item_pool import DrawRule, Draws, ItemPool
from millrace.transforms.steps.negatives.negative_rows import sampled_weights
from tests.conformance.covers import covers
from tests.reference.negatives_reference import weight_of


def items_of(keys: np.ndarray) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "item": pa.array(keys.astype(np.int64)),
            "tags": pa.array([[int(key)] * 3 for key in keys], pa.list_(pa.int64())),
        }
    )


def feed(pool: ItemPool, keys: range | list[int], draws: int = 0, seed: int = 0, own: bool = False) -> Draws:
    """Pushes the keys into one pool, with `draws` draws after each."""
    column = np.asarray(keys, np.uint64)
    random = np.random.default_rng(seed).integers(0, 1 << 53, len(column)).astype(np.uint64)
    ones = np.ones(len(column), bool)
    return pool.process(
        items_of(column), column, np.full(len(column), 3), ones, ones & (draws > 0), random, DrawRule(draws, 0.0, own)
    )


@covers("data:v25")
def test_the_weight_of_a_draw() -> None:
    """Index 3 of 10: 3.0 at the first draw, 1.8 with decay 2, 2.0 at the item's second draw."""
    recency = np.array([(3 + 1) / 10])
    assert sampled_weights(5, recency, np.array([1])).tolist() == pytest.approx([3.0])
    assert sampled_weights(5, recency, np.array([1]), decay=2.0).tolist() == pytest.approx([1.8])
    assert sampled_weights(5, recency, np.array([2])).tolist() == pytest.approx([2.0])
    assert weight_of(5, 0.4, 1, 1.0) == pytest.approx(3.0)


@covers("data:v25")
def test_draws_tell_recency_and_how_often_the_item_was_drawn() -> None:
    """A pool of 10 in order of arrival; the newest has recency 1."""
    pool = ItemPool(start_num=9, max_item_num=10)
    assert not len(feed(pool, range(9)).rows)
    draws = feed(pool, [9], draws=200, own=True)
    drawn = take_rows_of(pool.store, draws.positions).column("item").to_numpy()
    assert sorted(set(drawn.tolist())) == list(range(10))
    np.testing.assert_allclose(draws.recency, (drawn + 1) / 10)
    for key in range(10):
        assert draws.times[drawn == key].tolist() == list(range(1, np.count_nonzero(drawn == key) + 1))
    assert pool.contents().drawn.sum() == 200


def test_the_oldest_item_leaves_and_comes_back_as_a_new_one() -> None:
    pool = ItemPool(0, 3)
    feed(pool, [1, 2, 1, 3, 4, 5, 1])
    contents = pool.contents()
    assert contents.keys.tolist() == [4, 5, 1]
    assert contents.pushed.tolist() == [1, 1, 1]
    assert contents.items.column("tags").to_pylist() == [[4] * 3, [5] * 3, [1] * 3]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=30), st.integers(1, 12))
def test_gathered_items_are_those_of_their_keys_whatever_the_store_has_forgotten(
    steps: list[list[int]], most: int
) -> None:
    pool = ItemPool(0, most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_pool, "_MIN_WASTE", 2)
        for number, keys in enumerate(steps):
            draws = feed(pool, keys, draws=2, seed=number)
            items = take_rows_of(pool.store, draws.positions)
            tags = items.column("tags").to_pylist()
            assert [[each] * 3 for each in items.column("item").to_pylist()] == tags
            contents = pool.contents()
            assert contents.items.column("item").to_numpy().tolist() == contents.keys.tolist()
            assert len(pool._store) <= 2 * len(pool) + 2 + len(keys)


def test_the_store_holds_few_batches_and_forgets_what_has_left() -> None:
    pool = ItemPool(0, 1000)
    for step in range(300):
        feed(pool, range(100 * step, 100 * step + 100), draws=1, seed=step)
    assert len(pool) == 1000
    assert len(pool._store) <= 2 * 1000 + 4096 + 200
    assert len(pool.store) < 16


def test_items_of_too_many_channels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_pool, "MAX_CHANNELS", 2)
    pool = ItemPool()
    keys = np.arange(6, dtype=np.uint64)
    ones = np.ones(6, bool)
    draws = pool.process(items_of(keys), keys, np.array([1, 2, 3, 4, 1, 2]), ones, ~ones, keys, DrawRule(0))
    assert (draws.added, draws.refused, len(pool)) == (4, 2, 4)


def test_merging_adds_counters_up_and_keeps_the_order() -> None:
    left, right = ItemPool(0, 4), ItemPool(0, 4)
    feed(left, [1, 2, 2])
    feed(right, [2, 7, 8, 9])
    left.merge(right.contents())
    contents = left.contents()
    assert contents.keys.tolist() == [2, 7, 8, 9]
    assert contents.pushed.tolist() == [3, 1, 1, 1]
    assert contents.items.column("item").to_pylist() == [2, 7, 8, 9]


def test_an_empty_pool_is_saved_and_restored() -> None:
    pool = ItemPool()
    pool.restore(ItemPool().save())
    assert len(pool) == 0
    feed(pool, [1])
    assert len(pool) == 1


@pytest.fixture(scope="module")
def saved() -> bytes:
    pool = ItemPool(0, 50)
    feed(pool, range(40), draws=1)
    return pool.save()


def test_bytes_of_something_else_are_refused_and_change_nothing(saved: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ItemPool(0, 50)
    feed(pool, [1])
    before = pool.save()
    other = record_batch.to_bytes(pa.record_batch({"x": [1]}))
    for data in (b"", b"garbage", saved[:-100], other):
        with pytest.raises(ValueError):
            pool.restore(data)
    monkeypatch.setattr(item_pool, "MAX_STATE_BYTES", 100)
    with pytest.raises(ValueError, match="limit of 100"):
        pool.restore(saved)
    with pytest.raises(ValueError, match="lower max_item_num"):
        pool.save()
    monkeypatch.undo()
    assert pool.save() == before


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
@example([(251, 3)])  # a column of another type
def test_damaged_bytes_are_refused_or_read(saved: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(saved)
    for position, byte in changes:
        data[position % len(data)] = byte
    pool = ItemPool(0, 50)
    try:
        pool.restore(bytes(data))
    except ValueError:
        assert len(pool) == 0
        return
    try:
        feed(pool, range(100, 110), draws=2)
    except ValueError as error:  # no checksum tells that the schema is not the one that was written
        assert "in the item pools" in str(error)
