"""Recipes and stored topics with real brokers and runners: generated negatives on Flink, records on Prism, hours."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.pipelines.feed.backfill import Backfill, hour_units, run_backfill
from millrace.pipelines.feed.launch import run_feed
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.kafka_records import PartitionReader
from millrace.runtime.topics import Topics
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.provenance import ROWS_PER_RECORD, provenance_of, split_source_partition
from millrace.transforms.codecs.record_codec import encode_records
from tests.pipelines.feed.test_event_feed import config
from tests.reference.record_rows import random_rows

pytestmark = pytest.mark.service

START_SECONDS, ROWS_SECONDS = 120.0, 90.0
TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")
FIRST_HOUR = datetime(2026, 1, 31, 5, tzinfo=UTC)

Key = tuple[int, int, int]


class TrainRows:
    """Rows of a train topic so far; one that comes again must be the same."""

    def __init__(self, kafka: KafkaConnection, topic: str) -> None:
        self._reader = PartitionReader(kafka, {(topic, partition): 0 for partition in range(4)})
        self.rows: dict[Key, dict[str, object]] = {}

    def read(self) -> int:
        for block in self._reader.read(1000, 0.05):
            for value in block.values:
                batch = record_batch.from_bytes(value or b"")
                train_check.validate_train_batch(batch, heads=1)
                numbers, offsets, rows = provenance_of(batch)
                _, plain = split_source_partition(numbers)
                keys = zip(plain.tolist(), offsets.tolist(), rows.tolist(), strict=True)
                for key, row in zip(keys, batch.to_pylist(), strict=True):
                    assert self.rows.setdefault(key, row) == row
        return len(self.rows)

    def originals(self) -> set[Key]:
        return {key for key in self.rows if key[2] < ROWS_PER_RECORD}

    def close(self) -> None:
        self._reader.close()


def _send_events(kafka: KafkaConnection, topics: Topics, count: int, time_ms: Callable[[int], int]) -> None:
    """Impressions of two items, the first of which is clicked every second time; record times are event times."""
    producer = make_producer(kafka)
    for number in range(count):
        at, name = time_ms(number), f"r{number}"
        event = {"schema_version": 1, "request_id": name, "timestamp_ms": at}
        items = [number % 50, 50 + number % 40]
        shown = json.dumps(event | {"user_id": 1 + number % 9, "item_ids": items}).encode()
        producer.produce(topics.impressions, shown, name, timestamp=at)
        if number % 2:
            clicked = json.dumps(event | {"item_id": items[0], "action": "click", "timestamp_ms": at + 10}).encode()
            producer.produce(topics.actions, clicked, name, timestamp=at + 10)
        producer.poll(0)
    flush_or_raise(producer)


@pytest.mark.timeout(400)
def test_a_recipe_with_generated_negatives_runs_on_a_real_flink(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_millrace: Callable[..., ChildProcess]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps: [{generate_negatives: {neg_num: 2, item_features: [item], start_num: 20, negative_label: 0}}]", "utf-8"
    )
    for topic in (topics.impressions, topics.actions, topics.train("feed")):
        ensure_topic(kafka, topic, partitions=4)
    feed = start_millrace(
        "feed", *TASK, "--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--runner", "flink",
        "--start", "earliest", "--window-seconds", "2", "--recipe", str(recipe), "--work-dir", str(tmp_path / "flink"),
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    _send_events(kafka, topics, 300, lambda _: now_ms)
    train = TrainRows(kafka, topics.train("feed"))
    try:
        wait_until(lambda: train.read() >= 0 and len(train.originals()) >= 600, ROWS_SECONDS, "all rows")
    finally:
        train.close()
    assert feed.stop(30.0) == 0
    derived = {key: row for key, row in train.rows.items() if key[2] >= ROWS_PER_RECORD}
    assert len(derived) > 100
    for (partition, offset, row), made in derived.items():
        positive = train.rows[partition, offset, row % ROWS_PER_RECORD]
        assert (positive["__LABEL__"], made["__LABEL__"]) == ([1.0], [0.0])
        assert made["user"] == positive["user"] and made["item"] != positive["item"]


@pytest.mark.timeout(300)
def test_records_of_a_topic_become_train_rows_on_prism(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_millrace: Callable[..., ChildProcess]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{generate_negatives: {neg_num: 1, item_features: [item], start_num: 5}}]", "utf-8")
    source = f"{topics.prefix}examples"
    for topic in (source, topics.train("feed")):
        ensure_topic(kafka, topic, partitions=4)
    feed = start_millrace(
        "feed", *TASK, "--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--start", "earliest",
        "--records", "example", "--records-topic", source, "--recipe", str(recipe),
        "--work-dir", str(tmp_path / "feed"),
    )  # fmt: skip
    feed.wait_ready(START_SECONDS)
    producer = make_producer(kafka)
    for number, value in enumerate(encode_records(random_rows(400), "example").to_pylist()):
        producer.produce(source, value, partition=number % 4)
        producer.poll(0)
    producer.produce(source, b"\xff\xff", partition=0)
    flush_or_raise(producer)
    train, dead = TrainRows(kafka, topics.train("feed")), PartitionReader(kafka, {(topics.dead_letter, 0): 0})
    try:
        wait_until(lambda: train.read() >= 0 and len(train.originals()) >= 400, ROWS_SECONDS, "all rows")
        wait_until(
            lambda: any(block.values == [b"\xff\xff"] for block in dead.read(10, 0.1)), ROWS_SECONDS, "the bad one"
        )
    finally:
        train.close()
        dead.close()
    assert feed.stop(30.0) == 0
    assert len(train.originals()) == 400 < len(train.rows)


@pytest.mark.timeout(300)
def test_hours_of_a_topic_are_cut_without_a_gap_or_an_overlap(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    for topic in (topics.impressions, topics.actions):
        ensure_topic(kafka, topic, partitions=2)
    first_ms = int(FIRST_HOUR.timestamp() * 1000)
    _send_events(kafka, topics, 400, lambda number: first_ms + number * 27_000)  # three hours, one event in 27 s
    source = KafkaSettings(kafka, topics, "earliest", "end")
    options = FeedOptions(config(), source, tmp_path / "whole", "direct")
    run_feed(options, threading.Event())
    units = tuple(hour_units(options, FIRST_HOUR, FIRST_HOUR + timedelta(hours=3)))
    counters = run_backfill(Backfill(units, tmp_path / "hours"), threading.Event())
    assert [unit.name for unit in units] == [f"dt=20260131/hour=0{hour}" for hour in (5, 6, 7)]
    assert counters["impression_rows"] == 800
    whole, hours = (_rows(tmp_path / name) for name in ("whole", "hours"))
    assert whole == hours and len(whole) == 800


def _rows(folder: Path) -> dict[Key, tuple[object, object]]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.rglob("part-*.parquet")))
    names = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    keys = zip(*(table[name].to_pylist() for name in names), strict=True)
    values = zip(table[record_batch.REQ_ID].to_pylist(), map(str, table[record_batch.LABEL].to_pylist()), strict=True)
    found = dict(zip(keys, values, strict=True))
    assert len(found) == table.num_rows
    return found
