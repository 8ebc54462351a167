"""The index of a join's keys against a dictionary."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.transforms.batch.hashes import mix64
from millrace.transforms.feed.key_index import KeyIndex, row_keys


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 60), max_size=20, unique=True), st.integers(0, 15)), max_size=20))
def test_it_finds_what_a_dictionary_finds(steps: list[tuple[list[int], int]]) -> None:
    index, known, base, following = KeyIndex(), {}, 0, 0
    for keys, forgotten in steps:
        new = np.array([key for key in keys if known.get(key, -1) < base], np.uint64)
        positions = np.arange(following, following + len(new))
        index.add(new, positions)
        known.update(zip(new.tolist(), positions.tolist(), strict=True))
        following += len(new)
        base = min(base + forgotten, following)
        index.forget_below(base)
        expected = [known.get(key, -1) if known.get(key, -1) >= base else -1 for key in range(61)]
        assert index.positions_of(np.arange(61, dtype=np.uint64)).tolist() == expected


def test_it_holds_few_runs_however_many_additions() -> None:
    index = KeyIndex()
    for step in range(1000):
        index.add(np.arange(step * 10, step * 10 + 10, dtype=np.uint64), np.arange(step * 10, step * 10 + 10))
    assert index.nbytes <= 16 * 10_000
    assert len(index._runs) < 20


def test_keys_differ_by_request_and_by_item() -> None:
    requests = pa.array([f"r-{i // 10}" for i in range(10_000)])
    keys = row_keys(requests, np.arange(10_000) % 10)
    assert len(np.unique(keys)) == 10_000


def test_mix64_is_a_bijection_on_a_sample() -> None:
    assert len(np.unique(mix64(np.arange(100_000)))) == 100_000
