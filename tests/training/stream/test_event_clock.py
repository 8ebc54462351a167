"""The clock of event time: it follows the rows, and no single row moves it."""

import numpy as np

from millrace.training.stream.event_clock import EventClock

HOUR = 3600


def times(seconds: int, rows: int = 100) -> np.ndarray:
    return np.full(rows, seconds * 1000, np.int64)


def test_it_follows_rows_in_order_and_stamps_each_batch_with_its_time() -> None:
    clock = EventClock()
    stamps = [clock.add(times(second, rows=1024)) for second in (1000, 2000, 3000)]
    assert stamps == [1000, 2000, 3000] and clock.now == 3000


def test_one_row_from_the_future_moves_neither_the_clock_nor_a_stamp() -> None:
    clock = EventClock()
    clock.add(times(1000, rows=1024))
    assert clock.add(np.array([1_000_000 * HOUR], np.int64)) == 1000
    assert clock.add(np.concatenate([times(1001), times(99 * HOUR, 20)])) <= 1001
    assert clock.now <= 1001


def test_the_first_row_of_a_process_does_not_move_a_clock_that_was_restored() -> None:
    clock = EventClock(now=5000)
    assert clock.add(times(9000, rows=1)) == 5000 and clock.now == 5000
    clock.add(times(5100, rows=200))
    assert clock.now == 5100


def test_old_rows_of_a_backfill_get_their_own_time_and_the_clock_stays() -> None:
    clock = EventClock(now=90 * 24 * HOUR)
    assert clock.add(times(24 * HOUR, rows=5000)) == 24 * HOUR
    assert clock.now == 90 * 24 * HOUR


def test_rows_of_a_new_model_are_stamped_before_the_clock_knows_anything() -> None:
    clock = EventClock()
    assert clock.add(times(777, rows=3)) == 777
    assert clock.now == 0
    assert clock.add(times(0, rows=0)) == 0


def test_a_time_before_1970_is_no_stamp() -> None:
    assert EventClock().add(times(-5)) == 0
