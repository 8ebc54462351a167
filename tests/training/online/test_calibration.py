"""Calibration is judged by whole seconds of event time: late negatives are waited for, missing labels are found."""

import json

import numpy as np
import pytest

from millrace.training.online.calibration import Calibration
from millrace.training.task import Guard

START_MS = 1_000_000_000_000
SECONDS, RATE = 240, 200
GUARD = Guard(past_rows=4_096, gap_rows=512, least_rows=2_048)


class Traffic:
    """`SECONDS` of 200 rows/s: positives come at once and negatives after 5 s."""

    def __init__(self, poison: str = "", since: int = 120, window_ms: int = 5_000) -> None:
        rng = np.random.default_rng(7)
        count = SECONDS * RATE
        self.times = START_MS + np.arange(count) * (1_000 // RATE)
        self.logits = rng.normal(-1, 1, (count, 1))
        labels = rng.random((count, 1)) < 1 / (1 + np.exp(-self.logits))
        bad = np.arange(count) >= since * RATE
        if poison:
            labels[bad] = poison == "all positive"
        self.labels = labels.astype(np.float32)
        self.ready = self.times + np.where(labels[:, 0], 0, window_ms)
        self.order = np.argsort(self.ready, kind="stable")

    def judge(self, calibration: Calibration, first: int = 0, last: int = SECONDS * RATE) -> int | None:
        """Wall clock of the alarm."""
        for start in range(first, last, 100):
            rows = self.order[start : start + 100]
            now_ms = int(self.ready[rows].max())
            calibration.add(self.times[rows], self.labels[rows], self.logits[rows], now_ms)
            if calibration.alarm is not None:
                return now_ms
        return None


@pytest.mark.parametrize(("poison", "word"), [("all positive", "lower"), ("all negative", "higher")])
def test_labels_that_are_all_one_are_found_and_dated_before_they_began(poison: str, word: str) -> None:
    calibration, begun = Calibration(GUARD, 1), START_MS + 120_000
    found = Traffic(poison).judge(calibration)
    assert found is not None and begun < found < begun + 60_000
    assert calibration.alarm is not None and word in calibration.alarm[1]
    assert calibration.since_ms is not None and calibration.since_ms <= begun


def test_honest_traffic_with_late_negatives_is_no_alarm_also_after_a_restart() -> None:
    traffic, first = Traffic(), Calibration(GUARD, 1)
    half = SECONDS * RATE // 2
    assert traffic.judge(first, 0, half) is None and first.since_ms is not None
    second = Calibration(GUARD, 1)
    second.remember(json.loads(json.dumps(first.past())), START_MS + 120_000)
    assert traffic.judge(second, half) is None and second.since_ms is not None


def test_a_window_longer_than_the_traffic_so_far_is_no_alarm() -> None:
    assert Traffic(window_ms=100_000).judge(Calibration(GUARD, 1)) is None


def test_rows_without_event_times_are_not_judged() -> None:
    traffic, calibration = Traffic("all positive"), Calibration(GUARD, 1)
    traffic.times[:] = 0
    assert traffic.judge(calibration) is None and calibration.since_ms is None


def test_cohorts_of_which_rows_were_passed_over_are_not_judged() -> None:
    traffic, calibration = Traffic(), Calibration(GUARD, 1)
    half = SECONDS * RATE // 2
    traffic.judge(calibration, 0, half)
    for start in range(half, half + 20 * RATE, 100):
        rows = traffic.order[start : start + 100]
        is_learned = traffic.labels[rows, 0] < 0.5  # positives are passed over
        calibration.drop()
        calibration.add(
            traffic.times[rows][is_learned], traffic.labels[rows][is_learned], traffic.logits[rows][is_learned],
            int(traffic.ready[rows].max()),
        )  # fmt: skip
    assert traffic.judge(calibration, half + 20 * RATE) is None
