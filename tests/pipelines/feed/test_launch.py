"""What a launch does before a pipeline runs."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.pipelines.feed import launch
from millrace.pipelines.feed.launch import run_feed
from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings
from millrace.pipelines.kafka.process import FIRST_POLL, HEARTBEAT
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from tests.pipelines.feed.test_event_feed import config


def test_a_feed_drops_what_an_earlier_one_left_in_the_process(tmp_path: Path) -> None:
    files = FileSettings("no-impressions*", "no-actions*")
    options = FeedOptions(config(), files, tmp_path / "rows", "direct", ("--no_such_flag=1",), tmp_path / "work")
    FIRST_POLL.set()
    with pytest.raises(UserError, match="--no_such_flag=: neither millrace nor Beam knows this flag"):
        run_feed(options, threading.Event())
    assert not FIRST_POLL.is_set()


LIVE = KafkaSettings(KafkaConnection("127.0.0.1:1"))


@pytest.fixture
def heartbeat() -> Iterator[telemetry.Heartbeat]:
    HEARTBEAT.reset()
    yield HEARTBEAT
    HEARTBEAT.reset()


def looks(watch: launch._Watch, clock: list[float], seconds: float) -> bool:
    """Whether the feed has failed, after looks each half second of the next so many."""
    for _ in range(int(seconds * 2)):
        clock[0] += 0.5
        if watch.failed():
            return True
    return False


def test_a_feed_whose_readers_stand_still_has_failed(heartbeat: telemetry.Heartbeat) -> None:
    clock = [0.0]
    watch = launch._Watch(FeedOptions(config(), LIVE), lambda: clock[0])
    assert not looks(watch, clock, 300), "it has not begun to read"
    heartbeat.beat()
    assert not looks(watch, clock, 59)
    heartbeat.beat()
    assert not looks(watch, clock, 59)
    assert looks(watch, clock, 5)
    assert "no reader was asked for records for 60 s" in str(watch.error)


def test_a_feed_that_waits_for_brokers_has_not_failed(heartbeat: telemetry.Heartbeat) -> None:
    clock = [0.0]
    watch = launch._Watch(FeedOptions(config(), LIVE), lambda: clock[0])
    heartbeat.beat()
    with telemetry.WAITS.entry("Kafka at h:1"):
        assert not looks(watch, clock, 3600)
    assert not looks(watch, clock, 59)
    assert looks(watch, clock, 5)


def test_a_process_that_was_stopped_itself_has_not_seen_its_readers_stand_still(
    heartbeat: telemetry.Heartbeat,
) -> None:
    clock = [0.0]
    watch = launch._Watch(FeedOptions(config(), LIVE), lambda: clock[0])
    heartbeat.beat()
    assert not watch.failed()
    clock[0] += 3600
    assert not watch.failed()
    assert not looks(watch, clock, 50)


def test_a_failed_bundle_ends_a_feed_only_where_the_runner_does_not_do_it_again() -> None:
    for runner, ends in (("prism", True), ("flink", False)):
        watch = launch._Watch(FeedOptions(config(), LIVE, runner=runner))
        watch.bundle_failed(ValueError("first"))
        watch.bundle_failed(ValueError("second"))
        assert watch.failed() == ends
        assert str(watch.error) == ("first" if ends else "None")
