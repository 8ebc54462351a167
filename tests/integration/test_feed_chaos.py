"""One scenario of `make chaos` a runner: whatever strikes the feed, a trainer applies every row exactly once."""

from pathlib import Path

import pytest

from tests.chaos.run import run_scenario
from tests.chaos.scenario import Runner, scenario_of

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_a_feed_that_is_struck_while_events_flow_loses_no_row_and_doubles_none(runner: Runner, tmp_path: Path) -> None:
    result = run_scenario(scenario_of(runner, 0), tmp_path / "scenario")
    assert not result.problem, result.line()
    assert result.audit is not None and result.audit.sent > 1000


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_twenty_seeds_hold_every_kind_of_fault(runner: Runner) -> None:
    scenarios = [scenario_of(runner, seed) for seed in range(10)]
    kinds = {fault.kind for scenario in scenarios for fault in scenario.faults}
    assert len(kinds) == 4 and scenarios == [scenario_of(runner, seed) for seed in range(10)]
