"""Keeps one loaded version fresh: reads the model's deltas from Kafka on a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from millrace.runtime import telemetry
from millrace.runtime.topic_reader import Record
from millrace.serving.deltas.delta_applier import DeltaApplier
from millrace.serving.deltas.delta_order import DeltaError
from millrace.serving.deltas.freshness import VersionFreshness

_LOG = logging.getLogger(__name__)
_MAX_RECORDS = 200
_POLL_SECONDS = 0.02
_RETRY_SECONDS = 1.0
# A replaced trainer that still runs sends a delta each second, a replayed topic thousands: one line tells it.
_LOG_EVERY_SECONDS = 10.0
# A broker that is up answers a new reader within one or two seconds. Without one, a version is served as it is.
_BROKER_SECONDS = 5.0

_APPLIED = telemetry.counter("deltas_applied", "Deltas applied, heartbeats too, counted once per loaded version.")
_IGNORED = telemetry.counter("deltas_ignored", "Deltas that were already inside the export or applied before.")
_REFUSED = telemetry.counter(
    "deltas_refused",
    "Deltas not applied: malformed, of another model, lineage or old epoch, or not_written.",
    ("reason",),
)


class DeltaSource(Protocol):
    """`millrace.serving.deltas.delta_topic.DeltaTopic`, or a fake."""

    @property
    def positions(self) -> dict[int, int]: ...

    @property
    def heard(self) -> bool: ...

    def read(self, max_records: int = ..., seconds: float = ...) -> list[Record]: ...

    def reached_end(self) -> bool: ...

    def began_anew(self) -> bool: ...

    def close(self) -> None: ...


class DeltaConsumer:
    """Applies deltas until it is closed.

    Args:
      name: model and version, for logs.
      freshness: is told of each delta.
      open_source: opens the topic at {partition: offset}; called on the consumer's thread.
      start: the export's offsets.
      as_of_ms: newest creation time of a delta that is applied; None for all.
    """

    def __init__(
        self,
        name: str,
        applier: DeltaApplier,
        freshness: VersionFreshness,
        open_source: Callable[[Mapping[int, int]], DeltaSource],
        start: Mapping[int, int],
        as_of_ms: int | None = None,
    ) -> None:
        self._name = name
        self._applier = applier
        self._freshness = freshness
        self._open_source = open_source
        self._start = dict(start)
        self._as_of_ms = as_of_ms
        self._newest_ms = 0
        self._is_closed = self._heard = False
        self._quiet_until: dict[str, float] = {}
        # Guards the hold and what was applied under it, and wakes the thread from a hold.
        self._changed = threading.Condition()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"deltas-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_caught_up(self, seconds: float) -> bool:
        """Whether, within `seconds`, all deltas that the topic held at the start, or up to the hold, were applied.

        Gives up after 5 seconds in which no broker answers.
        """
        first = min(seconds, _BROKER_SECONDS)
        return self._caught_up.wait(first) or (self._heard and self._caught_up.wait(seconds - first))

    def hold(self, as_of_ms: int | None) -> bool:
        """Applies deltas up to this creation time from now on, all for None; False when later ones were applied."""
        with self._changed:
            if as_of_ms is not None and self._newest_ms > as_of_ms:
                return False
            self._as_of_ms = as_of_ms
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Stops applying; returns when the thread has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        start = self._start
        while not self._is_closed:
            try:
                start = self._follow(start)
            except Exception:  # if this thread ended, stale scores would be served and nobody would notice
                _LOG.exception("deltas of %s: starting over from the export's offsets", self._name)
                start = self._start
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, _RETRY_SECONDS)

    def _follow(self, start: Mapping[int, int]) -> dict[int, int]:
        """Reads until the hold changes, the topic begins anew or `close`; returns where to read on."""
        held: dict[int, int] = {}  # {partition: offset of the first delta after the hold}
        as_of_ms = self._as_of_ms
        source = self._open_source(start)
        try:
            while not self._is_closed and self._as_of_ms == as_of_ms and len(held) < len(start):
                records = source.read(_MAX_RECORDS, _POLL_SECONDS)
                if source.began_anew():
                    self._note_new_topic()
                    return dict.fromkeys(start, 0)
                self._heard = self._heard or source.heard
                self._take(records, held)
                if not self._caught_up.is_set() and source.reached_end():
                    self._caught_up.set()
            positions = source.positions | held
        finally:
            source.close()
        if len(held) == len(start):
            # The source is closed while nothing of it is wanted: it would fetch what lies after the hold.
            self._caught_up.set()
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._as_of_ms != as_of_ms)
        return positions

    def _note_new_topic(self) -> None:
        self._applier.note_loss(
            f"the delta topic of {self._name} was made anew or cut off; it is read from its beginning"
        )
        self._freshness.resync_required = True

    def _take(self, records: list[Record], held: dict[int, int]) -> None:
        for record in records:
            if record.partition not in held and not self._apply(record):
                held[record.partition] = record.offset
        self._applier.flush()

    def _apply(self, record: Record) -> bool:
        """Whether the record lies within the hold; then it was applied, ignored or refused."""
        try:
            delta = self._applier.check(record.value or b"")
            with self._changed:
                if self._as_of_ms is not None and delta.created_at_ms > self._as_of_ms:
                    return False
                self._newest_ms = max(self._newest_ms, delta.created_at_ms)
                (_APPLIED if self._applier.apply(delta) else _IGNORED).inc()
            self._freshness.took(delta)
        except DeltaError as error:
            self._note_refusal(record, error)
        self._freshness.resync_required = self._applier.resync_required
        return True

    def _note_refusal(self, record: Record, error: DeltaError) -> None:
        _REFUSED.labels(error.reason).inc()
        now = time.monotonic()
        if now >= self._quiet_until.get(error.reason, 0.0):
            self._quiet_until[error.reason] = now + _LOG_EVERY_SECONDS
            place = f"partition {record.partition} offset {record.offset}"
            _LOG.warning("delta at %s not applied to %s (%s): %s", place, self._name, error.reason, error)
