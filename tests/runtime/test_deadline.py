"""Time budgets."""

import pytest

from millrace.runtime.deadline import Deadline, wait_until


def test_a_deadline_counts_down_on_its_clock_and_never_below_zero() -> None:
    now = 100.0
    deadline = Deadline(5.0, clock=lambda: now)
    assert deadline.remaining() == 5.0 and not deadline.expired()
    now = 103.0
    assert deadline.remaining() == 2.0
    now = 200.0
    assert deadline.remaining() == 0.0 and deadline.expired()


def test_waiting_ends_when_the_condition_holds() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), 10.0, "the third answer", poll_seconds=0.001)


def test_waiting_in_vain_names_what_was_awaited() -> None:
    with pytest.raises(TimeoutError, match="the moon: not within 0.01 s"):
        wait_until(lambda: False, 0.01, "the moon", poll_seconds=0.001)


def test_a_condition_that_already_holds_needs_no_time() -> None:
    wait_until(lambda: True, 0.0, "nothing")
