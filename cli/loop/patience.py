"""Waits for work: as long as something moves, a machine that is slow is no failure."""

import time
from collections.abc import Callable

__all__ = ["Patience", "StalledError"]


class StalledError(RuntimeError):
    """What had to move has stood still for too long; the message says what, for how long and what helps."""


class Patience:
    """Watches figures that move while work is done.

    Args:
      what: what is waited for, as in "the end of the producer".
      seconds: how long nothing may move.
      remedy: what helps, one clause.
      clock: seconds, monotonic.
    """

    def __init__(self, what: str, seconds: float, remedy: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._seconds, self._remedy, self._clock = what, seconds, remedy, clock
        self._last: tuple[object, ...] | None = None
        self._since = clock()

    def look(self, *figures: object) -> None:
        """Takes the figures as they are now.

        Raises: StalledError when they have been the same for `seconds`.
        """
        now = self._clock()
        if figures != self._last:
            self._last, self._since = figures, now
        elif now - self._since > self._seconds:
            raise StalledError(f"{self._what}: nothing has moved for {self._seconds:g} s; {self._remedy}")
