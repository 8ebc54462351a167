"""When a save is due, by an injected clock."""

import datetime

import pytest

from millrace.training.state.save_schedule import DailyWindow, SaveSchedule
from tests.conformance.covers import covers

DAY = datetime.datetime(2024, 5, 17, tzinfo=datetime.UTC).timestamp()
HOUR = 3600.0


class Clock:
    def __init__(self, now: float = DAY) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def at(hours: int, minutes: int = 0) -> datetime.time:
    return datetime.time(hours, minutes)


def test_the_step_it_begins_with_is_not_saved_and_the_last_one_is() -> None:
    schedule = SaveSchedule(every_steps=100, clock=Clock())
    assert not schedule.due(0)
    assert not schedule.due(1)
    assert schedule.due_at_end(1)


def test_a_forced_save_is_due_at_once_and_only_once() -> None:
    schedule = SaveSchedule(every_steps=100, clock=Clock())
    schedule.force()
    assert schedule.due(0)
    schedule.begin_period(0)
    assert not schedule.due(0)


def test_a_step_that_was_just_saved_is_not_saved_again_at_the_end() -> None:
    schedule = SaveSchedule(every_steps=2, clock=Clock())
    assert not schedule.due(7)
    assert schedule.due(9)
    schedule.begin_period(9)
    assert not schedule.due_at_end(9)


def test_steps_are_counted_from_the_last_save() -> None:
    schedule = SaveSchedule(every_steps=10, clock=Clock())
    assert [step for step in range(40) if schedule.due(step) and schedule.begin_period(step) is None] == [10, 20, 30]


def test_seconds_are_counted_from_the_last_save() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=10, clock=clock)
    due = []
    for step in range(12):
        if schedule.due(step):
            schedule.begin_period(step)
            due.append(step)
        clock.now += 4
    assert due == [3, 6, 9]


def test_time_alone_does_not_save_the_same_step_again() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=10, clock=clock)
    schedule.begin_period(5)
    clock.now += 60
    assert not schedule.due(5) and schedule.due(6)


def test_a_failed_save_stays_due() -> None:
    schedule = SaveSchedule(every_steps=1, clock=Clock())
    schedule.due(0)
    assert schedule.due(1) and schedule.due(1)


def test_a_failed_save_is_due_again_after_five_seconds_and_at_the_end() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=20, clock=clock)
    schedule.begin_period(1)
    schedule.failed()
    assert not schedule.due(1) and not schedule.due(2)
    assert schedule.due_at_end(1)
    clock.now += 5
    assert schedule.due(1)


def test_a_short_period_is_not_made_longer_by_a_failure() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=0.5, clock=clock)
    schedule.begin_period(1)
    schedule.failed()
    clock.now += 0.5
    assert schedule.due(1)


def test_a_save_that_is_demanded_for_later_is_due_then_and_not_by_the_period() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=20, clock=clock)
    schedule.force(5.0)
    assert not schedule.due(0)
    clock.now += 5
    assert schedule.due(0)


def test_a_clock_that_is_set_back_delays_no_save() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=20, clock=clock)
    schedule.begin_period(0)
    clock.now -= HOUR
    assert schedule.due(1)


@pytest.mark.parametrize(("hour", "elapsed", "due"), [(2, 5, False), (2, 15, True), (4, 2, False), (4, 9, True)])
@covers("emb:K5")
def test_outside_the_daily_window_another_period_holds(hour: int, elapsed: float, due: bool) -> None:
    clock = Clock(DAY + hour * HOUR)
    schedule = SaveSchedule(every_seconds=10, window=DailyWindow(at(1), at(3), seconds_outside=5), clock=clock)
    assert not schedule.due(0)
    clock.now += elapsed
    assert schedule.due(1) is due


@pytest.mark.parametrize(
    ("hour", "inside"), [(22.9, False), (23, True), (0, True), (1.9, True), (2, False), (12, False)]
)
def test_a_daily_window_wraps_around_midnight(hour: float, inside: bool) -> None:
    assert (DAY + hour * HOUR in DailyWindow(at(23), at(2), 1.0)) is inside


@pytest.mark.parametrize(("hour", "inside"), [(0.9, False), (1, True), (2.9, True), (3, False)])
def test_a_daily_window_is_half_open(hour: float, inside: bool) -> None:
    assert (DAY + hour * HOUR in DailyWindow(at(1), at(3), 1.0)) is inside


@pytest.mark.parametrize("settings", [{}, {"every_seconds": 1.0, "every_steps": 1}])
def test_exactly_one_period_is_needed(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one of every_seconds and every_steps"):
        SaveSchedule(**settings)  # type: ignore[arg-type]


def test_a_daily_window_without_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="every_steps is given"):
        SaveSchedule(every_steps=1, window=DailyWindow(at(1), at(3), 1.0))


@covers("task:v52", part="equal hours")
def test_a_window_of_equal_hours_is_the_whole_day() -> None:
    window = DailyWindow(at(3), at(3), seconds_outside=60)
    assert all(DAY + hour * HOUR in window for hour in range(24))
