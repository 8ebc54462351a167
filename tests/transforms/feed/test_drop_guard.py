"""The guard trips on a partition of nothing but bad records, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed.drop_guard import DropRatioGuard, TooManyDeadLettersError


def _observed(guard: DropRatioGuard, partitions: list[int], bad: list[bool]) -> None:
    count = len(partitions)
    block = raw_block("events", [b"x"] * count, partitions, range(count))
    refusals = Refusals(block)
    refusals.add(np.flatnonzero(bad), Reason.MALFORMED_JSON, "cut off")
    guard.observe(block, refusals.to_batch())


def test_a_poisoned_partition_is_named_with_its_reason_and_the_remedy() -> None:
    guard = DropRatioGuard(0.5, window=10)
    with pytest.raises(
        TooManyDeadLettersError, match=r"events\[3\]: 10 of the newest 10 .*malformed_json 10.*--max-drop"
    ):
        _observed(guard, [3] * 10 + [1] * 10, [True] * 10 + [False] * 10)


def test_bad_records_in_a_new_partition_do_not_trip_before_a_window_has_come() -> None:
    guard = DropRatioGuard(0.5, window=100)
    _observed(guard, [0] * 99, [True] * 99)
    with pytest.raises(TooManyDeadLettersError):
        _observed(guard, [0], [True])


def test_a_partition_that_has_recovered_is_forgiven() -> None:
    guard = DropRatioGuard(0.5, window=10)
    _observed(guard, [0] * 10, [True] * 5 + [False] * 5)
    for _ in range(3):
        _observed(guard, [0] * 5, [False] * 5)
    _observed(guard, [0] * 5, [True] * 5)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), max_size=30))
def test_a_ratio_of_one_never_trips(blocks: list[list[bool]]) -> None:
    guard = DropRatioGuard(1.0, window=5)
    for bad in blocks:
        _observed(guard, [0] * len(bad), bad)
