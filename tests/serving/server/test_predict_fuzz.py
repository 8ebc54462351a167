"""A short run of the fuzzer of requests; `make fuzz` has the long one."""

from tests.fuzz.fuzz_predict import fuzz

_RUNS = 2_000


def test_a_changed_request_is_answered_or_refused_and_takes_no_more_than_it_brings() -> None:
    answered = fuzz(_RUNS, seed=1)
    assert 0 < answered < _RUNS
