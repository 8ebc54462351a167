"""Kafka clients, some of them against a real broker."""

import pytest
from confluent_kafka import KafkaError

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import (
    KafkaConnection,
    UndeliveredError,
    ensure_topic,
    flush_or_raise,
    is_passing,
    make_producer,
    partitions_of,
    watermarks,
)
from millrace.runtime.topics import Topics


def test_topic_names_share_one_prefix() -> None:
    topics = Topics("eu.")
    assert topics.train("m") == "eu.train.m"
    assert topics.deltas("m") == "eu.model.deltas.m"
    assert Topics().dead_letter == "feed.dead-letter"


def test_undelivered_messages_are_an_error_and_not_forgotten() -> None:
    producer = make_producer(KafkaConnection("127.0.0.1:1"))
    producer.produce("topic", b"value")
    with pytest.raises(UndeliveredError, match="1 messages"):
        flush_or_raise(producer, 0.2)


def test_a_connection_does_not_show_its_properties_file() -> None:
    assert "secret" not in repr(KafkaConnection("a:1", "secret.properties"))


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        (KafkaError._TRANSPORT, True),
        (KafkaError._ALL_BROKERS_DOWN, True),
        (KafkaError._TIMED_OUT, True),
        (KafkaError._PARTITION_EOF, True),
        (KafkaError._AUTO_OFFSET_RESET, False),
        (KafkaError._UNKNOWN_TOPIC, False),
        (KafkaError._AUTHENTICATION, False),
    ],
)
def test_a_reader_reads_on_only_after_errors_that_pass(code: int, passes: bool) -> None:
    assert is_passing(KafkaError(code)) == passes


@pytest.mark.service
def test_a_topic_is_created_once_with_its_partitions(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.train("m"), partitions=3)
    ensure_topic(kafka, topics.train("m"), partitions=3)
    assert partitions_of(kafka, topics.train("m")) == [0, 1, 2]


@pytest.mark.service
def test_a_missing_topic_is_a_user_error_that_names_it(kafka: KafkaConnection, topics: Topics) -> None:
    with pytest.raises(UserError, match=f"topic={topics.actions}: the topic does not exist"):
        partitions_of(kafka, topics.actions)


@pytest.mark.service
def test_watermarks_say_how_much_a_topic_holds(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.actions, partitions=2)
    producer = make_producer(kafka)
    for number in range(5):
        producer.produce(topics.actions, str(number).encode(), partition=1)
    flush_or_raise(producer)
    assert watermarks(kafka, topics.actions) == {0: (0, 0), 1: (0, 5)}
