"""The feed on Prism while its broker is away, for longer than any request waits: it goes on afterwards, row by row."""

import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, watermarks
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics
from tests.integration.test_feed_prism import ITEMS, START_SECONDS, Row, TrainTopic, World, metric

pytestmark = pytest.mark.service

_SECONDS = 300.0  # a broker starts in 5 s, and in a minute on a busy machine
# Of waiting: the first is longer than the minute after which a bundle with retries fails, the others hit other moments.
_OUTAGES_SECONDS = (75.0, 0.0, 3.0, 0.0)


@pytest.fixture
def world(own_servers: DevServers) -> World:
    return World(KafkaConnection(own_servers.kafka_address), Topics("outage."))


@pytest.fixture
def events(world: World) -> Iterator[Callable[[], None]]:
    """Requests, fifty per second, until the test ends or calls this."""
    stop = threading.Event()

    def produce() -> None:
        number = 0
        while not stop.wait(0.02):
            world.request(number)
            number += 1

    thread = threading.Thread(target=produce)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    yield end
    end()


def rows_in_topic(world: World) -> set[Row]:
    """The rows that the broker has, read off its offsets: what a producer hears may lack one.

    A message that was written just before a broker died, and not acknowledged, is sent again; the broker that knows it
    then acknowledges it without an offset.
    """
    ends = watermarks(world.kafka, world.topics.impressions)
    return {
        (partition, offset, row)
        for partition, (low, high) in ends.items()
        for offset in range(low, high)
        for row in range(len(ITEMS))
    }


def health(feed: ChildProcess) -> str:
    with urllib.request.urlopen(f"http://{feed.ready['metrics']}/healthz", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.timeout(900)  # the outages alone take two minutes
def test_a_feed_outlives_its_broker_and_loses_and_doubles_nothing(
    own_servers: DevServers,
    world: World,
    events: Callable[[], None],
    start_millrace: Callable[..., ChildProcess],
    tmp_path: object,
) -> None:
    train_topic = TrainTopic(world.kafka, world.topics.train("feed"))
    feed = start_millrace(
        "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", world.kafka.bootstrap_servers,
        "--topic-prefix", world.topics.prefix, "--work-dir", str(tmp_path), "--start", "earliest",
        "--window-seconds", "2",
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    for seconds in _OUTAGES_SECONDS:
        before = train_topic.read()
        wait_until(lambda before=before: train_topic.read() > before + 100, _SECONDS, "rows before the outage")
        own_servers.kafka.kill()
        if seconds:
            waited = f"waiting for Kafka at {world.kafka.bootstrap_servers} for "
            wait_until(lambda waited=waited: health(feed).startswith(waited), _SECONDS, "the wait is told")
            wait_until(
                lambda seconds=seconds: metric(feed, "millrace_waiting_seconds") > seconds,
                seconds + _SECONDS,
                "the outage has lasted long",
            )
        assert feed.running(), feed.log_tail()
        own_servers.kafka.restart()
        read = metric(feed, "millrace_feed_records_read_total")
        wait_until(
            lambda read=read: metric(feed, "millrace_feed_records_read_total") > read + 50,
            _SECONDS,
            "reading again",
        )
    wait_until(lambda: health(feed) == "ok", _SECONDS, "healthy again")
    events()
    world.flush()
    sent = rows_in_topic(world)

    def all_came() -> bool:
        train_topic.read()
        return sent <= set(train_topic.labels)

    wait_until(all_came, _SECONDS, "every row in the train topic")
    # Not their labels: an action that could not be sent within the window is late.
    assert {key: labels for key, labels in train_topic.labels.items() if len(labels) > 1} == {}
    assert set(train_topic.labels) == sent
    train_topic.close()
    assert feed.stop() == 0


def test_a_feed_that_waits_for_its_broker_can_be_stopped(
    own_servers: DevServers,
    world: World,
    events: Callable[[], None],
    start_millrace: Callable[..., ChildProcess],
    tmp_path: object,
) -> None:
    train_topic = TrainTopic(world.kafka, world.topics.train("feed"))
    feed = start_millrace(
        "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", world.kafka.bootstrap_servers,
        "--topic-prefix", world.topics.prefix, "--work-dir", str(tmp_path), "--start", "earliest",
        "--window-seconds", "2",
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    wait_until(lambda: train_topic.read() > 100, _SECONDS, "rows before the outage")
    train_topic.close()
    own_servers.kafka.kill()
    wait_until(lambda: health(feed).startswith("waiting for Kafka"), _SECONDS, "the wait is told")
    assert feed.stop(60.0) == 0, feed.log_tail()
