"""When a save is due: every so many seconds or steps, on demand, again after a failure, and at the end."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_RETRY_SECONDS = 5.0  # after a failure: long enough for a full disk not to fill the log, short against a usual period


@dataclass(frozen=True)
class DailyWindow:
    """The hours [start, end) of each day in UTC, over midnight when `end` is before `start`; all when both are equal.

    Args:
      seconds_outside: the period between saves outside of these hours.
    """

    start: datetime.time
    end: datetime.time
    seconds_outside: float

    def __contains__(self, now: float) -> bool:
        """Whether `now`, in Unix seconds, lies in the window."""
        clock = datetime.datetime.fromtimestamp(now, datetime.UTC).time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


@dataclass
class SaveSchedule:
    """When to save. It is asked between steps; the first period begins when it is asked first.

    The step of the first question counts as saved: a trainer begins with what it restored.

    Args:
      every_seconds, every_steps: the period between the beginnings of two saves; exactly one of them.
      window: daily hours in which `every_seconds` holds; outside of them the window's `seconds_outside` does.
      allowed: a save that is due waits until this is true.
      clock: Unix seconds.

    Raises:
      ValueError: both periods or none, or a window without `every_seconds`.
    """

    every_seconds: float | None = None
    every_steps: int | None = None
    window: DailyWindow | None = None
    allowed: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.time
    _step: int | None = field(default=None, init=False)
    _begun_at: float = field(default=0.0, init=False)
    _demand: tuple[float, float] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if (self.every_seconds is None) == (self.every_steps is None):
            given = f"{self.every_seconds} and {self.every_steps}"
            raise ValueError(f"exactly one of every_seconds and every_steps is needed, not {given}")
        if self.window is not None and self.every_seconds is None:
            raise ValueError("a daily window changes every_seconds, but every_steps is given")

    def due(self, step: int) -> bool:
        """Whether to save at `step`; if so, `begin_period` is to be called."""
        if self._step is None:
            self._step, self._begun_at = step, self.clock()
        if self._demand is not None:
            return self._is_over(*self._demand) and self.allowed()
        return step != self._step and self._period_is_over(step) and self.allowed()

    def due_at_end(self, step: int) -> bool:
        """Whether the last step is still to be saved."""
        return self._demand is not None or step != self._step

    def force(self, seconds: float = 0.0) -> None:
        """Makes a save due in so many seconds, whatever the period says and even at a step that was saved."""
        self._demand = self.clock(), seconds

    def failed(self) -> None:
        """Makes the save that failed due again: in five seconds, or in a period if that is shorter."""
        self.force(min(_RETRY_SECONDS, self.every_seconds or _RETRY_SECONDS))

    def begin_period(self, step: int) -> None:
        """A save of `step` begins: the period until the next one counts from now."""
        self._step, self._begun_at, self._demand = step, self.clock(), None

    def _period_is_over(self, step: int) -> bool:
        if self.every_seconds is None:
            return step >= (self._step or 0) + (self.every_steps or 0)
        seconds = self.every_seconds
        if self.window is not None and self.clock() not in self.window:
            seconds = self.window.seconds_outside
        return self._is_over(self._begun_at, seconds)

    def _is_over(self, since: float, seconds: float) -> bool:
        """Whether `seconds` have passed; they count as passed when the clock was set back in between."""
        return not 0 <= self.clock() - since < seconds
