"""Provenance: each source row is applied once, whatever is repeated, reordered or interrupted."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.training.stream.floor_tracker import FloorTracker
from millrace.training.stream.seen_rows import ProvenanceError, SeenRows
from millrace.transforms.batch.floors import BlockFloors

Row = tuple[int, int, int]
row_numbers = st.integers(0, 63) | st.integers(0, 64 * 256 - 1)
# Offsets on both sides of the edge between two chunks, and far away.
offsets = st.integers(0, 300) | st.integers(16_380, 16_390) | st.integers((1 << 62) - 3, 1 << 62)
rows = st.tuples(st.sampled_from([0, 1, (1 << 62) + 65_535]), offsets, row_numbers)


def columns(batch: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array = np.array(batch, np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def chunks(items: list[Row], sizes: list[int]) -> Iterator[list[Row]]:
    start = 0
    for size in sizes:
        yield items[start : start + size]
        start += size
    yield items[start:]


def reloaded(seen: SeenRows) -> SeenRows:
    with tempfile.TemporaryDirectory() as folder:
        seen.save(Path(folder))
        return SeenRows.load(Path(folder))


@given(st.lists(rows, max_size=200), st.lists(st.integers(0, 20), max_size=20))
def test_a_row_is_new_exactly_once(stream: list[Row], sizes: list[int]) -> None:
    seen, admitted = SeenRows(), []
    for batch in chunks(stream, sizes):
        admission = seen.admit(*columns(batch))
        admitted += [row for row, new in zip(batch, admission.new, strict=True) if new]
        assert admission.new.sum() + admission.duplicates == len(batch) and not admission.too_old
    assert sorted(admitted) == sorted(set(stream))


@given(st.lists(rows, max_size=60), st.lists(st.integers(0, 20), max_size=5))
def test_saving_and_loading_between_batches_changes_nothing(stream: list[Row], sizes: list[int]) -> None:
    plain, restored = SeenRows(), SeenRows()
    for batch in chunks(stream, sizes):
        restored = reloaded(restored)
        assert plain.admit(*columns(batch)).new.tolist() == restored.admit(*columns(batch)).new.tolist()


@given(st.lists(rows, max_size=100), st.lists(rows, max_size=100), st.lists(rows, max_size=100))
def test_a_copy_and_its_original_do_not_see_each_others_rows(
    before: list[Row], one: list[Row], other: list[Row]
) -> None:
    original = SeenRows()
    original.admit(*columns(before))
    copied = original.copy()
    original.admit(*columns(one))
    copied.admit(*columns(other))
    everything = sorted({*before, *one, *other})
    for seen, known in ((original, {*before, *one}), (copied, {*before, *other})):
        assert seen.admit(*columns(everything)).new.tolist() == [row not in known for row in everything]


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 90)), max_size=100), st.data())
def test_rows_below_the_base_are_refused_and_all_others_are_known_exactly(
    stream: list[tuple[int, int]], data: st.DataObject
) -> None:
    seen, known, base = SeenRows(), set(), 0
    for start in range(0, len(stream), 7):
        batch = [(0, offset, row) for offset, row in stream[start : start + 7]]
        admission = seen.admit(*columns(batch))
        for row, new in zip(batch, admission.new, strict=True):
            assert new == (row not in known and row[1] >= base)
            known.add(row)
        assert admission.too_old == sum(row[1] < base for row in batch)
        asked = data.draw(st.integers(0, 40_000), "base")
        seen.raise_bases({0: asked})
        base = max(base, asked)


@pytest.mark.parametrize(("rate", "window"), [(5000, 3600), (1760, 600)])
def test_every_negative_of_a_long_window_is_learned(rate: int, window: int) -> None:
    """Positives come at once, negatives when the window is over; each block says what the feed still holds."""
    seen, tracker, tick, most = SeenRows(), FloorTracker(), 20, 0
    refused = 0
    for now in range(0, window + 600, tick):
        newest = np.arange(rate * now, rate * (now + tick))
        oldest = newest - rate * window
        sent = np.concatenate([newest[newest % 10 == 0], oldest[(oldest >= 0) & (oldest % 10 != 0)]])
        admission = seen.admit(np.zeros(len(sent), np.int64), sent, sent % 6)
        refused += len(sent) - int(admission.new.sum())
        floor = max(0, rate * (now + tick - window))
        seen.raise_bases(tracker.add(0, BlockFloors("run", 1, 1, ((0, 0, floor),))))
        most = max(most, seen.nbytes)
    print(f"{rate:,} impressions/s, {window} s: {refused} rows refused, at most {most / 1e6:.1f} MB")
    assert refused == 0
    assert most < rate * window * 1.1 + 100_000  # a byte per record that the feed holds, and no more than 10% beside it


def test_a_far_offset_takes_one_chunk_and_refuses_nothing_else() -> None:
    seen = SeenRows()
    seen.admit(*columns([(0, offset, 0) for offset in range(5)]))
    before = seen.nbytes
    assert seen.admit(*columns([(0, 1 << 62, 0)])).new.all()
    assert before < seen.nbytes < 2 * before
    assert seen.admit(*columns([(0, offset, 0) for offset in range(5, 10)])).new.all()
    assert reloaded(seen).admit(*columns([(0, offset, 0) for offset in range(10, 15)])).new.all()


def test_rows_whose_records_lie_far_apart_take_memory_by_the_row() -> None:
    seen, n = SeenRows(), 5000
    batch = np.zeros(n, np.int64), np.arange(n, dtype=np.int64) << 14, np.full(n, 63)
    assert seen.admit(*batch).new.all()
    assert seen.nbytes < 300 * n
    assert reloaded(seen).admit(*batch).duplicates == n


@pytest.mark.parametrize("row", [0, 63])
def test_a_chunk_that_fills_is_the_same_before_and_after(row: int) -> None:
    seen, start = SeenRows(), 5 << 14
    for first in range(start, start + (1 << 14), 500):
        batch = [(0, offset, row) for offset in range(first, min(first + 500, start + (1 << 14)))]
        copied = seen.copy()
        assert seen.admit(*columns(batch)).new.all()
        assert copied.admit(*columns(batch)).new.all()  # what one side marks, the other does not see
        assert seen.admit(*columns(batch)).duplicates == len(batch)
    assert seen.nbytes == (1 << 14) * (8 if row else 1)


def test_copies_of_a_row_are_rows_of_their_own() -> None:
    seen = SeenRows()
    batch = [(0, 5, 7), (0, 5, 7 + 64), (0, 5, 7 + 2 * 64), (1, 5, 7 + 64)]
    assert seen.admit(*columns(batch)).new.all()
    assert not seen.admit(*columns(batch)).new.any()
    assert seen.admit(*columns([(0, 5, 64 * 256 - 1)])).new.all()


def test_chunks_below_the_base_are_dropped() -> None:
    seen = SeenRows()
    seen.admit(*columns([(0, 5, 1), (0, 5, 64 * 9), (0, 20_000, 1), (1, 5, 1)]))
    one = SeenRows()
    one.admit(*columns([(0, 5, 1)]))
    seen.raise_bases({0: 20_000})
    assert seen.nbytes == 2 * one.nbytes


@pytest.mark.parametrize("row", [-1, 64 * 256])
def test_a_row_that_no_step_makes_is_refused(row: int) -> None:
    with pytest.raises(ProvenanceError, match="0..16383"):
        SeenRows().admit(*columns([(0, 5, row)]))


def test_a_state_of_the_first_format_still_loads(tmp_path: Path) -> None:
    words = np.zeros(20_000, np.uint64)
    words[[0, 1, 19_000]] = [1, 6, 1 << 63]
    np.savez_compressed(
        tmp_path / "seen.npz", horizon=np.array(1 << 20), base_3=np.array(10), words_3=words,
        base_3_2=np.array(0), words_3_2=np.array([1], np.uint64),
    )  # fmt: skip
    seen = SeenRows.load(tmp_path)
    batch = [(3, 10, 0), (3, 11, 1), (3, 11, 2), (3, 19_010, 63), (3, 0, 128), (3, 11, 3), (3, 10, 64), (3, 2, 0)]
    assert seen.admit(*columns(batch)).new.tolist() == [False] * 5 + [True] * 3


def test_what_the_first_format_had_forgotten_is_still_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "seen.npz", horizon=np.array(2), base_0=np.array(10), words_0=np.ones(2, np.uint64))
    assert SeenRows.load(tmp_path).admit(*columns([(0, 9, 0), (0, 11, 0), (0, 12, 0)])).new.tolist() == [
        False,
        False,
        True,
    ]


def test_a_saved_state_that_is_cut_short_or_missing_is_refused(tmp_path: Path) -> None:
    seen = SeenRows()
    seen.admit(*columns([(0, 5, 1)]))
    seen.save(tmp_path)
    path = tmp_path / "seen.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ProvenanceError):
        SeenRows.load(tmp_path)
    path.unlink()
    with pytest.raises(ProvenanceError):
        SeenRows.load(tmp_path)
