"""`millrace events` against a real broker: what is in the topics is what the ledger says."""

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.pipelines.traffic import bad_records
from millrace.pipelines.traffic.movielens import MovieLensSource
from millrace.pipelines.traffic.producer import EventProducer, ProducerConfig
from millrace.pipelines.traffic.source import GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig
from millrace.runtime.kafka_client import KafkaConnection, watermarks
from millrace.runtime.topic_reader import TopicReader
from millrace.runtime.topics import Topics
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.batch.raw_block import raw_block
from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.events import decode_actions, decode_impressions
from millrace.transforms.feed.join import join_bounded

pytestmark = pytest.mark.service

_CONFIG = FeedConfig(
    "m",
    (FidFeature("user", 1, "user_id"), FidFeature("hour", 2, "context.hour", "int64")),
    (LabelRule("click", ("click", "like")),),
)


def test_the_topics_hold_what_the_ledger_says(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> None:
    ledger_path = tmp_path / "ledger.parquet"
    config = ProducerConfig(rate=2000, duration_seconds=3, bad_records=1, ledger=ledger_path)
    source = GeneratedSource(EventWorld(WorldConfig(users=200, items=100)))
    summary = EventProducer(kafka, topics, source, config).run(threading.Event())

    impressions, bad_impressions = decode_impressions(
        _read_all(kafka, topics.impressions), _CONFIG.context_fields(), _now_ms()
    )
    actions, bad_actions = decode_actions(_read_all(kafka, topics.actions), _now_ms())
    assert bad_impressions.num_rows == len(bad_records.IMPRESSIONS)
    assert bad_actions.num_rows == len(bad_records.ACTIONS)
    assert summary["bad_records"] == bad_impressions.num_rows + bad_actions.num_rows
    assert summary["events"] == summary["impressions"] + summary["actions"] + summary["bad_records"]

    ledger = pq.read_table(ledger_path)
    assert json.loads(ledger_path.with_suffix(".json").read_text())["rows"] == ledger.num_rows == impressions.num_rows
    sent = audit_fid(*(ledger[name].to_numpy() for name in ("partition", "offset", "row")))
    assert np.array_equal(np.sort(sent), np.sort(audit_fid(*provenance_of(impressions))))
    assert actions.num_rows == summary["actions"]

    rows, _, counters = join_bounded(impressions, actions, _CONFIG)
    joined = pa.Table.from_batches([rows]).filter(pa.compute.list_value_length(rows["actions"]).cast(pa.bool_()))
    assert joined.num_rows == summary["rows_observed"]
    assert counters.late_actions == summary["actions_late"]
    assert set(joined["request_id"].to_pylist()) <= set(ledger.filter(ledger["observed"])["request_id"].to_pylist())


def test_a_stop_ends_the_run_with_a_ledger(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> None:
    stop = threading.Event()
    timer = threading.Timer(1.0, stop.set)
    timer.start()
    source = GeneratedSource(EventWorld(WorldConfig(users=50, items=50)))
    config = ProducerConfig(rate=500, ledger=tmp_path / "ledger.parquet")
    summary = EventProducer(kafka, topics, source, config).run(stop)
    timer.join()
    sent = sum(high - low for low, high in watermarks(kafka, topics.impressions).values())
    assert summary["impressions"] == sent == pq.read_table(config.ledger).num_rows / 3


def test_ratings_are_replayed_in_time_order(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> None:
    rows = ["userId,movieId,rating,timestamp", *(f"{i % 7},{i},{1 + i % 5},{2000 - i}" for i in range(300))]
    (tmp_path / "ratings.csv").write_text("\n".join(rows) + "\n")
    config = ProducerConfig(rate=5000, partitions=1)
    summary = EventProducer(kafka, topics, MovieLensSource(tmp_path), config).run(threading.Event())
    assert (summary["impressions"], summary["actions"], summary["auc_oracle"]) == (300, 300, None)
    fields = {"rated_at": "int64"}
    impressions, _ = decode_impressions(_read_all(kafka, topics.impressions), fields, _now_ms())
    assert impressions["item_id"].to_pylist() == list(range(299, -1, -1))
    assert impressions["context.rated_at"].to_pylist() == list(range(1701, 2001))
    actions, _ = decode_actions(_read_all(kafka, topics.actions), _now_ms())
    assert sorted(zip(actions["item_id"].to_pylist(), actions["value"].to_pylist(), strict=True)) == [
        (i, 1.0 + i % 5) for i in range(300)
    ]


def _now_ms() -> int:
    import time

    return int(time.time() * 1000)


def _read_all(kafka: KafkaConnection, topic: str) -> pa.RecordBatch:
    ends = watermarks(kafka, topic)
    reader = TopicReader(kafka, topic, {partition: low for partition, (low, _) in ends.items()})
    wanted, records = sum(high - low for low, high in ends.values()), []
    try:
        for _ in range(2000):
            if len(records) >= wanted:
                break
            records += reader.read()
    finally:
        reader.close()
    return raw_block(
        topic,
        [record.value for record in records],
        [record.partition for record in records],
        [record.offset for record in records],
        [record.timestamp_ms for record in records],
    )
