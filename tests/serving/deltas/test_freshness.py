import math
from collections.abc import Iterator

import prometheus_client
import pytest

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.freshness import VersionFreshness


def _metric(name: str, version: int) -> float | None:
    value = prometheus_client.REGISTRY.get_sample_value(f"millrace_{name}", {"model": "fresh", "version": str(version)})
    return value


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def freshness(clock: _Clock) -> Iterator[VersionFreshness]:
    """Version 1; cut at 90 s, its newest event is of 80 s; now is 100 s."""
    freshness = VersionFreshness("fresh", 1, event_time_ms=80_000, cut_at_ms=90_000, clock=clock, monotonic=clock)
    freshness.show()
    yield freshness
    freshness.hide()


def test_ages_grow_between_deltas_and_are_computed_when_read(freshness: VersionFreshness, clock: _Clock) -> None:
    assert (_metric("model_age_seconds", 1), _metric("delta_lag_seconds", 1)) == (20.0, 10.0)
    freshness.took(ModelDelta(event_time_ms=98_000, created_at_ms=99_000))
    assert (_metric("model_age_seconds", 1), _metric("delta_lag_seconds", 1)) == (2.0, 1.0)
    clock.now = 160.0
    assert (_metric("model_age_seconds", 1), _metric("delta_lag_seconds", 1)) == (62.0, 61.0)


def test_a_heartbeat_makes_the_lag_small_and_not_the_age(freshness: VersionFreshness) -> None:
    freshness.took(ModelDelta(event_time_ms=80_000, created_at_ms=100_000))
    assert (freshness.model_age_ms(), freshness.delta_lag_ms()) == (20_000, 0)


def test_an_event_of_a_wrong_clock_does_not_make_a_version_fresh_for_ever(
    freshness: VersionFreshness, clock: _Clock
) -> None:
    year_2100 = 4_102_444_800_000
    freshness.took(ModelDelta(event_time_ms=year_2100, created_at_ms=100_000))
    clock.now = 3700.0
    assert freshness.model_age_ms() == 3_600_000
    freshness.took(ModelDelta(event_time_ms=3_690_000, created_at_ms=year_2100))  # the trainer's own clock
    clock.now = 4000.0
    assert (freshness.model_age_ms(), freshness.delta_lag_ms()) == (310_000, 300_000)
    assert VersionFreshness("fresh", 2, year_2100, 4_000_000, clock=clock, monotonic=clock).model_age_ms() == 0


def test_a_clock_that_goes_back_hides_no_age() -> None:
    unix, monotonic = _Clock(), _Clock()
    unix.now = 10_000.0
    freshness = VersionFreshness("fresh", 1, 9_990_000, 10_000_000, clock=unix, monotonic=monotonic)
    unix.now, monotonic.now = unix.now - 3600 + 120, monotonic.now + 120
    assert (freshness.model_age_ms(), freshness.delta_lag_ms()) == (120_000, 120_000)
    freshness.took(ModelDelta(event_time_ms=10_115_000, created_at_ms=10_120_000))
    assert (freshness.model_age_ms(), freshness.delta_lag_ms()) == (0, 0)


def test_what_is_unknown_is_no_number(clock: _Clock) -> None:
    freshness = VersionFreshness("fresh", 2, takes_deltas=False, clock=clock)
    freshness.show()
    assert math.isnan(_metric("model_age_seconds", 2) or 0)
    assert (freshness.model_age_ms(), freshness.delta_lag_ms()) == (-1, -1)
    freshness.hide()


def test_each_version_has_its_own_metrics_which_go_with_it(freshness: VersionFreshness, clock: _Clock) -> None:
    newer = VersionFreshness("fresh", 2, event_time_ms=99_000, cut_at_ms=99_000, clock=clock)
    newer.show()
    newer.resync_required = True
    assert (_metric("resync_required", 1), _metric("resync_required", 2)) == (0.0, 1.0)
    newer.hide()
    assert _metric("model_age_seconds", 2) is None
    assert _metric("resync_required", 2) is None
    assert _metric("model_age_seconds", 1) == 20.0


def test_a_second_load_of_a_version_takes_over_its_metrics(freshness: VersionFreshness, clock: _Clock) -> None:
    second = VersionFreshness("fresh", 1, event_time_ms=70_000, cut_at_ms=70_000, clock=clock)
    second.show()
    freshness.hide()
    assert _metric("model_age_seconds", 1) == 30.0
    freshness.show()
    second.hide()
    second.hide()
    assert _metric("model_age_seconds", 1) == 20.0
