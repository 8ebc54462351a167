"""The clock of a feed shard: it goes on evenly whatever happens to the clock of the machine.

A window lasts as long as it should. A clock that steps an hour ahead would otherwise close all windows at once, and
make negatives of rows whose actions are about to come; once it has stepped back, no window would close for an hour.
"""

import logging
import threading
import time
from collections.abc import Callable

from millrace.runtime import telemetry

_LOG = logging.getLogger(__name__)
# Clocks that are kept right by small corrections are never this far off between two looks.
_JUMP_SECONDS = 1.0

_JUMPS = telemetry.counter("feed_clock_jumps", "Times that the clock of the machine stepped.")
_JUMP = telemetry.gauge("feed_clock_jump_seconds", "How far it stepped the last time; negative: back.")

Clock = Callable[[], float]


class ShardClock:
    """Processing time of a feed shard: where it began, plus the time that has passed since on a monotonic clock.

    Args:
      start_ms: where it begins, Unix milliseconds; of a shard that is restored, where it was saved. The time between
        counts for nothing: actions of that time are still to be read.
      monotonic: seconds.
    """

    def __init__(self, start_ms: int, monotonic: Clock = time.monotonic) -> None:
        self._start_ms, self._monotonic, self._started = start_ms, monotonic, monotonic()

    def now_ms(self) -> int:
        """The time, in ms since the epoch."""
        return self._start_ms + int((self._monotonic() - self._started) * 1000)


class ClockWatch:
    """Notices steps of the machine's clock, by comparing it with a monotonic one; logs and counts each.

    Args:
      wall: seconds since the epoch.
      monotonic: seconds.
    """

    def __init__(self, wall: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self._wall, self._monotonic, self._lock = wall, monotonic, threading.Lock()
        self._ahead = wall() - monotonic()
        self.steps = 0

    def look(self) -> None:
        """Compares the clocks now."""
        with self._lock:
            ahead = self._wall() - self._monotonic()
            jump, self._ahead = ahead - self._ahead, ahead
            if abs(jump) < _JUMP_SECONDS:
                return
            self.steps += 1
        _JUMPS.inc()
        _JUMP.set(jump)
        _LOG.warning(
            "the clock of this machine stepped by %+.1f s; windows of the join are not affected, because they are "
            "measured by another clock, but time stamps of events may be refused while it is wrong",
            jump,
        )
