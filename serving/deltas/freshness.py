"""How old a loaded version is: asked for by metrics, health and the control port, computed when they ask."""

import math
import threading
import time
from collections.abc import Callable

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime import telemetry

_LABELS = ("model", "version")
_AGE = telemetry.gauge("model_age_seconds", "Now minus the newest event time in the version; NaN if unknown.", _LABELS)
_LAG = telemetry.gauge(
    "delta_lag_seconds", "Now minus the creation time of the newest delta in the version, heartbeats included.", _LABELS
)
_RESYNC = telemetry.gauge(
    "resync_required", "1 after deltas were lost or refused, until a newer export is loaded.", _LABELS
)


class _Moment:
    """A time of another host, and how long ago it was heard: an age is never below that, whatever the clocks do."""

    def __init__(self, unix_ms: int, monotonic: Callable[[], float]) -> None:
        self._unix_ms, self._monotonic, self._heard = unix_ms, monotonic, monotonic()

    def move(self, unix_ms: int, is_news: bool = False) -> None:
        """Goes on to a later time; `is_news`: an earlier one counts as heard too."""
        if is_news or unix_ms > self._unix_ms:
            self._heard = self._monotonic()
        self._unix_ms = max(self._unix_ms, unix_ms)

    def age_ms(self, now: float) -> int:
        """-1 if unknown; `now` in Unix seconds."""
        if self._unix_ms <= 0:
            return -1
        return max(round(now * 1000) - self._unix_ms, round((self._monotonic() - self._heard) * 1000))


class VersionFreshness:
    """Ages of one loaded version.

    An event that is later than the delta or the cut that has it is of a wrong clock, and counts as of that time.

    Args:
      event_time_ms: newest event time in the export, Unix milliseconds; 0 if unknown.
      cut_at_ms: when the export was cut: it holds all deltas before that; 0 if unknown.
      takes_deltas: False for an export that is served as it is; it has no lag.
      clock: Unix seconds.
      monotonic: seconds.
    """

    def __init__(
        self,
        model: str,
        version: int,
        event_time_ms: int = 0,
        cut_at_ms: int = 0,
        takes_deltas: bool = True,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labels = (model, str(version))
        self._event = _Moment(_not_after(event_time_ms, cut_at_ms), monotonic)
        self._created = _Moment(cut_at_ms, monotonic)
        self._takes_deltas = takes_deltas
        self._clock = clock
        self.resync_required = False

    def took(self, delta: ModelDelta) -> None:
        """Notes a delta, also one without content, that is now in the version."""
        self._event.move(_not_after(delta.event_time_ms, delta.created_at_ms))
        self._created.move(delta.created_at_ms, is_news=True)

    def model_age_ms(self) -> int:
        """-1 if unknown."""
        return self._event.age_ms(self._clock())

    def delta_lag_ms(self) -> int:
        """-1 if unknown, or when the version takes no deltas."""
        return self._created.age_ms(self._clock()) if self._takes_deltas else -1

    def show(self) -> None:
        """Puts this version into the metrics."""
        with _lock:
            _shown.setdefault(self._labels, []).append(self)
            self._measure()

    def hide(self) -> None:
        """Takes it out again, when it is unloaded."""
        with _lock:
            loads = _shown.get(self._labels, [])
            if self not in loads:
                return
            loads.remove(self)
            if loads:
                loads[-1]._measure()
                return
            del _shown[self._labels]
            for gauge in (_AGE, _LAG, _RESYNC):
                gauge.remove(*self._labels)

    def _measure(self) -> None:
        _AGE.labels(*self._labels).set_function(lambda: _seconds(self.model_age_ms()))
        _LAG.labels(*self._labels).set_function(lambda: _seconds(self.delta_lag_ms()))
        _RESYNC.labels(*self._labels).set_function(lambda: float(self.resync_required))


# {(model, version): loads of it}. There are two while one replaces the other; the metrics are those of the newer load.
_shown: dict[tuple[str, str], list[VersionFreshness]] = {}
_lock = threading.Lock()


def _not_after(event_time_ms: int, written_at_ms: int) -> int:
    return min(event_time_ms, written_at_ms) if written_at_ms > 0 else event_time_ms


def _seconds(milliseconds: int) -> float:
    return milliseconds / 1000 if milliseconds >= 0 else math.nan
