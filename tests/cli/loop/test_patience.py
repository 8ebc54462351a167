"""Waiting for work: for ever while it moves, and with a reason when it does not."""

import pytest

from millrace.cli.loop.patience import Patience, StalledError


def test_a_slow_machine_is_waited_for_as_long_as_anything_moves() -> None:
    now = [0.0]
    patience = Patience("the producer", 10.0, "look at its log", lambda: now[0])
    for step in range(1000):
        now[0] += 9.0
        patience.look({"sent": step}, 0)
    now[0] += 9.0
    patience.look({"sent": 999}, 1)


def test_what_stands_still_is_named_with_the_time_and_what_helps() -> None:
    now = [0.0]
    patience = Patience("the producer", 10.0, "look at its log", lambda: now[0])
    patience.look(1)
    now[0] += 10.0
    patience.look(1)
    now[0] += 1.0
    with pytest.raises(StalledError, match="the producer: nothing has moved for 10 s; look at its log"):
        patience.look(1)
