"""A machine with a stage is one machine; one that holds nothing lets rows pass."""

import pytest

from millrace.pipelines.feed.machine import CLOSE, ROWS, ComposedMachine, pass_through
from millrace.transforms.batch import record_batch
from tests.pipelines.feed.machines import NUMBERED, rows_of


def test_a_composed_machine_is_that_of_its_parts() -> None:
    machine = NUMBERED(None)
    machine.apply(b"R", 1, rows_of(4, 5))
    assert machine.next_close_ms == 0
    assert machine.take_counts() == {"held": 2, "seen": 0}
    again = NUMBERED(machine.to_bytes())
    assert again.apply(CLOSE, 2, None).to_pylist() == [{"value": 4, "number": 0}, {"value": 5, "number": 1}]


def test_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not the state of a machine with a stage"):
        NUMBERED(record_batch.to_bytes(rows_of(1)))
    assert isinstance(NUMBERED(None), ComposedMachine)


def test_rows_leave_a_machine_that_holds_nothing_as_they_come() -> None:
    machine = pass_through(None)
    assert machine.apply(ROWS, 1, rows_of(4)).to_pylist() == [{"value": 4}]
    assert machine.apply(CLOSE, 2, None).num_rows == 0
    assert machine.next_close_ms is None
    assert pass_through(machine.to_bytes()).apply(ROWS, 3, rows_of(5)).to_pylist() == [{"value": 5}]
