"""When a version is too old to be called healthy."""

from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus


class Staleness:
    """Compares the age of a version with the most that the operator allows.

    The age is that of the newest event in the version, or, where no event time is known, of its newest delta. A version
    that somebody holds is old on purpose, so it is never called stale; the metrics tell its age all the same.

    Args:
      max_seconds: None: no version is ever stale.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._max_seconds = max_seconds

    def reason(self, status: VersionStatus) -> str | None:
        """Why this version is stale; None when it is not, or is not AVAILABLE."""
        if self._max_seconds is None or status.state is not State.AVAILABLE or status.is_held:
            return None
        fresh = status.freshness
        age = fresh.model_age_ms if fresh.model_age_ms >= 0 else fresh.delta_lag_ms
        if age <= self._max_seconds * 1000:
            return None
        event = f"its newest event is {age / 1000:.0f} s old" if fresh.model_age_ms >= 0 else "its events have no time"
        delta = (
            f"its newest delta {fresh.delta_lag_ms / 1000:.0f} s" if fresh.delta_lag_ms >= 0 else "it takes no deltas"
        )
        return f"STALE: {event}, {delta}; --max-staleness is {self._max_seconds:g} s"
