"""A short run of the fuzzer of deltas; `make fuzz` has the long one."""

from tests.fuzz.fuzz_deltas import fuzz

_RUNS = 5_000


def test_a_changed_delta_is_applied_whole_or_refused_whole() -> None:
    taken = fuzz(_RUNS, seed=1)
    assert 0 < taken < _RUNS
