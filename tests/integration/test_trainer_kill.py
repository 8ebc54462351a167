"""A real trainer process against a real broker: killed in mid-flight, restarted, and every row applied exactly once."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.topics import Topics
from millrace.training.state.checkpoint import newest_manifest, read_audit
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.provenance import provenance_of
from tests.conformance.covers import covers
from tests.fakes.topics import read_all
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

TASK = FeedRanking()
START_SECONDS = 90.0
RECORDS = 25


def blocks(start: int, stop: int) -> list[pa.RecordBatch]:
    return [make_batch(TASK, i * RECORDS, RECORDS, partition=i % 3) for i in range(start, stop)]


def rows_applied(model_dir: Path) -> int:
    newest = newest_manifest(model_dir)
    return newest[1].rows_applied if newest else 0


@pytest.fixture
def start_trainer(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_millrace: Callable[..., ChildProcess]
) -> Callable[..., ChildProcess]:
    def start(*saving: str) -> ChildProcess:
        trainer = start_millrace(
            "train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--audit",
            "--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--model-dir", str(tmp_path / "model"),
            "--batch-size", "64", *(saving or ("--checkpoint-seconds", "0.5", "--export-seconds", "2")),
        )  # fmt: skip
        trainer.wait_ready(START_SECONDS)
        return trainer

    return start


def test_a_killed_trainer_applies_every_row_exactly_once(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_trainer: Callable[..., ChildProcess]
) -> None:
    model_dir, train_topic = tmp_path / "model", topics.train(TASK.name)
    first, second, third = blocks(0, 150), blocks(150, 300), blocks(300, 320)
    sent = np.concatenate([audit_fid(*provenance_of(b)) for b in (*first, *second, *third)])

    produce_blocks(kafka, train_topic, first)
    trainer = start_trainer()
    wait_until(lambda: rows_applied(model_dir) > 0, 60.0, "a first checkpoint")
    # What a retried bundle of the feed writes twice, and then more.
    produce_blocks(kafka, train_topic, [*first[-40:], *second])
    at_kill = rows_applied(model_dir)
    wait_until(lambda: rows_applied(model_dir) > at_kill, 60.0, "another checkpoint")
    trainer.kill()

    produce_blocks(kafka, train_topic, [*third, *second[:10]])
    trainer = start_trainer()
    wait_until(lambda: rows_applied(model_dir) >= len(sent), 60.0, "all rows are in a checkpoint")
    trainer.stop()

    assert trainer.exit_code == 0
    fids, counts = read_audit(model_dir)
    assert sorted(fids.tolist()) == sorted(sent.tolist())
    assert set(counts.tolist()) == {1.0}
    check_progress(model_dir, len(sent))
    check_deltas(kafka, topics)
    check_events(kafka, topics, model_dir)


@covers("emb:K3")
def test_a_trainer_that_saves_by_steps_saves_at_once_on_sigusr1(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_trainer: Callable[..., ChildProcess]
) -> None:
    model_dir = tmp_path / "model"
    produce_blocks(kafka, topics.train(TASK.name), blocks(0, 1))
    trainer = start_trainer("--checkpoint-steps", "1000000")
    progress = model_dir / "progress.jsonl"
    wait_until(lambda: progress.exists() and '"rows_trained": 100' in progress.read_text(), 60.0, "rows are learned")
    assert rows_applied(model_dir) == 0
    os.kill(trainer.pid, signal.SIGUSR1)
    wait_until(lambda: rows_applied(model_dir) == RECORDS * 4, 60.0, "the checkpoint that was demanded")
    assert trainer.stop() == 0


def check_progress(model_dir: Path, rows: int) -> None:
    last = json.loads((model_dir / "progress.jsonl").read_text().splitlines()[-1])
    assert last["rows_trained"] == rows
    # Of a block that the cut went through, a restart reads the first part again.
    repeated = 50 * RECORDS * 4
    assert repeated <= last["rows_duplicate"] < repeated + 4 * RECORDS * 4
    assert 0.6 < last["auc"] < 1.0


def check_deltas(kafka: KafkaConnection, topics: Topics) -> None:
    deltas = [ModelDelta.FromString(record.value or b"") for record in read_all(kafka, topics.deltas(TASK.name))]
    assert [delta.sequence for delta in deltas] == list(range(1, len(deltas) + 1))
    assert {table.name for delta in deltas for table in delta.tables} == {table.name for table in TASK.tables()}
    assert deltas[-1].base_version > 0


def check_events(kafka: KafkaConnection, topics: Topics, model_dir: Path) -> None:
    records = read_all(kafka, topics.model_events)
    exports = [json.loads(r.value or b"") for r in records if r.key == b"default/feed"]
    versions = [int(event["version"]) for event in exports]
    assert versions == sorted(set(versions)) and all(event["kind"] == "EXPORT" for event in exports)
    kept = sorted(int(path.name) for path in (model_dir / "exports" / "standalone").iterdir() if path.name.isdecimal())
    assert versions[-1] in kept
    assert any(r.key == b"default/feed/checkpoint" for r in records)
    path = model_dir / "exports" / "standalone" / str(versions[-1])
    assert exports[-1]["sub_graphs"]["standalone"]["path"] == str(path)
    assert int(exports[-1]["created_at_ms"]) <= time.time_ns() // 1_000_000


def test_a_missing_train_topic_is_a_users_error(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, assert_user_error: Callable[..., str]
) -> None:
    assert_user_error(
        "train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--kafka", kafka.bootstrap_servers,
        "--topic-prefix", topics.prefix, "--model-dir", str(tmp_path), mentions=["train.feed", "does not exist"],
    )  # fmt: skip
