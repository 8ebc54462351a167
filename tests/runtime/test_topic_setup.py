"""Topics with settings that matter: made right, refused or warned about where they exist."""

import logging

import pytest

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, partitions_of, topic_settings
from millrace.runtime.topic_setup import DELTA_RETENTION_MS, ensure_deltas, ensure_model_events
from millrace.runtime.topics import Topics

pytestmark = pytest.mark.service


def test_model_events_are_made_compacted_with_one_partition(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_model_events(kafka, topics.model_events)
    ensure_model_events(kafka, topics.model_events)
    settings = topic_settings(kafka, topics.model_events)
    assert settings is not None and settings["cleanup.policy"] == "compact"
    assert partitions_of(kafka, topics.model_events) == [0]


def test_model_events_of_several_partitions_are_refused(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.model_events, partitions=3, config={"cleanup.policy": "compact"})
    with pytest.raises(UserError, match=f"topic={topics.model_events}: it has 3 partitions"):
        ensure_model_events(kafka, topics.model_events)


def test_model_events_that_expire_are_refused_with_the_command_that_helps(
    kafka: KafkaConnection, topics: Topics
) -> None:
    ensure_topic(kafka, topics.model_events)
    with pytest.raises(
        UserError, match=r"cleanup.policy=delete .*kafka-configs.sh .*--add-config cleanup.policy=compact"
    ):
        ensure_model_events(kafka, topics.model_events)


def test_deltas_are_kept_for_a_week(kafka: KafkaConnection, topics: Topics, caplog: pytest.LogCaptureFixture) -> None:
    ensure_deltas(kafka, topics.deltas("m"))
    ensure_deltas(kafka, topics.deltas("m"))
    settings = topic_settings(kafka, topics.deltas("m"))
    assert settings is not None and settings["retention.ms"] == str(DELTA_RETENTION_MS)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_deltas_that_may_be_lost_are_warned_about_with_the_command_that_helps(
    kafka: KafkaConnection, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_topic(kafka, topics.deltas("m"), config={"retention.ms": "60000", "retention.bytes": "1000000"})
    ensure_deltas(kafka, topics.deltas("m"))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "retention.ms=60000" in warning
    assert f"--add-config retention.ms={DELTA_RETENTION_MS},retention.bytes=-1" in warning
