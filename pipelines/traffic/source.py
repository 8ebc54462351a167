"""Sources of traffic: they draw impressions with their context, and the actions that will follow them."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from millrace.pipelines.traffic.world import DEVICES, EventWorld

ACTION_NAMES = ("click", "like", "rate")
CLICK, LIKE, RATE = range(3)

_HOUR_MS = 3_600_000
# Shares of the window: actions in time come before 0.9 of it and late ones after 1.2, so that producer and feed agree
# on which is which although their clocks differ.
_IN_TIME = 0.9
_LATE = (1.2, 1.6)
# Interests drift in steps of a second: far below the minutes in which they change.
_DRIFT_STEP_MS = 1000


@dataclass(frozen=True)
class PlannedActions:
    """m actions on rows of a draw; a row is one impression of one item.

    Attributes:
      rows: int64 [m], impression * k + place of the item, both within the draw.
      codes: int64 [m], index in `ACTION_NAMES`.
      delays_ms: int64 [m] after the impression.
      values: float64 [m], such as a rating; NaN for none.
      in_time: bool [m], whether it arrives within the window.
    """

    rows: np.ndarray
    codes: np.ndarray
    delays_ms: np.ndarray
    values: np.ndarray
    in_time: np.ndarray


@dataclass(frozen=True)
class PlannedImpressions:
    """A draw: n impressions of k items each, and the actions that will follow.

    Attributes:
      user_ids: int64 [n].
      item_ids: int64 [n, k].
      contexts: n JSON objects, or "" for none.
      p_true: float64 [n, k], NaN where unknown.
      clicked: bool [n, k], whether somebody acted, whatever became of the action.
      lost, late, duplicated: numbers of actions that are never sent, sent too late, sent twice.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    contexts: list[str]
    p_true: np.ndarray
    clicked: np.ndarray
    actions: PlannedActions
    lost: int = 0
    late: int = 0
    duplicated: int = 0


class TrafficSource(Protocol):
    """Gives impressions on demand."""

    def draw(self, count: int, now_ms: int) -> PlannedImpressions | None:
        """At most `count` (>= 1) impressions that happen at `now_ms`; None when there are no more."""


@dataclass(frozen=True)
class ActionModel:
    """Which actions follow a click, and when.

    Args:
      window_seconds: the window of the feed that will join them.
      click_delay_seconds, like_delay_seconds: means of exponential delays, of a click after its impression and of a
        like after its click.
      like_rate: share of clicks followed by a like.
      lost, late, duplicated: shares of all actions.
    """

    window_seconds: float = 5.0
    click_delay_seconds: float = 0.8
    like_delay_seconds: float = 0.8
    like_rate: float = 0.2
    lost: float = 0.02
    late: float = 0.01
    duplicated: float = 0.01


@dataclass
class GeneratedSource:
    """Draws from a synthetic world, and lets its interests drift with the time of the draws."""

    world: EventWorld
    model: ActionModel = field(default_factory=ActionModel)
    _drifted_ms: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng((self.world.config.seed, 1))

    def draw(self, count: int, now_ms: int) -> PlannedImpressions | None:
        self._drift(now_ms)
        shown = self.world.show(count, now_ms // _HOUR_MS % 24)
        actions, lost, late, duplicated = self._plan(np.flatnonzero(shown.clicked))
        contexts = [
            f'{{"device":"{DEVICES[device]}","hour":{hour}}}'
            for device, hour in zip(shown.devices.tolist(), shown.hours.tolist(), strict=True)
        ]
        return PlannedImpressions(
            shown.user_ids, shown.item_ids, contexts, shown.p_click, shown.clicked, actions, lost, late, duplicated
        )

    def _drift(self, now_ms: int) -> None:
        if not self._drifted_ms:
            self._drifted_ms = now_ms
        elapsed = now_ms - self._drifted_ms
        if elapsed >= _DRIFT_STEP_MS:
            self.world.advance(elapsed / 1000.0)
            self._drifted_ms = now_ms

    def _plan(self, clicked: np.ndarray) -> tuple[PlannedActions, int, int, int]:
        rng, model = self._rng, self.model
        window_ms = model.window_seconds * 1000.0
        liked = rng.random(len(clicked)) < model.like_rate
        click_delay = rng.exponential(model.click_delay_seconds * 1000.0, len(clicked))
        like_delay = click_delay[liked] + rng.exponential(model.like_delay_seconds * 1000.0, int(liked.sum()))
        rows = np.concatenate([clicked, clicked[liked]])
        codes = np.repeat([CLICK, LIKE], [len(clicked), int(liked.sum())])
        delays = np.minimum(np.concatenate([click_delay, like_delay]), _IN_TIME * window_ms)
        late = rng.random(len(rows)) < model.late
        delays[late] = window_ms * rng.uniform(*_LATE, int(late.sum()))
        kept = rng.random(len(rows)) >= model.lost
        again = kept & (rng.random(len(rows)) < model.duplicated)
        lost, repeated = int((~kept).sum()), int(again.sum())
        chosen = np.concatenate([np.flatnonzero(kept), np.flatnonzero(again)])
        delays = delays[chosen]
        delays[len(chosen) - repeated :] += rng.uniform(0.0, (1.0 - _IN_TIME) * 0.5 * window_ms, repeated)
        return (
            PlannedActions(
                rows[chosen],
                codes[chosen],
                delays.astype(np.int64),
                np.full(len(chosen), np.nan),
                ~late[chosen],
            ),
            lost,
            int(late[chosen].sum()),
            repeated,
        )
