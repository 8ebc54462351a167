"""A slice of what `tests/fuzz/fuzz_framing.py` runs at length."""

from tests.fuzz.fuzz_framing import fuzz


def test_damaged_streams_lose_no_more_than_their_damaged_records() -> None:
    runs = 3000
    assert runs // 4 < fuzz(runs, seed=1) < runs
