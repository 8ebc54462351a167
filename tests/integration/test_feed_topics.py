"""A feed that is the first process of a new broker makes the topics of events."""

import pytest

from millrace.runtime.kafka_client import KafkaConnection, partitions_of
from millrace.runtime.topics import Topics
from tests.conftest import RunCli, StartProcess

pytestmark = pytest.mark.service

_TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")


def test_create_topics_makes_the_topics_of_events(
    kafka: KafkaConnection, topics: Topics, start_millrace: StartProcess
) -> None:
    address = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
    feed = start_millrace("feed", *_TASK, *address, "--create-topics", "--feed-shards", "3")
    feed.wait_ready(120)
    for topic in (topics.impressions, topics.actions):
        assert partitions_of(kafka, topic) == [0, 1, 2]


def test_without_it_the_missing_topic_and_the_flag_are_named(
    kafka: KafkaConnection, topics: Topics, run_millrace: RunCli
) -> None:
    address = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
    done = run_millrace("feed", *_TASK, *address, timeout=120)
    assert done.returncode == 2
    assert topics.impressions in done.stderr and "--create-topics" in done.stderr
