"""A synthetic world of users and items whose click probabilities are known, so that the best reachable AUC is too.

The logit of a click is a sum: base rate, a user's and an item's bias, device and hour, and the dot product of the
user's interests with the item's traits. Interests, traits and item biases drift, so that a model that stops learning
gets worse.
"""

from dataclasses import dataclass

import numpy as np

from millrace.runtime.errors import UserError

DEVICES = ("phone", "tablet", "desktop", "tv")
_HOURS = 24

# Standard deviations (SD) of the parts of a logit. Items differ most and are shown often, so that a model learns fast;
# interests are worth learning, but so small that 100 rows per user and item suffice.
_BASE = -1.1  # an item of average appeal is clicked with probability 1 / (1 + exp(1.1)) = 0.25
_ITEM_SD = 1.15
_USER_SD = 0.75
_INTEREST_SD = 0.45
_RANK = 4
_DEVICE_EFFECTS = np.array([0.25, 0.0, -0.2, -0.35])
_HOUR_EFFECT = 0.25
# Share of an item's bias that drifts, and the times after which drifting parts correlate with themselves by 1 / e only:
# so short that a demonstration of some minutes shows the drift.
_TREND_SHARE = 0.25
_TREND_SECONDS = 150.0
_INTEREST_SECONDS = 300.0
# Probability of a rank ~ (rank + offset) ** -exponent: some users and items make much of the traffic, none most of it.
_USER_EXPONENT, _USER_OFFSET = 0.7, 20.0
_ITEM_EXPONENT, _ITEM_OFFSET = 0.9, 20.0


@dataclass(frozen=True)
class WorldConfig:
    """Size and seed of a world.

    Args:
      users, items: ids are 0 to users - 1 and 0 to items - 1.
      items_per_impression: different items shown together, 1..64 (as many as an impression may have).
      seed: of everything that is drawn.
    """

    users: int = 2000
    items: int = 1000
    items_per_impression: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.users < 1:
            raise UserError("--users", self.users, "not positive", "give 1 or more")
        if self.items < self.items_per_impression:
            raise UserError("--items", self.items, "too few", f"give {self.items_per_impression} or more")
        if not 1 <= self.items_per_impression <= 64:
            raise UserError("--items-per-impression", self.items_per_impression, "out of range", "give 1..64")


@dataclass(frozen=True)
class Impressions:
    """n impressions of k items each.

    Attributes:
      user_ids: int64 [n].
      item_ids: int64 [n, k].
      devices: int64 [n], index in `DEVICES`.
      hours: int64 [n], the user's local hour, 0..23.
      p_click: float64 [n, k], the true probabilities.
      clicked: bool [n, k], drawn from them.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    devices: np.ndarray
    hours: np.ndarray
    p_click: np.ndarray
    clicked: np.ndarray


class EventWorld:
    """Draws impressions and clicks; the same seed and calls give the same draws."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._rng = np.random.default_rng(config.seed)
        rng = self._rng
        factor_sd = np.sqrt(_INTEREST_SD / np.sqrt(_RANK))
        self._user_bias = rng.normal(0.0, _USER_SD, config.users)
        self._item_bias = rng.normal(0.0, _ITEM_SD * np.sqrt(1.0 - _TREND_SHARE), config.items)
        self._trend = _Drift(rng, (config.items,), _ITEM_SD * np.sqrt(_TREND_SHARE), _TREND_SECONDS)
        self._interests = _Drift(rng, (config.users, _RANK), factor_sd, _INTEREST_SECONDS)
        self._traits = _Drift(rng, (config.items, _RANK), factor_sd, 4 * _INTEREST_SECONDS)
        self._user_device = rng.integers(0, len(DEVICES), config.users)
        self._user_zone = rng.integers(0, _HOURS, config.users)
        self._user_cdf = _exposure(rng, config.users, _USER_EXPONENT, _USER_OFFSET)
        self._item_cdf = _exposure(rng, config.items, _ITEM_EXPONENT, _ITEM_OFFSET)

    def advance(self, seconds: float) -> None:
        """Lets interests, traits and trends drift for `seconds`."""
        for drift in (self._trend, self._interests, self._traits):
            drift.advance(self._rng, seconds)

    def show(self, count: int, hour: int) -> Impressions:
        """Draws `count` impressions at `hour` (0..23, UTC) and the clicks on them."""
        rng, shown = self._rng, self.config.items_per_impression
        users = np.searchsorted(self._user_cdf, rng.random(count))
        items = self._different_items(count, shown)
        # 80 %: most people use their own device most of the time.
        devices = np.where(rng.random(count) < 0.8, self._user_device[users], rng.integers(0, len(DEVICES), count))
        hours = (hour + self._user_zone[users]) % _HOURS
        affinity = np.einsum("nr,nkr->nk", self._interests.value[users], self._traits.value[items])
        context = _DEVICE_EFFECTS[devices] + _HOUR_EFFECT * np.sin(2 * np.pi * hours / _HOURS)
        first_order = self._user_bias[users] + context
        logits = _BASE + first_order[:, None] + self._item_bias[items] + self._trend.value[items] + affinity
        p_click = 1.0 / (1.0 + np.exp(-logits))
        return Impressions(users, items, devices, hours, p_click, rng.random(p_click.shape) < p_click)

    def _different_items(self, count: int, shown: int) -> np.ndarray:
        # With so few items most draws would hold one twice and be drawn again, without end where all must be shown. So
        # each impression gets the first items of a random permutation; popularity is ignored.
        if self.config.items < 4 * shown:
            return self._rng.permuted(np.tile(np.arange(self.config.items), (count, 1)), axis=1)[:, :shown]
        items = np.searchsorted(self._item_cdf, self._rng.random((count, shown)))
        while True:
            order = np.argsort(items, axis=1, kind="stable")
            ordered = np.take_along_axis(items, order, axis=1)
            row, column = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
            if not len(row):
                return items
            items[row, order[row, column + 1]] = np.searchsorted(self._item_cdf, self._rng.random(len(row)))


class _Drift:
    """An Ornstein-Uhlenbeck process: mean 0, standard deviation `sd`, correlation exp(-t / seconds)."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], sd: float, seconds: float) -> None:
        self._sd, self._seconds = sd, seconds
        self.value = rng.normal(0.0, sd, shape)

    def advance(self, rng: np.random.Generator, seconds: float) -> None:
        kept = np.exp(-seconds / self._seconds)
        self.value = kept * self.value + rng.normal(0.0, self._sd * np.sqrt(1.0 - kept * kept), self.value.shape)


def _exposure(rng: np.random.Generator, count: int, exponent: float, offset: float) -> np.ndarray:
    """float64 [count], cumulative probabilities of being drawn; who has which rank is random."""
    weights = (rng.permutation(count) + offset) ** -exponent
    cumulative = np.cumsum(weights / weights.sum())
    cumulative[-1] = 1.0
    return cumulative
