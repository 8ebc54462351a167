"""Reading partitions without a group from a real broker: transactions, and topics that are made anew."""

import pytest
from confluent_kafka import Producer

from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_admin, make_producer
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topic_watch import TopicWatch
from millrace.runtime.topics import Topics

pytestmark = pytest.mark.service
_SECONDS = 60.0


@pytest.fixture
def topic(kafka: KafkaConnection, topics: Topics) -> str:
    ensure_topic(kafka, topics.model_events)
    return topics.model_events


def _produce(kafka: KafkaConnection, topic: str, count: int) -> None:
    producer = make_producer(kafka)
    for number in range(count):
        producer.produce(topic, str(number), partition=0)
    flush_or_raise(producer)


def _make_anew(kafka: KafkaConnection, topic: str) -> None:
    admin = make_admin(kafka)
    admin.delete_topics([topic], operation_timeout=_SECONDS)[topic].result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, _SECONDS, "the topic is gone")
    ensure_topic(kafka, topic)


def _read_to_end(reader: TopicReader) -> list[bytes]:
    values: list[bytes] = []

    def ended() -> bool:
        values.extend(record.value or b"" for record in reader.read())
        return reader.reached_end()

    wait_until(ended, _SECONDS, "the end of the topic", 0.0)
    return values


def _begin(kafka: KafkaConnection, topic: str) -> Producer:
    """A producer with a transaction that has begun."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"{topic}-writer"})
    producer.init_transactions(_SECONDS)
    producer.begin_transaction()
    return producer


def test_the_end_is_reached_behind_what_ends_a_transaction(kafka: KafkaConnection, topic: str) -> None:
    producer = _begin(kafka, topic)
    producer.produce(topic, b"kept", partition=0)
    producer.commit_transaction(_SECONDS)
    producer.begin_transaction()
    producer.produce(topic, b"dropped", partition=0)
    producer.abort_transaction(_SECONDS)
    reader = TopicReader(kafka, topic, {0: 0})
    assert _read_to_end(reader) == [b"kept"]
    assert not reader.went_back
    reader.close()


def test_an_open_transaction_does_not_hide_the_end(kafka: KafkaConnection, topic: str) -> None:
    _produce(kafka, topic, 2)
    producer = _begin(kafka, topic)
    producer.produce(topic, b"open", partition=0)
    producer.flush(_SECONDS)
    reader = TopicReader(kafka, topic, {0: 0})
    assert _read_to_end(reader) == [b"0", b"1"]
    producer.commit_transaction(_SECONDS)
    wait_until(lambda: [r.value for r in reader.read()] == [b"open"], _SECONDS, "what was committed", 0.0)
    assert not reader.went_back
    reader.close()


@pytest.mark.parametrize("left", [0, 3])
def test_a_reader_behind_the_end_of_a_new_topic_says_that_it_went_back(
    kafka: KafkaConnection, topic: str, left: int
) -> None:
    _produce(kafka, topic, left)
    reader = TopicReader(kafka, topic, {0: 20})
    assert len(_read_to_end(reader)) == left
    assert (reader.went_back, reader.positions) == (True, {0: left})
    reader.close()


def test_a_topic_made_anew_is_noticed_once(kafka: KafkaConnection, topic: str) -> None:
    watch = TopicWatch(kafka, topic, seconds=0.1)
    wait_until(lambda: watch.is_new() or watch._known is not None, _SECONDS, "the first id")
    _make_anew(kafka, topic)
    wait_until(watch.is_new, _SECONDS, "another id", 0.01)
    assert not any(watch.is_new() for _ in range(100))


def test_without_a_broker_no_topic_is_new() -> None:
    watch = TopicWatch(KafkaConnection("127.0.0.1:1"), "deltas", seconds=0.0)
    assert not any(watch.is_new() for _ in range(100))
