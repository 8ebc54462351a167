"""Checks and identity of the occurrence filters' configuration."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from millrace.ops.occurrence_filter import FILTERS, CountingFilter, Occurrence, ProbabilisticFilter, SlidingFilter


def test_filters_are_found_by_their_kind() -> None:
    filters = {"probabilistic": ProbabilisticFilter, "counting": CountingFilter, "sliding": SlidingFilter}
    assert filters == FILTERS


def test_by_default_ids_are_counted_in_seven_rings_and_all_are_admitted() -> None:
    assert Occurrence() == Occurrence(SlidingFilter(capacity=1_000_000, split_num=7), threshold=0, slot_thresholds={})
    assert ProbabilisticFilter() == ProbabilisticFilter(equal_probability=True, seed=0)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: SlidingFilter(split_num=4), "SlidingFilter: split_num must be an integer from 5 to 100, not 4"),
        (lambda: SlidingFilter(split_num=101), "split_num must be an integer from 5 to 100, not 101"),
        (lambda: SlidingFilter(capacity=0), "SlidingFilter: capacity must be an integer from 1 to 4294967295, not 0"),
        (lambda: CountingFilter(capacity=2.5), "CountingFilter: capacity must be an integer from 1 .* not 2.5"),
        (lambda: CountingFilter(capacity=True), "CountingFilter: capacity must be an integer from 1 .* not True"),
        (lambda: ProbabilisticFilter(seed=-1), "ProbabilisticFilter: seed must be an integer from 0 .* not -1"),
        (lambda: ProbabilisticFilter(seed=2**53), "ProbabilisticFilter: seed must be an integer from 0"),
        (lambda: ProbabilisticFilter(equal_probability=1), "equal_probability must be True or False, not 1"),
        (lambda: Occurrence("sliding"), "filter must be ProbabilisticFilter, .* or SlidingFilter, not 'sliding'"),
        (lambda: Occurrence(threshold=-1), "threshold of a sliding filter must be an integer from 0 to 255, not -1"),
        (lambda: Occurrence(threshold=256), "threshold of a sliding filter must be an integer from 0 to 255, not 256"),
        (lambda: Occurrence(CountingFilter(), 0, {4: 256}), "threshold of slot 4 of a counting filter .* to 255"),
        (lambda: Occurrence(slot_thresholds={32768: 1}), "slot must be an integer from 0 to 32767, not 32768"),
        (lambda: Occurrence(slot_thresholds={"4": 1}), "slot must be an integer from 0 to 32767, not '4'"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_choices(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def test_a_filter_that_draws_takes_thresholds_beyond_an_8_bit_count() -> None:
    assert Occurrence(ProbabilisticFilter(), 1000, {1: 5000}).slot_thresholds == ((1, 5000),)


def test_equal_thresholds_by_slot_are_equal_and_hash_alike_in_any_order() -> None:
    one = Occurrence(threshold=1, slot_thresholds={7: 2, 3: 0})
    other = Occurrence(threshold=1, slot_thresholds={3: 0, 7: 2})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Occurrence(threshold=1, slot_thresholds={3: 0})
    assert dataclasses.replace(one, threshold=2).slot_thresholds == ((3, 0), (7, 2))


def test_the_callers_mapping_is_not_kept() -> None:
    thresholds = {7: 2}
    occurrence = Occurrence(slot_thresholds=thresholds)
    thresholds[7] = 9
    assert occurrence.slot_thresholds == ((7, 2),)
