"""The time up to which a trainer has learned, as the rows tell it: what entries are stamped with and evicted by."""

import numpy as np

# The median of so many rows moves ahead only when half of them do: a second of rows at usual rates, and more than one
# producer with a wrong clock sends among those of others.
_WINDOW_ROWS = 1024
_LEAST_ROWS = 64  # fewer may be those of one such producer: the time stays until there are so many


class EventClock:
    """Event time of the newest rows, in Unix seconds; it never goes back.

    It is the highest median so far of the event times of 1,024 successive rows. The newest time would be that of one
    row with a wrong clock: with it, all entries of a table that expires would be old at once. The wall clock would make
    ids young that a backfill of old rows has touched.

    Args:
      now: where it stands, 0 for a model that has learned nothing.

    Attributes:
      now: Unix seconds; 0 while nothing is known.
    """

    def __init__(self, now: int = 0) -> None:
        self.now = now
        self._times = np.zeros(_WINDOW_ROWS, np.int64)
        self._rows = 0

    def add(self, times_ms: np.ndarray) -> int:
        """Takes the event times of a batch, int64 [rows] in Unix milliseconds, in the order of training.

        Returns: Unix seconds to stamp on what the batch updates: the median of the batch, and no later than `now`.
        """
        if not len(times_ms):
            return self.now
        newest = times_ms[-_WINDOW_ROWS:]
        self._times[(self._rows + np.arange(len(newest))) % _WINDOW_ROWS] = newest
        self._rows += len(newest)
        if self._rows >= _LEAST_ROWS:
            self.now = max(self.now, _median_seconds(self._times[: self._rows]))
        stamp = _median_seconds(times_ms)
        return min(stamp, self.now) if self.now else stamp


def _median_seconds(times_ms: np.ndarray) -> int:
    middle = (len(times_ms) - 1) // 2  # of an even number the lower one
    return max(0, int(np.partition(times_ms, middle)[middle]) // 1000)
