"""Reading from a real broker: positions, ranges, transactions, new partitions, and offsets that are removed."""

import doctest
from collections.abc import Callable

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from prometheus_client import REGISTRY

from millrace.pipelines.kafka import sink
from millrace.pipelines.kafka import source as kafka_io
from millrace.pipelines.kafka.reader import KafkaBlockReader, KafkaMark, ReaderSettings
from millrace.pipelines.kafka.source import KafkaSource, ReadFromKafka
from millrace.pipelines.kafka.topic_sources import commit_tag, topic_sources
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import (
    KafkaConnection,
    ensure_topic,
    flush_or_raise,
    make_admin,
    make_consumer,
    make_producer,
    watermarks,
)
from millrace.runtime.kafka_positions import resolve_topics
from millrace.runtime.kafka_records import KafkaReadError, PartitionReader
from millrace.runtime.topics import Topics

pytestmark = pytest.mark.service

SECONDS = 60.0


def produce(kafka: KafkaConnection, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = make_producer(kafka)
    for value in values:
        producer.produce(topic, value, partition=partition)
    flush_or_raise(producer)


def read_values(reader: KafkaBlockReader, count: int) -> list[bytes]:
    """The next values, bundle after bundle as a runner would ask for them."""
    values: list[bytes] = []

    def read_on() -> bool:
        while reader.advance():
            values.extend(reader.get_current().column("value").to_pylist())
        reader.get_checkpoint_mark()
        return len(values) >= count

    wait_until(read_on, SECONDS, f"{count} records")
    return values


def transactions(kafka: KafkaConnection, topic: str) -> Callable[[list[bytes], bool], None]:
    """write(values, commit): one transaction that ends in a control record."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"{topic}-writer"})
    producer.init_transactions(SECONDS)

    def write(values: list[bytes], commit: bool) -> None:
        producer.begin_transaction()
        for value in values:
            producer.produce(topic, value, partition=0)
        producer.flush(SECONDS)
        (producer.commit_transaction if commit else producer.abort_transaction)(SECONDS)

    return write


def test_a_bounded_range_leaves_out_what_was_aborted_and_ends_in_control_records(
    kafka: KafkaConnection, topics: Topics
) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    write = transactions(kafka, topic)
    write([b"1", b"2"], True)
    write([b"no", b"never"], False)
    write([b"3"], True)
    write([b"not this one"], False)
    assert watermarks(kafka, topic) == {0: (0, 10)}  # six records and four ends of transactions
    with beam.Pipeline() as pipeline:
        blocks = pipeline | ReadFromKafka.of_topics(kafka, [topic], "earliest", "end")
        values = blocks | beam.FlatMap(lambda block: block.column("value").to_pylist())
        assert_that(values, equal_to([b"1", b"2", b"3"]))


def test_a_partition_read_to_its_control_records_has_no_lag(kafka: KafkaConnection, topics: Topics) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    transactions(kafka, topic)([b"1"], True)
    reader = PartitionReader(kafka, {(topic, 0): 0})
    try:
        assert reader.lags() == {(topic, 0): None}
        wait_until(lambda: bool(reader.read(10, 0.1)), SECONDS, "the record")
        wait_until(lambda: not reader.read(10, 0.1) and reader.lags() == {(topic, 0): 0}, SECONDS, "the end")
    finally:
        reader.close()


def test_a_read_from_the_middle_starts_where_it_is_told_to(kafka: KafkaConnection, topics: Topics) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic, partitions=2)
    for partition in range(2):
        produce(kafka, topic, [b"%d" % number for number in range(5)], partition)
    assert resolve_topics(kafka, [topic], "latest", "g") == {(topic, 0): 5, (topic, 1): 5}
    with beam.Pipeline() as pipeline:
        read = ReadFromKafka.of_topics(kafka, [topic], '{"0": 3, "1": 1}', '{"0": 4, "1": 3}')
        places = (
            pipeline
            | read
            | beam.FlatMap(
                lambda block: list(
                    zip(block.column("partition").to_pylist(), block.column("offset").to_pylist(), strict=True)
                )
            )
        )
        assert_that(places, equal_to([(0, 3), (1, 1), (1, 2)]))


def test_partitions_that_are_added_while_reading_are_read_from_their_first_record(
    kafka: KafkaConnection, topics: Topics
) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    produce(kafka, topic, [b"old"])
    source = KafkaSource(kafka, (((topic, 0), 0),), topics.prefix, ReaderSettings(metadata_seconds=0.2))
    reader = source.create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    try:
        assert read_values(reader, 1) == [b"old"]
        admin = make_admin(kafka)
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result()
        for partition in (1, 2):
            produce(kafka, topic, [b"new"] * 2, partition)
        assert read_values(reader, 4) == [b"new"] * 4
        mark = reader.get_checkpoint_mark()
        assert mark.positions == {(topic, 0): 1, (topic, 1): 2, (topic, 2): 2}
    finally:
        reader.close()
    produce(kafka, topic, [b"later"], 2)
    resumed = source.create_reader(None, KafkaMark(mark.positions))
    assert isinstance(resumed, KafkaBlockReader)
    try:
        assert read_values(resumed, 1) == [b"later"]
    finally:
        resumed.close()


def test_progress_is_committed_without_joining_the_group(kafka: KafkaConnection, topics: Topics) -> None:
    topic, group = topics.actions, f"{topics.prefix}g"
    ensure_topic(kafka, topic)
    produce(kafka, topic, [b"1", b"2"])
    reader = KafkaSource(kafka, (((topic, 0), 0),), group, ReaderSettings()).create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    try:
        read_values(reader, 2)
        reader.get_checkpoint_mark().finalize_checkpoint()
        wait_until(lambda: resolve_topics(kafka, [topic], "group", group) == {(topic, 0): 2}, SECONDS, "the commit")
        admin = make_admin(kafka)
        assert admin.describe_consumer_groups([group])[group].result().members == []
    finally:
        reader.close()


def test_an_offset_that_is_not_there_is_an_error_that_says_what_to_do(kafka: KafkaConnection, topics: Topics) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    reader = PartitionReader(kafka, {(topic, 0): 17})
    try:
        with pytest.raises(KafkaReadError, match=rf"{topic}\[0\]: offset 17 is out of range: .* start from earliest"):
            wait_until(lambda: bool(reader.read(10, 0.1)), SECONDS, "an error")
    finally:
        reader.close()


def test_a_topic_that_is_deleted_while_it_is_read_is_an_error_that_names_it(
    kafka: KafkaConnection, topics: Topics
) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    produce(kafka, topic, [b"1"])
    source = KafkaSource(kafka, (((topic, 0), 0),), topics.prefix, ReaderSettings(metadata_seconds=0.2))
    reader = source.create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    try:
        read_values(reader, 1)
        admin = make_admin(kafka)
        admin.delete_topics([topic], operation_timeout=10)[topic].result()
        with pytest.raises(KafkaReadError, match=rf"{topic}\[0\] does not exist any more"):
            read_values(reader, 1)
    finally:
        reader.close()


def _made_anew(kafka: KafkaConnection, topic: str, partitions: int) -> None:
    admin = make_admin(kafka)
    admin.delete_topics([topic], operation_timeout=10)[topic].result()

    def created() -> bool:  # the name is free again only a moment after the topic has gone
        try:
            ensure_topic(kafka, topic, partitions)
        except KafkaException:
            return False
        return True

    wait_until(created, SECONDS, "the topic made anew")


def test_a_topic_that_is_made_anew_while_it_is_read_is_read_from_its_beginning(
    kafka: KafkaConnection, topics: Topics
) -> None:
    topic, group = topics.actions, f"{topics.prefix}g"
    ensure_topic(kafka, topic, partitions=3)
    for partition in range(3):
        produce(kafka, topic, [b"old"] * 5, partition)
    start = {(topic, partition): 0 for partition in range(3)}
    source = KafkaSource(kafka, tuple(start.items()), group, ReaderSettings(metadata_seconds=0.5))
    reader = source.create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    try:
        assert read_values(reader, 15) == [b"old"] * 15
        mark = reader.get_checkpoint_mark()
        mark.finalize_checkpoint()
        wait_until(lambda: resolve_topics(kafka, [topic], "group", group) == mark.positions, SECONDS, "the commit")
        _made_anew(kafka, topic, 2)
        produce(kafka, topic, [b"new"] * 3, 1)
        assert read_values(reader, 3) == [b"new"] * 3
        assert reader.get_checkpoint_mark().positions == {(topic, 0): 0, (topic, 1): 3}
    finally:
        reader.close()
    produce(kafka, topic, [b"newer"] * 4, 1)
    # Neither the group's offsets nor a mark of the old topic is gone on with.
    tags = {name: commit_tag(number) for name, number in topic_sources(kafka, [topic]).items()}
    assert mark.sources and tags != {topic: commit_tag(mark.sources[topic])}
    assert resolve_topics(kafka, [topic], "group", group, tags=tags) == {(topic, 0): 0, (topic, 1): 0}
    resumed = source.create_reader(None, mark)
    assert isinstance(resumed, KafkaBlockReader)
    try:
        assert read_values(resumed, 7) == [b"new"] * 3 + [b"newer"] * 4
    finally:
        resumed.close()


def test_a_topic_that_is_made_anew_and_soon_has_more_records_than_before_gives_each_once(
    kafka: KafkaConnection, topics: Topics
) -> None:
    """A client that asks by name may go on in the new topic; whether it does is a race, so that several are tried."""
    for attempt in range(4):
        topic = f"{topics.actions}-{attempt}"
        ensure_topic(kafka, topic)
        produce(kafka, topic, [b"old"] * 10)
        source = KafkaSource(kafka, (((topic, 0), 0),), topics.prefix, ReaderSettings(metadata_seconds=5.0))
        reader = source.create_reader(None, None)
        assert isinstance(reader, KafkaBlockReader)
        try:
            assert read_values(reader, 10) == [b"old"] * 10
            _made_anew(kafka, topic, 1)
            new = [b"%d" % number for number in range(30)]
            produce(kafka, topic, new)
            assert read_values(reader, 30) == new
            assert reader.get_checkpoint_mark().positions == {(topic, 0): 30}
            (number,) = topic_sources(kafka, [topic]).values()
            assert reader.get_checkpoint_mark().sources == {topic: number}
        finally:
            reader.close()


def test_offsets_that_retention_removed_are_counted_at_the_start_and_while_reading(
    kafka: KafkaConnection, topics: Topics
) -> None:
    topic = topics.actions
    ensure_topic(kafka, topic)
    produce(kafka, topic, [b"1", b"2", b"3"])
    admin = make_admin(kafka)
    admin.delete_records([TopicPartition(topic, 0, 2)])[TopicPartition(topic, 0, 2)].result()
    lost: list[tuple[object, int, int]] = []
    start = resolve_topics(kafka, [topic], '{"0": 0}', "g", on_lost=lambda *told: lost.append(told))
    assert start == {(topic, 0): 2} and lost == [((topic, 0), 0, 2)]
    reader = KafkaSource(kafka, (((topic, 0), 0),), topics.prefix, ReaderSettings()).create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    try:
        assert read_values(reader, 1) == [b"3"]
    finally:
        reader.close()
    counted = REGISTRY.get_sample_value("millrace_feed_records_lost_total", {"topic": topic, "partition": "0"})
    assert counted == 2


def test_append_times_are_those_of_the_broker(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.actions, config={"message.timestamp.type": "LogAppendTime"})
    ensure_topic(kafka, topics.impressions)
    for topic, kept in ((topics.actions, True), (topics.impressions, False)):
        producer = make_producer(kafka)
        producer.produce(topic, b"1", timestamp=1000)
        flush_or_raise(producer)
        reader = PartitionReader(kafka, {(topic, 0): 0})
        blocks = []
        wait_until(
            lambda blocks=blocks, reader=reader: bool(blocks or blocks.extend(reader.read(10, 0.1))), SECONDS, ""
        )
        reader.close()
        assert blocks[0].append_times is kept
        assert (blocks[0].timestamps_ms == [1000]) is not kept


def test_a_record_beyond_the_topics_limit_is_an_output_and_the_others_arrive(
    kafka: KafkaConnection, topics: Topics
) -> None:
    ensure_topic(kafka, topics.actions, config={"max.message.bytes": "5000"})
    # What does not compress: the largest that passes here must pass there.
    noise = b"".join(bytes([(number * number // 7) % 256]) for number in range(5000))
    fits, large = sink.KafkaRecord(noise[:4900]), sink.KafkaRecord(noise)
    with beam.Pipeline() as pipeline:
        refused = pipeline | beam.Create([fits, large]) | sink.WriteToKafka(kafka, topics.actions, "output")
        assert_that(refused, equal_to([large]))
    assert watermarks(kafka, topics.actions) == {0: (0, 1)}


def test_keys_headers_and_partitions_arrive(kafka: KafkaConnection, topics: Topics) -> None:
    ensure_topic(kafka, topics.actions, partitions=3)
    with beam.Pipeline() as pipeline:
        records = [
            sink.KafkaRecord(b"v", b"k", 2, (("a", b"1"), ("a", b"2"))),
            sink.KafkaRecord(None, b"gone", 0),
        ]
        _ = pipeline | beam.Create(records) | sink.WriteToKafka(kafka, topics.actions)
    consumer = make_consumer(kafka, f"{topics.prefix}g")
    consumer.subscribe([topics.actions])
    found = {message.partition(): message for message in consumer.consume(2, SECONDS)}
    consumer.close()
    assert (found[2].key(), found[2].value(), found[2].headers()) == (b"k", b"v", [("a", b"1"), ("a", b"2")])
    assert (found[0].key(), found[0].value()) == (b"gone", None)


@pytest.mark.parametrize("documented", [kafka_io.ReadFromKafka, sink.WriteToKafka])
def test_the_example_in_the_documentation_runs(kafka: KafkaConnection, topics: Topics, documented: type) -> None:
    ensure_topic(kafka, topics.actions)
    produce(kafka, topics.actions, [b"first", b"second"])
    names = {**vars(kafka_io), **vars(sink), "assert_that": assert_that, "equal_to": equal_to}
    names |= {"address": kafka.bootstrap_servers, "topic": topics.actions}
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(documented, globs=names):
        runner.run(example)
    assert runner.tries and not runner.failures
