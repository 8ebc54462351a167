"""`millrace records` on topics of a real broker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Message, Producer

from millrace.cli import main
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import Topics
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.record_codec import encode_records
from tests.reference.record_rows import random_rows

pytestmark = pytest.mark.service

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(kafka: KafkaConnection, topics: Topics, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("stat", "topic:x") -> what the command prints as JSON, on the test's own topics."""

    def run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        flags = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
        parsed = main._parse(["records", *map(str, arguments), *flags, "--json"])
        assert parsed.run(parsed) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def messages(kafka: KafkaConnection, topic: str) -> list[Message]:
    """All records of a topic, by partition and offset."""
    found = [message for part in read_messages(resolve_range(kafka, topic)) for message in part]
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def produce_blocks(kafka: KafkaConnection, topic: str) -> pa.RecordBatch:
    """40 rows in blocks of ten, two in each of two partitions; each block has a key and a header."""
    rows = with_provenance(random_rows(40))
    producer = make_producer(kafka)
    for number in range(4):
        value = record_batch.to_bytes(rows.slice(10 * number, 10))
        headers = [("content-type", record_batch.CONTENT_TYPE.encode())]
        producer.produce(topic, value, str(number).encode(), partition=number % 2, headers=headers)
    flush_or_raise(producer)
    return rows


def test_a_topic_is_looked_at_copied_and_compared(
    kafka: KafkaConnection, topics: Topics, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for topic in (topics.train("m"), topics.train("copy")):
        ensure_topic(kafka, topic, partitions=2)
    rows = produce_blocks(kafka, topics.train("m"))

    stat = run("stat", "topic:train.m")
    assert (stat["records"], stat["rows"]) == (4, 40)
    assert [(each["records"], each["first"], each["last"]) for each in stat["partitions"].values()] == [(2, 0, 1)] * 2
    part = run("stat", "topic:train.m", "--partition", "1", "--start", '{"1": 1}')
    assert (part["records"], part["partitions"]["1"]["first"], part["rows"]) == (1, 1, 10)
    assert run("stat", "topic:train.m", "--until", '{"0": 1, "1": 0}')["rows"] == 10

    assert run("replay", "topic:train.m", "train.copy", "--rate", "200") == {
        "sent": {topics.train("copy"): 4},
        "skipped": {},
        "failed": {},
    }
    first, copy = messages(kafka, topics.train("m")), messages(kafka, topics.train("copy"))
    for told in (Message.key, Message.value, Message.partition, Message.headers):
        assert list(map(told, copy)) == list(map(told, first))
    assert run("diff", "topic:train.m", "topic:train.copy", "--ordered")["equal"]

    run("convert", "topic:train.m", tmp_path / "rows.parquet")
    assert run("diff", tmp_path / "rows.parquet", "topic:train.copy")["rows_a"] == rows.num_rows
    run("replay", tmp_path / "rows.parquet", "train.copy")
    twice = run("diff", "topic:train.m", "topic:train.copy", code=1)
    assert (twice["only_a"], twice["only_b"], twice["changed"]) == (0, 40, 0)


def test_dead_letters_go_back_where_they_came_from(
    kafka: KafkaConnection, topics: Topics, run: Run, tmp_path: Path
) -> None:
    records = f"{topics.prefix}records"
    ensure_topic(kafka, records, partitions=3)
    ensure_topic(kafka, topics.dead_letter)
    good = encode_records(random_rows(1).select(["user"]), "example")[0].as_py()
    dead = pa.RecordBatch.from_pylist(
        [
            {"value": good, "topic": records, "partition": 2, "offset": 7, "reason": "malformed_proto", "detail": "x"},
            {"value": good, "topic": records, "partition": 9, "offset": 8, "reason": "malformed_proto", "detail": "x"},
            {"value": b"a", "topic": records, "partition": 1, "offset": 9, "reason": "too_large", "detail": "x"},
            {"value": b"b", "topic": records, "partition": 1, "reason": "malformed_proto", "truncated_from": 5},
        ],
        schema=dead_letter.SCHEMA,
    )
    producer = make_producer(kafka)
    for value, headers in zip(dead.column("value").to_pylist(), dead_letter.kafka_headers(dead), strict=True):
        producer.produce(topics.dead_letter, value, headers=headers)
    flush_or_raise(producer)

    reasons = run("stat", "topic:feed.dead-letter")["dead_letters"]
    assert {name: each["records"] for name, each in reasons.items()} == {"malformed_proto": 3, "too_large": 1}
    sent = run("replay", "topic:feed.dead-letter", "--from-dead-letters", "--reason", "malformed_proto")
    assert sent["sent"] == {records: 2}
    assert sent["skipped"] == {"another reason": 1, "only its beginning was kept": 1}
    found = messages(kafka, records)
    assert [message.value() for message in found] == [good, good]
    assert 2 in [message.partition() for message in found]

    assert run("convert", "topic:records", tmp_path / "rows.parquet", "--records", "example")["rows_written"] == 2


def test_a_range_ends_where_nothing_but_an_aborted_transaction_follows(kafka: KafkaConnection, topics: Topics) -> None:
    topic = topics.train("m")
    ensure_topic(kafka, topic)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(60)
    for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush()
        end(60)
    assert [message.value() for message in messages(kafka, topic)] == [b"kept"]


def test_what_is_wrong_with_a_topic_is_told(kafka: KafkaConnection, topics: Topics, run: Run) -> None:
    ensure_topic(kafka, topics.train("m"))
    for arguments, problem in (
        (("stat", "topic:none"), "the topic does not exist"),
        (("stat", "topic:train.m", "--partition", "3"), "no such partition"),
        (("stat", "topic:train.m", "--start", "soon"), "--start=soon: not a start position"),
        (("replay", "topic:train.m", "none"), "TOPIC=.*none: the topic does not exist"),
    ):
        with pytest.raises(UserError, match=problem):
            run(*arguments)
