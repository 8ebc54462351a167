"""The bounded feed on Beam's Direct runner: labels, dead letters, repeatability; and what wrong settings say."""

import gzip
import json
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import REGISTRY

from millrace.pipelines.feed import folder as file_io
from millrace.pipelines.feed.launch import FeedFailedError, run_feed
from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings, Tuning
from millrace.pipelines.feed.source import DeadLetterWatch
from millrace.pipelines.traffic import bad_records
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topic_reader import Record, TopicReader
from millrace.runtime.topics import Topics
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.rows_folder import SUCCESS

WINDOW_SECONDS = 5.0
TIME_MS = 1_764_000_000_000
COUNT = 200
TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")


def config(**changes: Any) -> FeedConfig:
    features = (FidFeature("user", 1, "user_id"), FidFeature("item", 2, "item_id"))
    settings = {"window_seconds": WINDOW_SECONDS, **changes}
    return FeedConfig("m", features, (LabelRule("click", ("click", "like")),), **settings)


@dataclass
class World:
    """Events as JSON lines; by row, the label of each (request id, item) and what kind of action followed."""

    impressions: list[bytes] = field(default_factory=list)
    actions: list[bytes] = field(default_factory=list)
    labels: dict[tuple[str, int], float] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)


def make_world(count: int = COUNT, seed: int = 1) -> World:
    """Impressions of two items; clicks in time and late, and actions that are no label."""
    draw = random.Random(seed)
    world = World()
    for number in range(count):
        request, shown_ms = f"r{number}", TIME_MS + 10 * number
        items = draw.sample(range(50), 2)
        event = {"schema_version": 1, "request_id": request, "user_id": number % 9, "timestamp_ms": shown_ms}
        world.impressions.append(json.dumps({**event, "item_ids": items}).encode())
        for item in items:
            kind = draw.choice(("none", "click", "like", "share", "late"))
            delay_ms = 6000 if kind == "late" else draw.randrange(0, 5000)
            world.kinds.append(kind)
            world.labels[request, item] = float(kind in ("click", "like"))
            if kind != "none":
                name = "click" if kind == "late" else kind
                action = {"schema_version": 1, "request_id": request, "item_id": item, "action": name}
                world.actions.append(json.dumps({**action, "timestamp_ms": shown_ms + delay_ms}).encode())
    return world


def write_lines(path: Path, lines: Sequence[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def run_files(folder: Path, world: World, name: str = "rows", **changes: Any) -> tuple[Path, dict[str, int]]:
    """Feeds `world` from one file of actions and two of impressions, one of them compressed."""
    folder.mkdir(exist_ok=True)
    half = len(world.impressions) // 2
    write_lines(folder / "impressions-0.json", world.impressions[:half])
    write_lines(folder / "impressions-1.json.gz", world.impressions[half:])
    write_lines(folder / "actions.json", world.actions)
    source = FileSettings(str(folder / "impressions-*"), str(folder / "actions.json"))
    return run_bounded(folder / name, source, **changes)


def run_bounded(
    rows: Path | None, source: FileSettings | KafkaSettings, join_shards: int = 2, **changes: Any
) -> tuple[Path, dict[str, int]]:
    options = FeedOptions(config(**changes), source, rows, "direct", tuning=Tuning(join_shards))
    counters = run_feed(options, threading.Event())
    return rows or Path(), counters


def read_rows(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def labels_of(rows: pa.Table) -> dict[tuple[str, int], float]:
    keys = zip(rows[record_batch.REQ_ID].to_pylist(), rows[record_batch.ITEM_ID].to_pylist(), strict=True)
    found = dict(zip(keys, (label for (label,) in rows[record_batch.LABEL].to_pylist()), strict=True))
    assert len(found) == rows.num_rows, "a row came twice"
    return found


def provenance(rows: pa.Table) -> set[tuple[int, int, int]]:
    names = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
    return set(zip(*(rows[name].to_pylist() for name in names), strict=True))


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def fed(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """(folder of Parquet files, counters) of one run."""
    return run_files(tmp_path_factory.mktemp("feed"), world)


def test_every_row_leaves_once_with_the_label_that_its_actions_give(
    world: World, fed: tuple[Path, dict[str, int]]
) -> None:
    rows = read_rows(fed[0])
    assert labels_of(rows) == world.labels
    half = COUNT // 2
    assert provenance(rows) == {(n // half, n % half, row) for n in range(COUNT) for row in (0, 1)}
    assert set(rows[record_batch.SAMPLE_RATE].to_pylist()) == {1.0}


def test_counters_tell_what_became_of_every_row_and_action(world: World, fed: tuple[Path, dict[str, int]]) -> None:
    counters, positives = fed[1], int(sum(world.labels.values()))
    assert counters["impression_rows"] == 2 * COUNT
    assert counters["actions"] == len(world.actions)
    assert counters["rows_emitted_positive"] == positives
    assert counters["rows_emitted_negative"] == 2 * COUNT - positives
    assert counters["late_actions"] == world.kinds.count("late") > 0
    assert counters["ignored_actions"] == world.kinds.count("share") > 0


def test_the_marker_is_there_and_says_how_the_rows_were_made(fed: tuple[Path, dict[str, int]]) -> None:
    marker = json.loads((fed[0] / SUCCESS).read_text("utf-8"))
    assert marker["counters"] == fed[1]
    assert marker["config"] == config().to_json()
    assert {path.suffix for path in fed[0].iterdir() if path.name != SUCCESS} == {".parquet", ""}
    assert [path.name for path in fed[0].iterdir() if path.is_dir()] == ["routed-actions"]


def test_the_order_of_events_in_their_files_does_not_matter(
    world: World, fed: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    draw = random.Random(5)
    shuffled = replace(
        world,
        impressions=draw.sample(world.impressions, COUNT),
        actions=draw.sample(world.actions, len(world.actions)),
    )
    folder, counters = run_files(tmp_path, shuffled)
    assert labels_of(read_rows(folder)) == world.labels
    assert counters == fed[1]


def test_bad_records_become_dead_letters_and_their_neighbours_survive(world: World, tmp_path: Path) -> None:
    impressions, expected = mix(world.impressions, bad_records.IMPRESSIONS, 100, "events.impressions")
    actions, more = mix(world.actions, bad_records.ACTIONS, 1 << 30, "events.actions")
    write_lines(tmp_path / "impressions-0.json", impressions[:100])
    write_lines(tmp_path / "impressions-1.json", impressions[100:])
    write_lines(tmp_path / "actions.json", actions)
    source = FileSettings(str(tmp_path / "impressions-*"), str(tmp_path / "actions.json"))
    folder, counters = run_bounded(tmp_path / "rows", source)

    assert labels_of(read_rows(folder)) == world.labels
    letters = read_rows(folder / "dead-letters").to_pylist()
    found = {(each["topic"], each["partition"], each["offset"]): each["reason"] for each in letters}
    assert found == expected | more and len(letters) == len(found)
    assert sum(count for name, count in counters.items() if name.startswith("dead_letters_")) == len(found)
    for each in letters:
        lines = actions if each["topic"] == "events.actions" else impressions[100 * each["partition"] :]
        line = lines[each["offset"]]
        assert line.startswith(each["value"]) and each["truncated_from"] in (None, len(line))
        assert (each["truncated_from"] is not None) == (len(line) > len(each["value"]))


def mix(
    lines: Sequence[bytes], kinds: Any, per_file: int, topic: str
) -> tuple[list[bytes], dict[tuple[str, int, int], str]]:
    """`lines` with one bad record of each kind among them, and {(topic, file, line): reason}."""
    mixed, expected = list(lines), {}
    for position, (reason, build) in enumerate(kinds.values()):
        value = build(TIME_MS)
        if value:  # an empty line of a file is no record
            mixed.insert(7 * position, value)
            expected[7 * position] = reason.value
    return mixed, {(topic, n // per_file, n % per_file): reason for n, reason in expected.items()}


def test_one_seed_gives_the_same_bytes_and_another_keeps_other_negatives(world: World, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> tuple[dict[str, bytes], dict[str, int], pa.Table]:
        folder, counters = run_files(tmp_path, world, name, negative_rate=0.5, seed=seed)
        return {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}, counters, read_rows(folder)

    first, counters, rows = run("first", seed=3)
    again, _, _ = run("again", seed=3)
    other, _, others = run("other", seed=4)
    assert first == again
    assert labels_of(rows).keys() != labels_of(others).keys()
    kept = labels_of(rows)
    assert counters["rows_dropped_negative_sampling"] + len(kept) == 2 * COUNT
    assert {key for key, label in world.labels.items() if label} <= kept.keys()
    # Positives too: the correction is one of the odds.
    assert set(rows[record_batch.SAMPLE_RATE].to_pylist()) == {0.5}


def test_a_run_that_fails_leaves_no_marker(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(file_io, "publish", fail)
    with pytest.raises(FeedFailedError, match="disk full") as caught:
        run_files(tmp_path, world)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rows" / SUCCESS).exists()


def test_a_folder_that_holds_something_is_not_written_to(world: World, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "old.parquet").touch()
    with pytest.raises(UserError, match="--output-parquet=.* not empty"):
        run_files(tmp_path, world)


# What a user sees


@pytest.mark.parametrize(
    ("flags", "mentions"),
    [
        (("--runner", "direct"), ("--runner=direct", "use --runner prism or flink", "--until end")),
        (("--runner", "spark"), ("--runner=spark", "unknown", "prism, flink, direct, dataflow")),
        (("--join-shards", "0"), ("--join-shards=0", "1..1024")),
        (("--output-parquet", "rows"), ("--output-parquet=rows", "unbounded", "--until end")),
    ],
    ids=["streaming on direct", "unknown runner", "no shards", "endless Parquet"],
)
def test_a_wrong_setting_gets_one_line(
    flags: tuple[str, ...], mentions: tuple[str, ...], assert_user_error: Callable[..., str]
) -> None:
    assert_user_error("feed", *TASK, "--kafka", "127.0.0.1:9", *flags, mentions=mentions)


def test_an_unknown_flag_gets_one_line(tmp_path: Path, assert_user_error: Callable[..., str]) -> None:
    for name in ("i", "a"):
        (tmp_path / name).touch()
    files = ("--impression-files", str(tmp_path / "i"), "--action-files", str(tmp_path / "a"))
    assert_user_error(
        "feed", *TASK, "--runner", "direct", *files, "--output-parquet", str(tmp_path / "rows"), "--wibble=3",
        mentions=["--wibble", "neither millrace nor Beam knows this flag"],
    )  # fmt: skip


@pytest.mark.service
def test_a_missing_topic_gets_one_line(
    kafka: KafkaConnection, topics: Topics, assert_user_error: Callable[..., str]
) -> None:
    flags = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
    assert_user_error("feed", *TASK, *flags, mentions=[topics.impressions, "does not exist"])


# A range of Kafka offsets


def produce(kafka: KafkaConnection, topic: str, values: Sequence[bytes]) -> None:
    producer = make_producer(kafka)
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % 2)
    flush_or_raise(producer, 30.0)


@pytest.mark.service
def test_a_range_of_offsets_becomes_parquet(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> None:
    world = make_world(seed=2)
    source = fill_topics(kafka, topics, world)
    folder, counters = run_bounded(tmp_path / "rows", source)
    # The first two impressions of each partition lie before --start, the surplus after --until.
    expected = {key: label for key, label in world.labels.items() if int(key[0][1:]) >= 4}
    rows = read_rows(folder)
    assert labels_of(rows) == expected
    assert {offset for _, offset, _ in provenance(rows)} == set(range(2, COUNT // 2))
    assert counters["impression_rows"] == len(expected)
    assert (folder / SUCCESS).exists()


@pytest.mark.service
def test_a_range_of_offsets_becomes_train_blocks_with_provenance(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    source = fill_topics(kafka, topics, make_world(seed=3))
    run_bounded(None, source)
    to_files, _ = run_bounded(tmp_path / "rows", source)

    records = read_topic(kafka, topics.train("m"), partitions=4)
    batches = [record_batch.from_bytes(record.value or b"") for record in records]
    rows, in_files = pa.Table.from_batches(batches), read_rows(to_files)
    assert labels_of(rows) == labels_of(in_files)
    assert provenance(rows) == provenance(in_files)
    shards: dict[int, set[int]] = {}
    for record, batch in zip(records, batches, strict=True):
        for user in batch.column(record_batch.UID).to_pylist():
            shards.setdefault(user, set()).add(record.partition)
    assert all(len(found) == 1 for found in shards.values()) and len(set.union(*shards.values())) > 1


def read_topic(kafka: KafkaConnection, topic: str, partitions: int) -> list[Record]:
    reader = TopicReader(kafka, topic, dict.fromkeys(range(partitions), 0))
    records: list[Record] = []

    def at_end() -> bool:
        records.extend(reader.read())
        return reader.reached_end()

    try:
        wait_until(at_end, 30.0, f"all of {topic} is read")
    finally:
        reader.close()
    return records


def fill_topics(kafka: KafkaConnection, topics: Topics, world: World) -> KafkaSettings:
    for topic in (topics.impressions, topics.actions):
        ensure_topic(kafka, topic, partitions=2)
    surplus = make_world(10, seed=9)
    produce(kafka, topics.impressions, [*world.impressions, *surplus.impressions])
    produce(kafka, topics.actions, world.actions)
    actions = len(world.actions)
    start = {"impressions": {"0": 2, "1": 2}, "actions": {"0": 0, "1": 0}}
    half = COUNT // 2
    until = {"impressions": {"0": half, "1": half}, "actions": {"0": (actions + 1) // 2, "1": actions // 2}}
    return KafkaSettings(kafka, topics, json.dumps(start), json.dumps(until))


def test_dead_letters_of_a_bundle_that_is_retried_count_once_on_the_endpoint() -> None:
    def counted() -> float:
        name, labels = "millrace_feed_dead_letters_total", {"reason": "malformed_json"}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    watch, before = DeadLetterWatch("test", 1.0), counted()
    block = raw_block("t", [b"{"], 0, [0])
    refusals = Refusals(block)
    refusals.add(np.array([0]), Reason.MALFORMED_JSON, "")
    for _ in range(3):  # the first two attempts fail before their end
        watch.start_bundle()
        watch.observe(block, refusals.to_batch())
    assert counted() == before
    watch.publish()
    assert counted() == before + 1
