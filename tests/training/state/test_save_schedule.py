"""When a save is due, by an injected clock."""

import datetime

import pytest

from millrace.training.state.save_schedule import SaveSchedule, Tide
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


@covers("emb:K3")
def test_the_step_it_begins_with_is_not_saved_and_the_last_one_is() -> None:
    schedule = SaveSchedule(every_steps=100, clock=Clock())
    assert not schedule.due(0)
    assert not schedule.due(1)
    assert schedule.due_at_end(1)


@covers("emb:K3")
def test_a_forced_save_is_due_at_once_and_only_once() -> None:
    schedule = SaveSchedule(every_steps=100, clock=Clock())
    schedule.force()
    assert schedule.due(0)
    schedule.saved(0)
    assert not schedule.due(0)


def test_a_step_that_was_just_saved_is_not_saved_again_at_the_end() -> None:
    schedule = SaveSchedule(every_steps=2, clock=Clock())
    assert not schedule.due(7)
    assert schedule.due(9)
    schedule.saved(9)
    assert not schedule.due_at_end(9)


def test_steps_are_counted_from_the_last_save() -> None:
    schedule = SaveSchedule(every_steps=10, clock=Clock())
    assert [step for step in range(40) if schedule.due(step) and schedule.saved(step) is None] == [10, 20, 30]


def test_seconds_are_counted_from_the_last_save() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=10, clock=clock)
    due = []
    for step in range(12):
        if schedule.due(step):
            schedule.saved(step)
            due.append(step)
        clock.now += 4
    assert due == [3, 6, 9]


def test_time_alone_does_not_save_the_same_step_again() -> None:
    clock = Clock()
    schedule = SaveSchedule(every_seconds=10, clock=clock)
    schedule.saved(5)
    clock.now += 60
    assert not schedule.due(5) and schedule.due(6)


def test_a_failed_save_stays_due() -> None:
    schedule = SaveSchedule(every_steps=1, clock=Clock())
    schedule.due(0)
    assert schedule.due(1) and schedule.due(1)


def test_a_switched_off_schedule_saves_only_on_demand_and_at_the_end() -> None:
    schedule = SaveSchedule(every_steps=1, clock=Clock(), enabled=False)
    assert not schedule.due(0) and not schedule.due(5)
    assert schedule.due_at_end(5)
    schedule.force()
    assert schedule.due(5)
    schedule.saved(5)
    schedule.enabled = True
    assert schedule.due(6)


@pytest.mark.parametrize(("hour", "elapsed", "due"), [(2, 5, False), (2, 15, True), (4, 2, False), (4, 9, True)])
@covers("emb:K5")
def test_outside_the_tide_window_another_period_holds(hour: int, elapsed: float, due: bool) -> None:
    clock = Clock(DAY + hour * HOUR)
    schedule = SaveSchedule(every_seconds=10, tide=Tide(at(1), at(3), every_seconds=5), clock=clock)
    assert not schedule.due(0)
    clock.now += elapsed
    assert schedule.due(1) is due


@pytest.mark.parametrize(
    ("hour", "inside"), [(22.9, False), (23, True), (0, True), (1.9, True), (2, False), (12, False)]
)
def test_a_tide_window_wraps_around_midnight(hour: float, inside: bool) -> None:
    assert (DAY + hour * HOUR in Tide(at(23), at(2), 1.0)) is inside


@pytest.mark.parametrize(("hour", "inside"), [(0.9, False), (1, True), (2.9, True), (3, False)])
def test_a_tide_window_is_half_open(hour: float, inside: bool) -> None:
    assert (DAY + hour * HOUR in Tide(at(1), at(3), 1.0)) is inside


@pytest.mark.parametrize("settings", [{}, {"every_seconds": 1.0, "every_steps": 1}])
def test_exactly_one_period_is_needed(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one of every_seconds and every_steps"):
        SaveSchedule(**settings)  # type: ignore[arg-type]


def test_a_tide_without_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="every_steps is given"):
        SaveSchedule(every_steps=1, tide=Tide(at(1), at(3), 1.0))
