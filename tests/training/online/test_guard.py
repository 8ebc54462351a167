"""The guard: finds flipped labels, shuffled ids and wrong weights within seconds, and leaves ordinary noise alone."""

from typing import Any

import numpy as np
import pytest

from millrace.runtime.errors import UserError
from millrace.training.online.guard import Alarm, Judge
from millrace.training.task import Guard
from millrace.transforms.batch.record_batch import INVALID_LABEL

ROWS = 64
BATCHES_OF_3_SECONDS = 3_000 // ROWS  # at 1,000 rows/s
SEEDS = range(10)


class World:
    """A model that knows part of the truth, and rows in sessions of users whose taste it knows more or less well."""

    def __init__(self, seed: int, judge: Judge | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.judge = judge or Judge(Guard(), ("click",))
        self.batches = 0
        self._bias = self._left = 0.0

    def batch(self, poison: str = "", hours: float = 0.0) -> None:
        """Judges one batch of 64 rows; `hours` says how far the world has moved."""
        if self._left <= 0:
            self._left, self._bias = self.rng.integers(1, 6), self.rng.normal(0, 0.3)
        self._left -= 1
        logits = self.rng.normal(-0.3, 1.1, ROWS)
        drift = 0.15 * np.sin(hours * np.pi / 12)
        labels = self.rng.random(ROWS) < 1 / (1 + np.exp(-(logits + self._bias + drift)))
        gradient = float(self.rng.lognormal(0, 0.3))
        if poison == "labels flipped":
            labels = ~labels
        elif poison == "ids shuffled":
            logits = self.rng.permutation(logits)
        elif poison == "weights times 1,000":
            gradient *= 1000
        self.add(labels[:, np.newaxis].astype(np.float32), logits[:, np.newaxis].astype(np.float32), gradient)

    def add(self, labels: np.ndarray, logits: np.ndarray, gradient: float, **settings: Any) -> None:
        rates, finite = np.ones(len(labels), np.float32), np.ones(len(labels), bool)
        times = np.full(len(labels), settings.get("event_time_ms", 0), np.int64)
        self.judge.add(
            labels, logits, rates, times, settings.get("finite", finite), np.array([gradient]), 1000 + self.batches,
            {0: self.batches},
        )  # fmt: skip
        self.batches += 1

    def clean(self, batches: int = 400) -> None:
        for _ in range(batches):
            self.batch()
        assert self.judge.alarm is None and self.judge.is_content


@pytest.mark.parametrize("poison", ["labels flipped", "ids shuffled", "weights times 1,000"])
def test_poison_is_found_before_three_seconds_of_it_are_learned_and_dated_before_it_began(poison: str) -> None:
    for seed in SEEDS:
        world = World(seed)
        world.clean()
        begun = world.batches
        while world.judge.alarm is None and world.batches - begun < BATCHES_OF_3_SECONDS:
            world.batch(poison)
        alarm = world.judge.alarm
        assert alarm is not None, (poison, seed)
        assert alarm.suspect_ms <= 1000 + begun and alarm.suspect_offsets[0] <= begun < alarm.offsets[0]


def test_ten_minutes_of_clean_rows_that_drift_raise_no_alarm() -> None:
    world = World(seed=42)
    batches = 600_000 // ROWS
    for i in range(batches):
        world.batch(hours=24 * i / batches)  # a whole day's drift in ten minutes: more than there ever is
        assert world.judge.alarm is None, f"{world.judge.alarm} after {i} batches"


def test_a_model_that_has_learned_little_is_not_judged() -> None:
    world = World(seed=1)
    for _ in range(100):
        world.batch("labels flipped")
    assert world.judge.alarm is None and not world.judge.is_content


def test_a_young_model_whose_predictions_grow_to_what_they_should_be_is_no_alarm_and_poison_after_that_is() -> None:
    """One of products of embeddings, which begin near 0: it orders rows rightly long before it predicts enough."""
    for seed in SEEDS:
        world, batches = World(seed), 500
        for i in range(batches):
            truth = world.rng.normal(-0.3, 1.1, (ROWS, 1))
            labels = world.rng.random((ROWS, 1)) < 1 / (1 + np.exp(-truth))
            known = 0.02 ** (1 - min(1.0, 1.2 * i / batches))
            world.add(labels.astype(np.float32), (known * truth).astype(np.float32), float(world.rng.lognormal(0, 0.3)))
            assert world.judge.alarm is None, (seed, i)
        begun = world.batches
        while world.judge.alarm is None and world.batches - begun < BATCHES_OF_3_SECONDS:
            world.batch("labels flipped")
        assert world.judge.alarm is not None, seed


def test_a_guard_that_is_off_says_nothing() -> None:
    world = World(1, Judge(Guard(enabled=False), ("click",)))
    for i in range(500):
        world.batch("labels flipped" if i > 400 else "")
    assert world.judge.alarm is None


def test_wrong_weights_are_found_by_a_trainer_that_has_caught_up_in_few_large_steps() -> None:
    judge, rng = Judge(Guard(), ("click",)), np.random.default_rng(7)
    rows, updates = 512, 8

    def add(step: int, factor: float) -> None:
        logits = rng.normal(0, 1.1, (rows, 1))
        labels = (rng.random((rows, 1)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        gradients = factor * rng.lognormal(0, 0.3, updates)
        judge.add(
            labels, logits.astype(np.float32), np.ones(rows, np.float32), np.zeros(rows, np.int64),
            np.ones(rows, bool), gradients, step, {},
        )  # fmt: skip

    for step in range(20):  # 10,240 rows
        add(step, 1.0)
    assert judge.alarm is None
    for step in range(20, 23):
        add(step, 1000.0)
    assert judge.alarm is not None and "gradients" in judge.alarm.reason


def test_late_negatives_are_no_poison_when_the_rate_of_rows_changes() -> None:
    """Ten times the rows, all at once: at first these are positives only, and at the end negatives only."""
    for seed in SEEDS:
        rng, world = np.random.default_rng(seed), World(seed)
        logits = rng.normal(-0.3, 1.1, 60_000)
        labels = rng.random(60_000) < 1 / (1 + np.exp(-logits))
        sent_ms = np.concatenate([np.arange(20_000), 20_000 + np.arange(40_000) // 10]) * 1.0
        order = np.argsort(sent_ms + np.where(labels, 0, 5_000), kind="stable")
        for i in range(0, len(order), ROWS):
            rows = order[i : i + ROWS]
            times, now_ms = sent_ms[rows].astype(np.int64), int(sent_ms[rows].max()) + 5_000
            few = np.ones(len(rows), np.float32), times, np.ones(len(rows), bool)
            world.judge.add(
                labels[rows, np.newaxis].astype(np.float32), logits[rows, np.newaxis], *few, np.ones(1), now_ms, {}
            )
            assert world.judge.alarm is None, f"{world.judge.alarm} after {i} rows"


def test_one_batch_with_a_huge_gradient_is_no_alarm() -> None:
    world = World(seed=3)
    world.clean()
    for _ in range(3):
        world.batch("weights times 1,000")
        for _ in range(20):
            world.batch()
    assert world.judge.alarm is None


def test_many_rows_whose_updates_are_not_finite_are_an_alarm() -> None:
    world = World(seed=4)
    world.clean()
    logits = np.zeros((ROWS, 1), np.float32)
    for i in range(60):
        labels = (world.rng.random((ROWS, 1)) < 0.5).astype(np.float32)
        world.add(labels, logits, float("nan"), finite=np.full(ROWS, i % 3 > 0))
    assert world.judge.alarm is not None and "not finite" in world.judge.alarm.reason


def test_each_head_is_judged_by_its_own_labels_and_named() -> None:
    judge, rng = Judge(Guard(), ("click", "buy")), np.random.default_rng(5)
    world = World(5, judge)
    for i in range(400 + BATCHES_OF_3_SECONDS):
        logits = rng.normal(0, 1.1, (ROWS, 2))
        labels = (rng.random((ROWS, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        labels[::2, 0] = INVALID_LABEL
        if i >= 400:
            labels[:, 1] = 1 - labels[:, 1]
        world.add(labels, logits.astype(np.float32), 1.0)
    assert isinstance(judge.alarm, Alarm) and "head buy" in judge.alarm.reason


def test_what_is_sampled_is_judged_on_its_own_scale() -> None:
    judge, rng = Judge(Guard(), ("click",)), np.random.default_rng(6)
    for i in range(600):
        logits = rng.normal(-3, 0.5, (ROWS, 1))
        rates = np.full(ROWS, 0.1 if i < 500 else 0.5, np.float32)  # a feed that keeps another share from here on
        labels = (rng.random((ROWS, 1)) < 1 / (1 + np.exp(-(logits - np.log(rates[:, np.newaxis]))))).astype(np.float32)
        times = np.zeros(ROWS, np.int64)
        judge.add(labels, logits.astype(np.float32), rates, times, np.ones(ROWS, bool), np.ones(1), i, {})
    assert judge.alarm is None


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"gradient_factor": 1.0}, {"past_rows": 10}])
def test_a_setting_out_of_range_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"Guard.{next(iter(settings))}"):
        Guard(**settings)
