"""When to save: every so many seconds or steps, on demand, and at the end."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tide:
    """A daily window [start, end) in UTC, over midnight when `end` is before `start`.

    Args:
      every_seconds: the period outside the window.
    """

    start: datetime.time
    end: datetime.time
    every_seconds: float

    def __contains__(self, now: float) -> bool:
        """Whether `now`, in Unix seconds, lies in the window."""
        clock = datetime.datetime.fromtimestamp(now, datetime.UTC).time()
        if self.start <= self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


@dataclass
class SaveSchedule:
    """To be asked between steps. The step it is first asked at counts as saved: a trainer begins with what it restored.

    Args:
      every_seconds, every_steps: the period; exactly one of them.
      tide: with `every_seconds`, a daily window outside of which another period holds.
      enabled: False: periodic saves are off; forced ones and the one at the end are not.
      clock: Unix seconds.
    """

    every_seconds: float | None = None
    every_steps: int | None = None
    tide: Tide | None = None
    enabled: bool = True
    clock: Callable[[], float] = time.time
    _forced: bool = field(default=False, init=False)
    _saved_step: int | None = field(default=None, init=False)
    _saved_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if (self.every_seconds is None) == (self.every_steps is None):
            given = f"{self.every_seconds} and {self.every_steps}"
            raise ValueError(f"exactly one of every_seconds and every_steps is needed, not {given}")
        if self.tide is not None and self.every_seconds is None:
            raise ValueError("a tide changes every_seconds, but every_steps is given")

    def due(self, step: int) -> bool:
        """Whether to save at `step`; `saved` is to be called when that is done."""
        if self._saved_step is None:
            self._begin_period(step)
        return self._forced or (self.enabled and step != self._saved_step and self._period_is_over(step))

    def due_at_end(self, step: int) -> bool:
        """Whether the last step is still to be saved."""
        return self._forced or step != self._saved_step

    def force(self) -> None:
        """Makes a save due at once."""
        self._forced = True

    def saved(self, step: int) -> None:
        """Begins the next period at `step`."""
        self._begin_period(step)
        self._forced = False

    def _begin_period(self, step: int) -> None:
        self._saved_step, self._saved_at = step, self.clock()

    def _period_is_over(self, step: int) -> bool:
        if self.every_seconds is None:
            return step >= (self._saved_step or 0) + (self.every_steps or 0)
        now = self.clock()
        seconds = self.every_seconds if self.tide is None or now in self.tide else self.tide.every_seconds
        return now >= self._saved_at + seconds
