"""A monotonic time budget shared by the steps of one operation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Deadline:
    """`seconds` from now on `clock` (seconds, monotonic)."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    def remaining(self) -> float:
        """Seconds left, 0.0 once it has passed."""
        return max(0.0, self._start + self.seconds - self.clock())

    def expired(self) -> bool:
        return self.remaining() <= 0.0


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    what: str,
    poll_seconds: float = 0.05,
) -> None:
    """Returns once `condition()` holds; raises TimeoutError naming `what` after `seconds`."""
    deadline = Deadline(seconds)
    while not condition():
        if deadline.expired():
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(min(poll_seconds, deadline.remaining()))
