"""Provenance: each source row is applied once, whatever is repeated, reordered or interrupted."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.training.stream.position import Position, ProvenanceError, SeenRows

Row = tuple[int, int, int]
row_numbers = st.integers(0, 63) | st.integers(0, 64 * 256 - 1)
rows = st.tuples(st.integers(0, 2), st.integers(0, 300), row_numbers)


def columns(batch: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array = np.array(batch, np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def chunks(items: list[Row], sizes: list[int]) -> Iterator[list[Row]]:
    start = 0
    for size in sizes:
        yield items[start : start + size]
        start += size
    yield items[start:]


@given(st.lists(rows, max_size=200), st.lists(st.integers(0, 20), max_size=20))
def test_a_row_is_new_exactly_once(stream: list[Row], sizes: list[int]) -> None:
    seen, admitted = SeenRows(), []
    for batch in chunks(stream, sizes):
        admission = seen.admit(*columns(batch))
        admitted += [row for row, new in zip(batch, admission.new, strict=True) if new]
        assert admission.new.sum() + admission.duplicates + admission.too_old == len(batch)
    assert sorted(admitted) == sorted(set(stream))


@given(st.lists(rows, max_size=200), st.lists(st.integers(0, 20), max_size=20))
def test_saving_and_loading_between_batches_changes_nothing(stream: list[Row], sizes: list[int]) -> None:
    plain, restored = SeenRows(), SeenRows()
    for batch in chunks(stream, sizes):
        restored = SeenRows.load(restored.save())
        assert plain.admit(*columns(batch)).new.tolist() == restored.admit(*columns(batch)).new.tolist()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3)), max_size=150), st.integers(1, 3))
def test_a_small_horizon_agrees_with_a_set_that_forgets(stream: list[tuple[int, int]], size: int) -> None:
    horizon = 64
    seen, known, newest = SeenRows(horizon), set(), -1
    for start in range(0, len(stream), size):
        batch = [(0, offset, row) for offset, row in stream[start : start + size]]
        admission = seen.admit(*columns(batch))
        newest = max([newest, *(offset for _, offset, _ in batch)])
        for row, new in zip(batch, admission.new, strict=True):
            assert new == (row not in known and row[1] > newest - horizon)
            known.add(row)
    assert all(len(window._ring) <= horizon for window in seen._windows.values())


def test_rows_beyond_the_horizon_are_counted_as_too_old() -> None:
    seen = SeenRows(horizon=16)
    seen.admit(*columns([(0, 100, 0)]))
    admission = seen.admit(*columns([(0, 84, 0), (0, 85, 0), (0, 85, 0)]))
    assert (admission.new.tolist(), admission.duplicates, admission.too_old) == ([False, True, False], 1, 1)


def test_partitions_do_not_share_rows() -> None:
    assert SeenRows().admit(*columns([(0, 5, 1), (1, 5, 1)])).new.all()


def test_copies_of_a_row_are_rows_of_their_own() -> None:
    seen = SeenRows()
    batch = [(0, 5, 7), (0, 5, 7 + 64), (0, 5, 7 + 2 * 64), (1, 5, 7 + 64)]
    assert seen.admit(*columns(batch)).new.all()
    assert not seen.admit(*columns(batch)).new.any()
    assert seen.admit(*columns([(0, 5, 64 * 256 - 1)])).new.all()


def test_each_copy_has_a_horizon_of_its_own() -> None:
    seen = SeenRows(horizon=16)
    seen.admit(*columns([(0, 100, 0)]))
    assert seen.admit(*columns([(0, 5, 64)])).new.all()
    assert seen.admit(*columns([(0, 5, 0)])).too_old == 1


def test_memory_is_taken_for_copies_that_are_seen_only() -> None:
    seen = SeenRows()
    seen.admit(*columns([(0, 5, 1), (0, 5, 64 * 9)]))
    assert sorted(seen._windows) == [(0, 0), (0, 9)]


@pytest.mark.parametrize("row", [-1, 64 * 256])
def test_a_row_that_no_step_makes_is_refused(row: int) -> None:
    with pytest.raises(ProvenanceError, match="0..16383"):
        SeenRows().admit(*columns([(0, 5, row)]))


def test_a_state_that_was_saved_when_rows_had_no_copies_still_loads() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, horizon=np.array(64), base_3=np.array(10), words_3=np.array([1, 6], np.uint64))
    seen = SeenRows.load(buffer.getvalue())
    admission = seen.admit(*columns([(3, 10, 0), (3, 11, 1), (3, 11, 2), (3, 11, 3), (3, 10, 64)]))
    assert admission.new.tolist() == [False, False, False, True, True]


def test_a_saved_state_that_is_cut_short_is_refused() -> None:
    seen = SeenRows()
    seen.admit(*columns([(0, 5, 1)]))
    with pytest.raises(ProvenanceError):
        SeenRows.load(seen.save()[:-40])


def test_applying_a_row_twice_is_an_error_and_offsets_never_go_back() -> None:
    position = Position()
    position.applied(*columns([(0, 1, 2)]))
    position.passed({0: 7}, duplicates=2, too_old=1)
    position.passed({0: 5})
    assert position.offsets == {0: 7}
    assert (position.rows_applied, position.rows_duplicate, position.rows_too_old) == (1, 2, 1)
    with pytest.raises(ProvenanceError):
        position.applied(*columns([(0, 1, 2)]))
