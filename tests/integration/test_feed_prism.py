"""The feed on Prism against a real broker: every row once with its label, and nothing lost when it is killed."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_consumer, make_producer
from millrace.runtime.kafka_positions import resolve_start
from millrace.runtime.kafka_records import PartitionReader
from millrace.runtime.topics import Topics
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.provenance import provenance_of, split_source_partition

pytestmark = pytest.mark.service

START_SECONDS = 90.0
ROWS_SECONDS = 60.0
NOW_MS = 1_764_000_000_000
ITEMS = (7, 8, 9)

Row = tuple[int, int, int]


@dataclass
class World:
    """Events as they were acknowledged: `rows` holds {provenance: label}, `bad` {(topic, partition, offset)}."""

    kafka: KafkaConnection
    topics: Topics
    rows: dict[Row, float] = field(default_factory=dict)
    bad: set[tuple[str, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._producer = make_producer(self.kafka)
        for topic in (self.topics.impressions, self.topics.actions, self.topics.train("feed")):
            ensure_topic(self.kafka, topic, partitions=4)

    def request(self, number: int) -> None:
        """An impression of three items; every second request gets a click on one of them."""
        name, clicked = f"r{number}", number % 3 if number % 2 else None
        value = {"schema_version": 1, "request_id": name, "user_id": number, "item_ids": ITEMS, "timestamp_ms": NOW_MS}

        def delivered(error: object, message: object) -> None:
            for row in range(len(ITEMS)):
                self.rows[message.partition(), message.offset(), row] = float(row == clicked)

        self._send(self.topics.impressions, name, json.dumps(value | {"context": {"hour": 3}}).encode(), delivered)
        if clicked is not None:
            self.action(number, ITEMS[clicked])

    def action(self, number: int, item: int) -> None:
        name = f"r{number}"
        value = {
            "schema_version": 1,
            "request_id": name,
            "item_id": item,
            "action": "click",
            "timestamp_ms": NOW_MS + 5,
        }
        self._send(self.topics.actions, name, json.dumps(value).encode())

    def bad_record(self, topic: str, value: bytes) -> None:
        def delivered(error: object, message: object) -> None:
            self.bad.add((topic, message.partition(), message.offset()))

        self._send(topic, "bad", value, delivered)

    def flush(self) -> None:
        flush_or_raise(self._producer)

    def _send(self, topic: str, key: str, value: bytes, on_delivery: Callable[..., None] | None = None) -> None:
        self._producer.produce(topic, value, key, on_delivery=on_delivery)
        self._producer.poll(0)


@dataclass
class TrainTopic:
    """What the train topic holds so far: {provenance: labels in order of arrival}."""

    kafka: KafkaConnection
    topic: str
    labels: dict[Row, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = PartitionReader(self.kafka, {(self.topic, partition): 0 for partition in range(4)})

    def read(self) -> int:
        """Reads on; returns the number of distinct rows."""
        for block in self._reader.read(1000, 0.05):
            for value, partition in zip(block.values, block.partitions, strict=True):
                batch = record_batch.from_bytes(value or b"")
                train_check.validate_train_batch(batch, heads=1)
                assert {uid % 4 for uid in batch.column(record_batch.UID).to_pylist()} <= {partition}
                numbers, offsets, rows = provenance_of(batch)
                _, plain = split_source_partition(numbers)
                keys = zip(plain.tolist(), offsets.tolist(), rows.tolist(), strict=True)
                for key, (label,) in zip(keys, batch.column(record_batch.LABEL).to_pylist(), strict=True):
                    self.labels.setdefault(key, []).append(label)
        return len(self.labels)

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def world(kafka: KafkaConnection, topics: Topics) -> World:
    return World(kafka, topics)


@pytest.fixture
def train_topic(world: World) -> Iterator[TrainTopic]:
    topic = TrainTopic(world.kafka, world.topics.train("feed"))
    yield topic
    topic.close()


@pytest.fixture
def start_feed(
    world: World, start_millrace: Callable[..., ChildProcess], tmp_path: object
) -> Callable[..., ChildProcess]:
    def start(*flags: str, name: str = "feed") -> ChildProcess:
        feed = start_millrace(
            "feed", "--task", "millrace.examples.feed_ranking:FeedRanking", "--kafka", world.kafka.bootstrap_servers,
            "--topic-prefix", world.topics.prefix, "--work-dir", str(tmp_path), *flags, name=name,
        )  # fmt: skip
        feed.wait_ready(START_SECONDS)
        return feed

    return start


def metric(feed: ChildProcess, name: str) -> float:
    """Sum of a counter whose labels, if given in `name`, are as there."""
    with urllib.request.urlopen(f"http://{feed.ready['metrics']}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_every_row_leaves_once_with_its_label_and_every_bad_record_is_a_dead_letter(
    world: World, train_topic: TrainTopic, start_feed: Callable[..., ChildProcess]
) -> None:
    feed = start_feed("--start", "earliest", "--window-seconds", "2")
    bad = [b"{", b"\xff\xfe", b"[]", b"null", b'{"schema_version": 9}', b"", json.dumps({"schema_version": 1}).encode()]
    for number in range(400):
        world.request(number)
        if number % 50 == 0:
            world.bad_record(world.topics.impressions, bad[number // 50 % len(bad)])
            world.bad_record(world.topics.actions, bad[number // 50 % len(bad)])
    world.flush()
    wait_until(lambda: train_topic.read() >= len(world.rows), ROWS_SECONDS, "every row in the train topic")
    for number in range(0, 40, 2):  # these rows have left as negatives
        world.action(number, ITEMS[0])
    world.flush()
    late = 'millrace_feed_join_total{outcome="late_actions"}'
    wait_until(lambda: metric(feed, late) == 20, ROWS_SECONDS, "the late actions counted")
    train_topic.read()
    assert train_topic.labels == {key: [label] for key, label in world.rows.items()}

    letters = make_consumer(world.kafka, f"{world.topics.prefix}letters")
    letters.subscribe([world.topics.dead_letter])
    found: list[dict[str, bytes]] = []

    def read_letters() -> int:
        found.extend(dict(message.headers()) for message in letters.consume(100, 0.05))
        return len(found)

    wait_until(lambda: read_letters() >= len(world.bad), ROWS_SECONDS, "every dead letter")
    letters.close()
    names = ("source-topic", "source-partition", "source-offset")
    places = {tuple(letter[name].decode() for name in names) for letter in found}
    assert len(found) == 16 and places == {(topic, str(p), str(o)) for topic, p, o in world.bad}
    assert metric(feed, "millrace_feed_dead_letters_total") == 16
    assert metric(feed, 'millrace_feed_rows_emitted_total{label="positive"}') == 200
    assert metric(feed, "millrace_feed_records_read_total") == 400 + 200 + 16 + 20
    assert feed.stop() == 0


def test_a_killed_feed_that_starts_from_its_group_loses_no_row(
    world: World, train_topic: TrainTopic, start_feed: Callable[..., ChildProcess]
) -> None:
    flags = ("--start", "group", "--group", f"{world.topics.prefix}g", "--window-seconds", "1")
    feed = start_feed(*flags)
    stop = threading.Event()

    def produce() -> None:
        number = 0
        while not stop.wait(0.01):
            world.request(number)
            number += 1

    events = threading.Thread(target=produce)
    events.start()
    try:

        def committed() -> int:
            return min(resolve_start(world.kafka, world.topics.impressions, "group", flags[3]).values())

        wait_until(lambda: committed() > 0, ROWS_SECONDS, "a commit that trails", 0.5)
        feed.kill()
        train_topic.read()
        restarted = start_feed(*flags, name="feed-again")
        before = train_topic.read()
        wait_until(lambda: train_topic.read() > before + 100, ROWS_SECONDS, "rows after the restart")
    finally:
        stop.set()
        events.join()
    world.flush()
    wait_until(lambda: train_topic.read() >= len(world.rows), ROWS_SECONDS, "every row in the train topic")
    assert set(train_topic.labels) == set(world.rows)
    # A trainer applies what comes first and drops repeats; only a repeat may lack its action.
    assert {key: labels[0] for key, labels in train_topic.labels.items()} == world.rows
    assert any(len(labels) > 1 for labels in train_topic.labels.values()), "nothing was read again"
    assert metric(restarted, "millrace_feed_records_read_total") > 0
    assert restarted.stop() == 0


def test_a_feed_whose_runner_dies_ends_with_one_line(start_feed: Callable[..., ChildProcess], tmp_path: Path) -> None:
    feed = start_feed("--start", "latest")
    children = Path(f"/proc/{feed.pid}/task/{feed.pid}/children").read_text("ascii").split()
    prism = [pid for pid in children if "prism" in Path(f"/proc/{pid}/cmdline").read_text("ascii")]
    os.kill(int(prism[0]), signal.SIGKILL)
    assert feed.wait(60.0) == 1
    failed = [line for line in feed.log_path.read_text("utf-8").splitlines() if "the feed failed: " in line]
    assert len(failed) == 1 and "the runner has ended" in failed[0]
