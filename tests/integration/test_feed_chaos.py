"""One scenario of `make chaos` per runner: whatever strikes the feed, a trainer applies every row exactly once."""

from pathlib import Path

import pytest

from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, watermarks
from millrace.runtime.kafka_positions import resolve_start
from millrace.runtime.topics import Topics
from tests.benchmarks.feed_load import ITEMS, PARTITIONS, Load
from tests.chaos.audit import TrainTopicAudit
from tests.chaos.feeds import PrismFeed
from tests.chaos.run import run_case, seeded_case
from tests.chaos.scenario import Runner, scenario_of

SECONDS = 90.0


@pytest.mark.service
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_a_feed_that_is_struck_while_events_flow_loses_no_row_and_doubles_none(runner: Runner, tmp_path: Path) -> None:
    result = run_case(seeded_case(scenario_of(runner, 0)), tmp_path / "scenario")
    assert not result.problem, result.line()
    assert result.audit is not None and result.audit.sent > 1000


@pytest.mark.service
@pytest.mark.slow
def test_a_feed_on_prism_that_is_killed_while_it_catches_up_loses_no_row(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    for topic in (topics.impressions, topics.actions, topics.train("feed")):
        ensure_topic(kafka, topic, PARTITIONS)
    load = Load(kafka, topics)
    for _ in range(20):
        load.send(10_000)
    load.end()
    rows = ITEMS * sum(high for _, high in watermarks(kafka, topics.impressions).values())
    feed = PrismFeed(kafka, topics, tmp_path, ("--window-seconds", "0.5", "--negative-rate", "1"))
    train = TrainTopicAudit(kafka, topics.train("feed"))

    def committed() -> int:
        train.read()
        return sum(resolve_start(kafka, topics.impressions, "group", f"{topics.prefix}feed").values())

    try:
        feed.start()
        wait_until(lambda: committed() > 0, SECONDS, "a commit")
        feed.kill_feed()
        wait_until(lambda: train.read() >= rows, SECONDS, f"{rows} rows")
        assert train.applied == rows and not train.too_old
    finally:
        feed.close()
        train.close()


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_twenty_seeds_hold_every_kind_of_fault(runner: Runner) -> None:
    scenarios = [scenario_of(runner, seed) for seed in range(10)]
    kinds = {fault.kind for scenario in scenarios for fault in scenario.faults}
    assert len(kinds) == 4 and scenarios == [scenario_of(runner, seed) for seed in range(10)]
