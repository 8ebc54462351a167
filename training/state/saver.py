"""Saves of a model that goes on training: on a thread of their own, and again when they fail."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

import tensorflow as tf

from millrace.runtime.kafka_client import UndeliveredError
from millrace.runtime.telemetry import counter, histogram
from millrace.training.state.save_schedule import SaveSchedule

_LOG = logging.getLogger(__name__)
_FAILURES = counter("save_failures", "checkpoints and exports that failed and will be tried again", ("what",))
_SECONDS = histogram(
    "save_seconds",
    "from the beginning of a save to its end, whether it succeeds or not",
    ("what",),
    buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
_EXPECTED_ERRORS = (OSError, tf.errors.OpError, UndeliveredError)  # of the disk or of the broker
_ATTEMPTS_AT_END = 2
_Cut = TypeVar("_Cut")


class SaveGuard:
    """Hears of the beginning and of the end of each save, also of one that fails. Override what is needed."""

    def before_save(self, global_step: int) -> None:
        """Called on the trainer's thread before the cut of step `global_step`."""

    def after_save(self, global_step: int) -> None:
        """Called when the save has ended, on the thread that ended it."""


class SaveTimer(SaveGuard):
    """Observes the metric `save_seconds{what}`."""

    def __init__(self, what: str) -> None:
        self._seconds, self._begin = _SECONDS.labels(what), 0.0

    def before_save(self, global_step: int) -> None:
        self._begin = time.monotonic()

    def after_save(self, global_step: int) -> None:
        self._seconds.observe(time.monotonic() - self._begin)


class Saver(Generic[_Cut]):
    """The saves of one kind, such as checkpoints or exports. All methods belong to the trainer's thread.

    A save has two parts. `cut` holds what the next step would change, on the trainer's thread between two steps;
    `write` makes that durable on `thread` while steps go on. A save that fails is counted, logged and due again soon:
    training goes on.

    Args:
      what: the kind, in logs and in metric `save_failures{what}`.
      schedule: when a save is due.
      cut: returns what `write` takes. Errors other than those of disk and broker are raised by `start_if_due`.
      thread: one worker, so that of several savers one writes at a time.
      saved_step: the step that is saved already, if one is; no step is saved twice.
      guards: their `after_save` is called in reverse order, whatever happens; what they raise is logged.
    """

    def __init__(
        self,
        what: str,
        schedule: SaveSchedule,
        cut: Callable[[], _Cut],
        write: Callable[[_Cut], None],
        thread: Executor,
        saved_step: int | None = None,
        guards: Sequence[SaveGuard] = (),
    ) -> None:
        self.what, self.schedule, self.saved_step = what, schedule, saved_step
        self._cut, self._write, self._thread, self._guards = cut, write, thread, guards
        self._running: tuple[int, Future[None]] | None = None

    @property
    def saving(self) -> bool:
        """Whether a save is being written; takes note of one that has ended."""
        if self._running is not None and self._running[1].done():
            self.wait()
        return self._running is not None

    def start_if_due(self, step: int) -> bool:
        """Begins the save of `step` if one is due; returns whether one is being written. Not while `saving`."""
        if not self.schedule.due(step):
            return False
        self._start(step)
        return self._running is not None

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end of the save that is being written. Raises TimeoutError after `timeout` seconds."""
        if self._running is None:
            return
        step, future = self._running
        error = future.exception(timeout)
        self._running = None
        if error is None:
            self.saved_step = step
        else:
            self._failed(error)

    def save_at_end(self, step: int, timeout: float | None = None) -> None:
        """Saves `step`, the last one, unless it is saved, and waits for it. Gives up after a second failure.

        Raises TimeoutError when one attempt takes longer than `timeout` seconds.
        """
        self.wait(timeout)
        for _ in range(_ATTEMPTS_AT_END):
            if self.schedule.due_at_end(step):
                self._start(step)
                self.wait(timeout)

    def _start(self, step: int) -> None:
        self.schedule.begin_period(step)
        if step == self.saved_step:
            return
        for guard in self._guards:
            _call(guard.before_save, step)
        try:
            self._running = step, self._thread.submit(self._finish, step, self._cut())
        except _EXPECTED_ERRORS as error:
            self._failed(error)
        finally:
            if self._running is None:
                self._tell_end(step)

    def _finish(self, step: int, cut: _Cut) -> None:
        try:
            self._write(cut)
        finally:
            self._tell_end(step)

    def _tell_end(self, step: int) -> None:
        for guard in reversed(self._guards):
            _call(guard.after_save, step)

    def _failed(self, error: BaseException) -> None:
        _FAILURES.labels(self.what).inc()
        unexpected = None if isinstance(error, _EXPECTED_ERRORS) else error
        _LOG.warning("%s failed, will be tried again: %s", self.what, error, exc_info=unexpected)
        self.schedule.failed()


def _call(call: Callable[[int], None], global_step: int) -> None:
    try:
        call(global_step)
    except Exception:  # a guard that fails must not keep the others from being called
        _LOG.exception("a guard of the save of step %d failed", global_step)
