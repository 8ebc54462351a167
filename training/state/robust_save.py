"""A save that is tried twice, between guards that hear of its end whatever happens."""

import logging
from collections.abc import Callable, Sequence

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 2


class SaveListener:
    """Derive and override what is needed."""

    def before_save(self, global_step: int) -> None:
        """Called before a save begins."""

    def after_save(self, global_step: int) -> None:
        """Called after it."""


def save_robustly(
    save: Callable[[], None],
    global_step: int,
    errors: tuple[type[Exception], ...],
    listeners: Sequence[SaveListener] = (),
    guards: Sequence[SaveListener] = (),
    ignore_save_errors: bool = False,
) -> bool:
    """Saves, and once more if that fails; returns whether it was saved.

    Args:
      errors: what is worth another attempt; anything else is raised at once.
      listeners: part of each attempt, `after_save` in reverse order; what one of them raises fails the attempt.
      guards: called once around all attempts, `after_save` in reverse order; what one of them raises is logged.
      ignore_save_errors: return False instead of raising the last attempt's error.
    """
    for guard in guards:
        _call_guard(guard.before_save, global_step)
    try:
        return _attempt(save, global_step, errors, listeners, ignore_save_errors)
    finally:
        for guard in reversed(guards):
            _call_guard(guard.after_save, global_step)


def _attempt(
    save: Callable[[], None],
    global_step: int,
    errors: tuple[type[Exception], ...],
    listeners: Sequence[SaveListener],
    ignore_save_errors: bool,
) -> bool:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for listener in listeners:
                listener.before_save(global_step)
            save()
            for listener in reversed(listeners):
                listener.after_save(global_step)
            return True
        except errors as error:
            _LOG.warning("attempt %d of %d to save step %d failed: %s", attempt, _ATTEMPTS, global_step, error)
            if attempt == _ATTEMPTS and not ignore_save_errors:
                raise
    return False


def _call_guard(call: Callable[[int], None], global_step: int) -> None:
    try:
        call(global_step)
    except Exception:  # a guard that fails must not keep the others from being called
        _LOG.exception("guard of the save of step %d failed", global_step)
