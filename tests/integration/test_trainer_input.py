"""What the trainer reads from a real broker: through topics made anew, new partitions, outages, and bad blocks."""

import itertools
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import (
    KafkaConnection,
    ensure_topic,
    flush_or_raise,
    make_admin,
    make_producer,
    watermarks,
)
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.telemetry import RefusalStreak
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import Topics
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Position
from millrace.training.stream.seen_rows import SeenRows
from millrace.training.stream.train_topic_reader import TrainTopicReader
from millrace.transforms.batch import record_batch
from tests.fakes.poison import BLOCK_FAULTS, ROW_FAULTS
from tests.fakes.train_blocks import make_batch

pytestmark = pytest.mark.service

TASK = FeedRanking()
LAYOUT = TrainLayout.of(TASK, audit=True)
SECONDS = 60.0


class Reading:
    """A reader of the train topic, and a trainer that applies what it reads without learning."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, position: Position | None = None) -> None:
        self.position, self.health = position or Position(), RefusalStreak("train blocks", limit=3)
        self._queue = BatchQueue(LAYOUT, "input")
        self.reader = TrainTopicReader(
            kafka, topics.train(TASK.name), topics.train_dead_letter, self._queue, self.position,
            batch_size=512, max_wait_seconds=0.01, health=self.health, watch_seconds=0.2,
        )  # fmt: skip
        self.reader.start()

    def apply(self) -> int:
        """Applies what has come; returns the rows applied since the model was born."""
        while (ticket := self._queue.next_ticket(0.01)) is not None:
            if ticket.rows:
                self._queue.dequeue()
                self.position.applied(ticket.partition, ticket.offset, ticket.row)
            self.position.passed(ticket.passed)
        return self.position.rows_applied

    def until(self, rows: int) -> None:
        wait_until(lambda: self.apply() >= rows, SECONDS, f"{rows} rows are applied")


Start = Callable[..., Reading]


@pytest.fixture
def read(kafka: KafkaConnection, topics: Topics) -> Iterator[Start]:
    readings: list[Reading] = []

    def start(position: Position | None = None, of: KafkaConnection = kafka) -> Reading:
        readings.append(Reading(of, topics, position))
        return readings[-1]

    yield start
    for reading in readings:
        reading.reader.close()


def produce(kafka: KafkaConnection, topic: str, *values: bytes, partition: int = 0) -> None:
    producer = make_producer(kafka)
    for value in values:
        producer.produce(topic, value, partition=partition)
    flush_or_raise(producer)


def block(first_record: int, records: int = 10) -> bytes:
    return record_batch.to_bytes(make_batch(TASK, first_record, records))


def dead_letters(kafka: KafkaConnection, topics: Topics) -> list[tuple[bytes, dict[str, str]]]:
    """(value, headers) of each dead letter."""
    messages = itertools.chain.from_iterable(read_messages(resolve_range(kafka, topics.train_dead_letter)))
    return [(each.value(), {name: value.decode() for name, value in each.headers()}) for each in messages]


def make_anew(kafka: KafkaConnection, topic: str, partitions: int = 1) -> None:
    admin = make_admin(kafka)  # a variable: futures are cancelled with their client
    admin.delete_topics([topic], operation_timeout=10)[topic].result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, SECONDS, f"{topic} is gone")
    ensure_topic(kafka, topic, partitions)


def test_a_topic_that_is_made_anew_is_read_from_its_beginning(
    kafka: KafkaConnection, topics: Topics, read: Start, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic)
    produce(kafka, topic, *(block(i * 10) for i in range(5)))
    reading = read()
    reading.until(200)
    with caplog.at_level(logging.WARNING):
        make_anew(kafka, topic)
        produce(kafka, topic, block(100), block(0), block(110), block(120))  # more records than a jump could hide
        reading.until(320)
        wait_until(lambda: reading.apply() and reading.position.offsets == {0: 4}, SECONDS, "the position goes back")
    assert "it from its beginning" in caplog.text
    reading.reader.close()

    make_anew(kafka, topic, partitions=1)
    produce(kafka, topic, *(block(200 + i * 10) for i in range(9)))  # the new log is longer than the old offset
    reading = read(reading.position)
    reading.until(320 + 360)
    assert (reading.position.offsets, reading.position.rows_duplicate) == ({0: 9}, 40)


def test_a_partition_that_was_cut_short_is_read_from_its_beginning(
    kafka: KafkaConnection, topics: Topics, read: Start
) -> None:
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic)
    produce(kafka, topic, block(0), block(10))
    reading = read(Position(offsets={0: 20}))
    reading.until(80)
    assert reading.position.offsets == {0: 2}


def test_records_that_retention_removed_unread_are_logged(
    kafka: KafkaConnection, topics: Topics, read: Start, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic)
    produce(kafka, topic, *(block(i * 10) for i in range(5)))
    admin = make_admin(kafka)
    (future,) = admin.delete_records([TopicPartition(topic, 0, 3)]).values()
    future.result()
    wait_until(lambda: watermarks(kafka, topic)[0][0] == 3, SECONDS, "the records are gone")
    with caplog.at_level(logging.WARNING):
        reading = read(Position(offsets={0: 1}))
        reading.until(80)
    assert "offsets 1 to 2 were removed by retention" in caplog.text


def test_new_partitions_are_read_from_their_beginning_and_fewer_are_no_failure(
    kafka: KafkaConnection, topics: Topics, read: Start
) -> None:
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic, partitions=1)
    produce(kafka, topic, block(0))
    reading = read()
    reading.until(40)
    admin = make_admin(kafka)
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result()
    wait_until(lambda: len(watermarks(kafka, topic)) == 3, SECONDS, "three partitions")
    produce(kafka, topic, block(10), block(20), partition=2)
    reading.until(120)
    assert reading.position.offsets == {0: 1, 2: 2}
    make_anew(kafka, topic, partitions=1)
    produce(kafka, topic, block(30))
    reading.until(160)
    assert reading.position.offsets[0] == 1


def test_a_broker_that_is_away_at_the_start_is_waited_for(own_servers: DevServers, topics: Topics, read: Start) -> None:
    kafka = KafkaConnection(own_servers.kafka_address)
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic)
    produce(kafka, topic, block(0))
    (server,) = [each for each in own_servers.servers if each.name == "kafka"]
    server.stop()
    reading = read(of=kafka)
    server.start()
    reading.until(40)


def test_what_is_refused_goes_to_the_dead_letters_with_its_place_and_shows_in_the_health(
    kafka: KafkaConnection, topics: Topics, read: Start
) -> None:
    topic = topics.train(TASK.name)
    ensure_topic(kafka, topic)
    whole = make_batch(TASK, 0, 10)
    _, poison = ROW_FAULTS["weight is NaN"]
    produce(kafka, topic, b"no Arrow", record_batch.to_bytes(poison(whole, 3)))
    reading = read()
    reading.until(39)
    wait_until(lambda: reading.apply() and reading.position.offsets == {0: 2}, SECONDS, "both blocks are passed")
    reading.reader.wait_for_dead_letters(reading.position.dead_letters, SECONDS)
    first, second = dead_letters(kafka, topics)
    assert first[0] == b"no Arrow"
    assert (first[1]["reason"], first[1]["source-topic"]) == ("not_arrow", topic)
    assert (first[1]["source-partition"], first[1]["source-offset"]) == ("0", "0")
    assert (second[1]["reason"], second[1]["source-offset"]) == ("weight_out_of_range", "1")
    assert record_batch.from_bytes(second[0])[record_batch.SOURCE_OFFSET].to_pylist() == [0]
    assert reading.health.reason() is None
    produce(kafka, topic, *[b"no Arrow"] * 3)
    wait_until(lambda: reading.health.reason() is not None, SECONDS, "the health says that all is refused")
    assert "the last 3 train blocks were all refused" in str(reading.health.reason())


def test_rows_that_are_all_too_old_show_in_the_health(kafka: KafkaConnection, topics: Topics, read: Start) -> None:
    topic, seen = topics.train(TASK.name), SeenRows()
    ensure_topic(kafka, topic)
    seen.raise_bases({0: 100})  # what a feed said that was wrong about itself
    reading = read(Position(seen=seen))
    produce(kafka, topic, *(block(first) for first in (0, 10, 20)))
    wait_until(lambda: reading.health.reason() is not None, SECONDS, "the health says that all is refused")
    assert "too_old" in str(reading.health.reason())
    produce(kafka, topic, block(95))
    wait_until(lambda: reading.health.reason() is None, SECONDS, "a block with newer rows is taken")


def learn(
    kafka: KafkaConnection, topics: Topics, values: list[bytes], batches: int, name: str
) -> tuple[dict, Position]:
    """Tables and dense weights after `batches` steps on the train topic with these messages."""
    tf.keras.utils.set_random_seed(7)
    ensure_topic(kafka, topics.train(TASK.name))
    produce(kafka, topics.train(TASK.name), *values)
    queue, position = BatchQueue(LAYOUT, name), Position()
    store, audit = new_stores(TASK, queue.name, audit=True)
    step = TrainStep(TASK, store, queue, audit, micro_batch=64)
    # Batches are cut by their number of rows alone, so that the time at which blocks come changes nothing.
    reader = TrainTopicReader(
        kafka, topics.train(TASK.name), topics.train_dead_letter, queue, position, 64, max_wait_seconds=1e9
    )
    reader.start()
    try:
        while batches:
            ticket = queue.next_ticket(SECONDS)
            assert ticket is not None
            if ticket.rows:
                step.step()
                position.applied(ticket.partition, ticket.offset, ticket.row)
                batches -= 1
            position.passed(ticket.passed)
        reader.wait_for_dead_letters(position.dead_letters, SECONDS)
    finally:
        reader.close()
    weights = {table.name: [part.tolist() for part in _sorted(*store.dump(table.name))] for table in store.tables}
    return weights | {f"dense {i}": v.numpy().tolist() for i, v in enumerate(step.dense.variables)}, position


def _sorted(fids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(fids)
    return fids[order], values[order]


def test_a_model_that_is_trained_among_poisoned_rows_equals_one_trained_without_them(
    kafka: KafkaConnection, topics: Topics
) -> None:
    """One row in a hundred is poisoned, and a block of each kind of fault; every one of them is a dead letter."""
    blocks = [make_batch(TASK, i * 80, 80) for i in range(64)]  # 320 rows each, 20,480 in all
    row_faults, poisoned, kept, bad_rows = list(ROW_FAULTS.values()), [], [], 0
    for number, whole in enumerate(blocks):
        rows = [10, 110, 210]
        for index, row in enumerate(rows):
            _, change = row_faults[(number * 3 + index) % len(row_faults)]
            whole = change(whole, row)
        bad_rows += len(rows)
        poisoned.append(record_batch.to_bytes(whole))
        keep = np.ones(whole.num_rows, bool)
        keep[rows] = False
        kept.append(record_batch.to_bytes(blocks[number].filter(pa.array(keep))))
    for number, (_, change) in enumerate(BLOCK_FAULTS.values()):
        value = change(make_batch(TASK, 1_000_000 + number * 10, 10))
        if len(value) < 900_000:
            poisoned.insert(number * 5, value)
    batches = (64 * 320 - bad_rows) // 64
    clean = Topics(f"{topics.prefix}clean.")
    wanted, _ = learn(kafka, clean, kept, batches, "clean")
    found, position = learn(kafka, topics, poisoned, batches, "poisoned")
    assert found == wanted and all(wanted.values())
    assert position.rows_applied == batches * 64
    letters = dead_letters(kafka, topics)
    reasons = [headers["reason"] for _, headers in letters]
    whole_blocks = [reason for reason, _ in BLOCK_FAULTS.values() if reason != "too_large"]
    dead_rows = sum(
        record_batch.from_bytes(value).num_rows for value, headers in letters if headers["reason"] not in whole_blocks
    )
    assert dead_rows == bad_rows
    assert sorted(reason for reason in reasons if reason in whole_blocks) == sorted(whole_blocks)
    assert set(reasons) == {reason for reason, _ in ROW_FAULTS.values()} | set(whole_blocks)
