"""Saves a model while it is trained: writes on another thread, and tries a save that failed again."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

import tensorflow as tf

from millrace.runtime.kafka_client import UndeliveredError
from millrace.runtime.telemetry import counter, histogram
from millrace.training.state.save_schedule import SaveSchedule

_LOG = logging.getLogger(__name__)
_FAILURES = counter("save_failures", "checkpoints and exports that failed", ("what",))
_SECONDS = histogram(
    "save_seconds",
    "from the beginning of a save to its end, whether it succeeds or not",
    ("what",),
    buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)


class UnfitError(RuntimeError):
    """The model is not to be saved as it is."""


_EXPECTED_ERRORS = (OSError, tf.errors.OpError, UndeliveredError, UnfitError)  # of disk and broker, or of the model
_ATTEMPTS_AT_END = 2  # the second for an error that passes; more would delay the end of the process
_LATER, _NOW = "is tried again in at most 5 s", "is tried again now"
_Cut = TypeVar("_Cut")


class SaveGuard:
    """Is called before and after each save, also one that fails. Both methods do nothing; subclasses override them."""

    def before_save(self, global_step: int) -> None:
        """Called on the trainer's thread before `cut`, at step `global_step`."""

    def after_save(self, global_step: int) -> None:
        """Called when the save has ended: on the writing thread, or on the trainer's if `write` never began."""


class SaveTimer(SaveGuard):
    """Adds the seconds from the beginning to the end of each save to the metric `save_seconds{what}`."""

    def __init__(self, what: str) -> None:
        self._seconds, self._begin = _SECONDS.labels(what), 0.0

    def before_save(self, global_step: int) -> None:
        self._begin = time.monotonic()

    def after_save(self, global_step: int) -> None:
        self._seconds.observe(time.monotonic() - self._begin)


class Saver(Generic[_Cut]):
    """Makes the saves of one kind, such as checkpoints or exports. Call all methods on the trainer's thread.

    A save has two parts. `cut` takes, between two steps, what the next step would change; `write` stores it on `thread`
    while training goes on. A save that fails is counted and logged, and the schedule makes it due again after at most
    five seconds (`SaveSchedule.failed`).

    Args:
      what: name of the kind, in logs and in the metric `save_failures{what}`.
      schedule: says when a save is due.
      cut: returns the argument of `write`. If it raises an error of the disk or of the broker (OSError, OpError,
        UndeliveredError), the save has failed; any other error leaves `start_if_due` or `save_at_end`.
      write: stores a cut. If it raises, whatever the error, the save has failed.
      thread: an executor with one worker; savers that share it write one after the other.
      saved_step: the newest step that is saved, None for none. It is not saved again.
      guards: called around each save, `after_save` in reverse order. What they raise is logged.
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
        """Whether a save is being written. Asking also settles one that has ended: as saved, or as failed and due."""
        if self._running is not None and self._running[1].done():
            self.wait()
        return self._running is not None

    def start_if_due(self, step: int) -> bool:
        """Begins a save of `step` if one is due; to be called only when `saving` is false.

        Returns: whether it began; false too if `step` is saved already or `cut` failed.
        """
        if not self.schedule.due(step):
            return False
        self._start(step)
        return self._running is not None

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the save that is being written, if one is; one that fails is due again, without an error.

        Raises TimeoutError if it takes longer than `timeout` seconds (None: no limit).
        """
        self._settle(timeout, _LATER)

    def _settle(self, timeout: float | None, next_attempt: str) -> None:
        if self._running is None:
            return
        step, future = self._running
        try:
            error = future.exception(timeout)
        except TimeoutError:
            if future.done():  # the save itself ended with this error
                error = future.exception()
            else:
                raise TimeoutError(
                    f"{self.what} of step {step} is not written after {timeout:g} s, and the process ends without it; "
                    f"the newest {self.what} before it stays. A faster disk helps, or room on this one"
                ) from None
        self._running = None
        if error is None:
            self.saved_step = step
        else:
            self._failed(error, next_attempt)

    def save_at_end(self, step: int, timeout: float | None = None) -> None:
        """Saves the last step, `step`, unless it is saved, and waits until it is written.

        Tries twice; a second failure is logged like any other, and the method returns.

        Raises TimeoutError when an attempt, or a save that began before, takes longer than `timeout` seconds.
        """
        self._settle(timeout, _NOW)
        for left in reversed(range(_ATTEMPTS_AT_END)):
            if self.schedule.due_at_end(step):
                next_attempt = _NOW if left else f"is not tried again; the newest {self.what} before it stays"
                self._start(step, next_attempt)
                self._settle(timeout, next_attempt)

    def _start(self, step: int, next_attempt: str = _LATER) -> None:
        self.schedule.begin_period(step)
        if step == self.saved_step:
            return
        for guard in self._guards:
            _call(guard.before_save, step)
        try:
            self._running = step, self._thread.submit(self._finish, step, self._cut())
        except _EXPECTED_ERRORS as error:
            self._failed(error, next_attempt)
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

    def _failed(self, error: BaseException, next_attempt: str) -> None:
        _FAILURES.labels(self.what).inc()
        unexpected = None if isinstance(error, _EXPECTED_ERRORS) else error
        _LOG.warning("%s failed and %s: %s", self.what, next_attempt, error, exc_info=unexpected)
        self.schedule.failed()


def start_in_turn(savers: deque[Saver[Any]], step: int) -> None:
    """Starts the first saver that is due, unless a save is being written; it is then the last of `savers`.

    So a save that takes longer than its period, and is due again whenever it ends, keeps no other one from its turn.
    """
    if any(saver.saving for saver in savers):
        return
    for saver in list(savers):
        if saver.start_if_due(step):
            savers.remove(saver)
            savers.append(saver)
            return


def _call(call: Callable[[int], None], global_step: int) -> None:
    try:
        call(global_step)
    except Exception:  # a guard that fails must not keep the others from being called
        _LOG.exception("a guard of the save of step %d failed", global_step)
