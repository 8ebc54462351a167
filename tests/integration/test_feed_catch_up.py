"""A feed that catches up gives the labels that it would have given while the events happened."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from millrace.pipelines.kafka.reader import KafkaBlockReader, ReaderSettings
from millrace.pipelines.kafka.source import KafkaSource
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.kafka_positions import resolve_topics
from millrace.runtime.kafka_records import PartitionReader
from millrace.runtime.topics import Topics
from millrace.transforms.batch import record_batch

pytestmark = pytest.mark.service

PARTITIONS = 4
IMPRESSIONS, CLICKS = 120_000, 60_000
BACKLOG_MS, CLICK_DELAY_MS = 600_000, 900
END_MS = 1_764_000_000_000
START_SECONDS, ROWS_SECONDS = 90.0, 120.0


@pytest.fixture
def backlog(kafka: KafkaConnection, topics: Topics) -> Topics:
    """Ten minutes of events: every second impression is clicked on, a little later."""
    for topic in (topics.impressions, topics.actions, topics.train("feed")):
        ensure_topic(kafka, topic, PARTITIONS)
    producer = make_producer(kafka, queue_buffering_max_messages=IMPRESSIONS + CLICKS)
    for number in range(IMPRESSIONS):
        time_ms = END_MS - BACKLOG_MS + number * BACKLOG_MS // IMPRESSIONS
        event = {"schema_version": 1, "request_id": f"r{number}", "timestamp_ms": time_ms}
        shown = event | {"user_id": number, "item_ids": [7], "context": {"hour": 3}}
        producer.produce(topics.impressions, json.dumps(shown), f"r{number}", timestamp=time_ms)
    for number in range(0, IMPRESSIONS, IMPRESSIONS // CLICKS):
        time_ms = END_MS - BACKLOG_MS + number * BACKLOG_MS // IMPRESSIONS + number % CLICK_DELAY_MS
        event = {"schema_version": 1, "request_id": f"r{number}", "timestamp_ms": time_ms}
        producer.produce(
            topics.actions, json.dumps(event | {"item_id": 7, "action": "click"}), f"r{number}", timestamp=time_ms
        )
    flush_or_raise(producer)
    return topics


@pytest.fixture
def train_rows(kafka: KafkaConnection, backlog: Topics) -> Iterator[Callable[[], np.ndarray]]:
    """The labels of all rows that the train topic has so far."""
    reader = PartitionReader(kafka, {(backlog.train("feed"), partition): 0 for partition in range(PARTITIONS)})
    labels: list[np.ndarray] = []

    def read() -> np.ndarray:
        for block in reader.read(1000, 0.1):
            batches = [record_batch.from_bytes(value or b"") for value in block.values]
            labels.extend(batch.column(record_batch.LABEL).values.to_numpy() for batch in batches)
        return np.concatenate(labels) if labels else np.empty(0, np.float32)

    yield read
    reader.close()


def test_records_of_a_backlog_are_given_once_and_none_long_after_younger_ones(
    kafka: KafkaConnection, backlog: Topics
) -> None:
    start = resolve_topics(kafka, [backlog.impressions, backlog.actions], "earliest", "g")
    reader = KafkaSource(kafka, tuple(start.items()), backlog.prefix, ReaderSettings()).create_reader(None, None)
    assert isinstance(reader, KafkaBlockReader)
    times: list[np.ndarray] = []

    def read_on() -> bool:
        while reader.advance():
            times.append(reader.get_current().column("timestamp_ms").to_numpy())
        return sum(reader.get_checkpoint_mark().positions.values()) >= IMPRESSIONS + CLICKS

    wait_until(read_on, ROWS_SECONDS, "every record")
    reader.close()
    in_order = np.concatenate(times)
    assert len(in_order) == IMPRESSIONS + CLICKS
    late_ms = np.maximum.accumulate(in_order) - in_order
    assert late_ms.max() < BACKLOG_MS / 10  # 2000 records span 7 s


def test_a_backlog_of_ten_minutes_gives_its_clicks_as_positives(
    kafka: KafkaConnection,
    backlog: Topics,
    train_rows: Callable[[], np.ndarray],
    start_millrace: Callable[..., ChildProcess],
    tmp_path: Path,
) -> None:
    feed = start_millrace(
        "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", kafka.bootstrap_servers,
        "--topic-prefix", backlog.prefix, "--work-dir", str(tmp_path), "--start", "earliest", "--window-seconds", "1",
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    wait_until(lambda: len(train_rows()) >= IMPRESSIONS, ROWS_SECONDS, "every row in the train topic")
    labels = train_rows()
    assert len(labels) == IMPRESSIONS
    assert (labels > 0).sum() >= 0.99 * CLICKS
    assert feed.stop() == 0
