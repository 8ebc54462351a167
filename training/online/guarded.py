"""Keeps a model that its guard objects to from being published and from learning on, until somebody lets it go on."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from millrace.runtime.kafka_client import UndeliveredError
from millrace.runtime.telemetry import Condition, gauge
from millrace.training.online.guard import Alarm, Judge
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.state.guard_file import (
    GuardState,
    read_guard_state,
    remove_guard_state,
    write_guard_state,
)
from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.position import Position
from millrace.training.task import Task

_LOG = logging.getLogger(__name__)
_HELD = gauge("guard_alarm", "1 while the guard keeps the model from being published")
_RETRY_SECONDS = 2.0  # between attempts to announce a hold that no broker acknowledged
_REMEDY = (
    "look at the newest rows of the train topic, mend what sends them, stop this trainer and start it with "
    "--resume-from-good"
)


class Holds(Protocol):
    """What announces that servers are to be held, and that they are to follow again; it may raise UndeliveredError."""

    def rollback(self, version: int, base: Path, as_of_ms: int, reason: str) -> None: ...

    def release(self, reason: str) -> None: ...


class GuardedModel:
    """Asks the judge after each batch, and holds everything when it objects.

    States: all is well; alarm (nothing is learned or published, servers are held); resumed (learned, not published,
    until the judge has seen enough); released (published again, the file stays until the rows in question are behind).

    Args:
      base: folder of the exports.
      versions: {number of an export that is announced: time of its cut, Unix milliseconds}.
      state: the alarm in force, see `begin_guarded`.
      past: what the judge knew at the checkpoint that training goes on from, and `position` the one in it.
      condition: is told what is wrong.
      clock_ms: Unix milliseconds.
    """

    def __init__(
        self,
        task: Task,
        model_dir: Path,
        base: Path,
        versions: Mapping[int, int],
        holds: Holds,
        state: GuardState | None,
        past: Mapping[str, Any],
        position: Position,
        condition: Condition,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._heads, self._guard = tuple(head.name for head in task.heads), task.guard
        self._judge = Judge(self._guard, self._heads)
        self._model_dir, self._base, self._holds, self._condition = model_dir, base, holds, condition
        self._clock_ms = clock_ms
        self._lock = threading.RLock()  # exports and checkpoints are written on a thread of their own
        self._begun_ms = clock_ms()
        # Without those that the alarm in force questions: nobody is to be held at one of them later.
        good_ms = state.suspect_ms if state is not None else self._begun_ms
        self._cuts = {version: cut_ms for version, cut_ms in versions.items() if cut_ms < good_ms}
        # {version: Unix milliseconds}: deltas that an alarm found wrong are later than this, also after it is settled.
        self._good_until = {} if state is None else self._bounded({}, state.as_of_ms)
        self._topic_ids = dict(position.topic_ids)
        self._to_announce: str = ""
        self._retry_at = 0.0
        self._judge.remember(past, clock_ms(), position.offsets)
        self.state = state
        if self.state is not None and not self.state.resumed:
            self._to_announce = "rollback"
        self._show()

    @property
    def may_learn(self) -> bool:
        return self.state is None or self.state.resumed

    @property
    def may_publish(self) -> bool:
        return self.state is None or self.state.released or (self.state.resumed and self._judge.is_content)

    def may_announce(self, cut_ms: int) -> bool:
        """Whether a version that was cut at this time, Unix milliseconds, may reach servers."""
        with self._lock:
            return self.may_publish or (self.state is not None and cut_ms < self.state.suspect_ms)

    @property
    def trusted_ms(self) -> int:
        """Unix milliseconds; what was learned before no alarm can question any more. 0 without a guard."""
        return max(self._judge.trusted_ms, self._begun_ms) if self._guard.enabled else 0

    @property
    def trusted_version(self) -> int:
        """The newest version on disk that no alarm can question any more; 0 without one."""
        with self._lock:
            return self._newest_before(self.trusted_ms)

    def learned(
        self, ticket: Ticket, logits: np.ndarray, finite: np.ndarray, gradient_rms: np.ndarray, position: Position
    ) -> None:
        """Judges a batch; the arguments are those of `Judge.add`, `position` is the one before the batch."""
        with self._lock:
            self._notice_topic(ticket)
            if self.state is not None:
                self._judge.drop_cohorts()  # the rows in question are passed over
            self._judge.add(
                ticket.labels, logits, ticket.sample_rates, ticket.event_times_ms, finite, gradient_rms,
                self._clock_ms(), position.offsets,
            )  # fmt: skip
            alarm = self._judge.alarm
            if alarm is not None and (self.state is None or self.state.resumed):
                ends = {block.partition: block.offset + 1 for block in ticket.blocks}
                self._hold(replace(alarm, offsets={**alarm.offsets, **ends}))

    def past(self) -> dict[str, Any]:
        """What the judge knows, for a checkpoint."""
        return self._judge.past()

    def exported(self, version: int, cut_ms: int) -> None:
        """Notes an announced version. After the first one since an alarm was settled, servers follow again."""
        with self._lock:
            self._cuts[version] = cut_ms
            if self.state is not None and self.may_publish and not self.state.released:
                self._to_announce = "release"
                self._set(replace(self.state, released=True))
                _LOG.info("the guard is content again: version %d is published, and servers follow it", version)

    def saved(self, position: Position) -> None:
        """Notes a durable checkpoint at `position`; forgets an alarm that is settled and behind."""
        with self._lock:
            state = self.state
            if state is None or not state.released or self._to_announce:
                return
            if state.is_behind(position.offsets, position.topic_ids):
                remove_guard_state(self._model_dir)
                self.state = None
                self._show()

    def poll(self) -> None:
        """Announces a hold or its end, again and again until a broker has it."""
        with self._lock:
            if not self._to_announce or self.state is None or time.monotonic() < self._retry_at:
                return
            try:
                if self._to_announce == "release":
                    self._holds.release(f"the guard is content again after: {self.state.reason}")
                elif self.state.version:
                    self._holds.rollback(self.state.version, self._base, self.state.as_of_ms, self.state.reason)
                self._to_announce = ""
            except UndeliveredError as error:
                _LOG.warning("the guard's %s is not announced yet: %s", self._to_announce, error)
                self._retry_at = time.monotonic() + _RETRY_SECONDS

    def _hold(self, alarm: Alarm) -> None:
        version = self._newest_before(alarm.suspect_ms) or min(self._cuts, default=0)
        suspect_offsets = alarm.suspect_offsets
        before = self.state  # a second alarm, before the rows of the first are behind
        if before is not None:
            suspect_offsets = suspect_offsets | {
                p: min(o, suspect_offsets.get(p, o))
                for p, o in before.suspect_offsets.items()
                if before.topic_ids.get(p) == self._topic_ids.get(p)
            }
            version = version if before.released else before.version
        as_of_ms = min(alarm.suspect_ms, self._good_until.get(version, alarm.suspect_ms))
        self._good_until = self._bounded(self._good_until, alarm.suspect_ms)
        self._to_announce = "rollback"
        topic_ids = {partition: self._topic_ids.get(partition, "") for partition in alarm.offsets}
        self._set(
            GuardState(
                alarm.reason, alarm.suspect_ms, version, as_of_ms, suspect_offsets, alarm.offsets, topic_ids
            )
        )  # fmt: skip
        _LOG.error(
            "ALARM: %s. Nothing is published and nothing learned any more; servers are held at version %d with what "
            "was learned before %d (Unix ms). To go on, %s", alarm.reason, version, as_of_ms, _REMEDY,
        )  # fmt: skip
        self.poll()

    def _bounded(self, good_until: Mapping[int, int], suspect_ms: int) -> dict[int, int]:
        """`good_until` after what was learned since `suspect_ms` has become suspicious."""
        return {
            version: min(good_until.get(version, suspect_ms), suspect_ms)
            for version, cut_ms in self._cuts.items()
            if version in good_until or cut_ms < suspect_ms
        }

    def _notice_topic(self, ticket: Ticket) -> None:
        """Forgets offsets of an incarnation of the train topic that is gone."""
        for block in ticket.blocks:
            known = self._topic_ids.setdefault(block.partition, block.topic_id)
            if known != block.topic_id:
                self._judge.forget_offsets(block.partition)
                self._topic_ids[block.partition] = block.topic_id

    def _newest_before(self, time_ms: int) -> int:
        """The newest version on disk that was cut before; 0 without one."""
        before = [version for version, cut_ms in self._cuts.items() if cut_ms < time_ms]
        return max((version for version in before if (self._base / str(version)).is_dir()), default=0)

    def _set(self, state: GuardState) -> None:
        write_guard_state(self._model_dir, state)
        self.state = state
        self._show()

    def _show(self) -> None:
        held = self.state is not None and not self.state.released
        _HELD.set(float(held))
        self._condition.problem = None
        if self.state is not None and held:
            going_on = (
                "training goes on and is not published yet" if self.state.resumed else f"training stands: {_REMEDY}"
            )
            self._condition.problem = f"the guard found: {self.state.reason}; {going_on}"


def begin_guarded(
    model_dir: Path, checkpoints: Checkpoints, good_since: Callable[[], tuple[dict[int, int], str]] | None
) -> GuardState | None:
    """The alarm in force when a trainer starts, before it restores a checkpoint.

    Args:
      good_since: lets training go on after the alarm; returns the place in the train topic, and the topic's id, from
        which on rows are good again. None: training stands.

    Raises:
      UserError: no checkpoint is from before what went wrong.
    """
    state = read_guard_state(model_dir)
    if good_since is None:
        return state
    if state is None:
        _LOG.warning("--resume-from-good does nothing: the guard has raised no alarm in %s", model_dir)
    elif not state.resumed:
        state = state.go_on(*good_since())
        for folder in checkpoints.set_aside(state.suspect_ms):
            _LOG.info("%s is set aside: it was written after the model began to go wrong", folder)
        _LOG.warning(
            "training goes on after the alarm '%s': of the train topic, the offsets from %s up to %s are passed over",
            state.reason, state.suspect_offsets, state.offsets,
        )  # fmt: skip
        write_guard_state(model_dir, state)
    return state
