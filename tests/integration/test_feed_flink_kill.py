"""The feed on Flink with checkpoints: its Beam worker is killed while events flow, and every row is applied once."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.cli.loop import audit, figures
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import Deadline, wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic
from millrace.runtime.topics import Topics
from millrace.training.state.checkpoint import read_audit
from tests.fakes.worker_pool import WorkerPool

pytestmark = [pytest.mark.service, pytest.mark.slow]

TASK = ("--task", "millrace.examples.feed_ranking:FeedRanking")
# Events flow until so many rows were trained before the kill and again after it: some 10 s each.
RATE, ROWS = 500, 10_000
WINDOW_SECONDS = 3.0
STEP_SECONDS = 150.0
DRAIN_SECONDS = 60.0


@pytest.mark.timeout(600)
def test_a_killed_worker_on_flink_loses_no_row_and_doubles_none(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_millrace: Callable[..., ChildProcess]
) -> None:
    model_dir, ledger = tmp_path / "model", tmp_path / "ledger.parquet"
    for topic in (topics.impressions, topics.actions, topics.train("feed")):
        ensure_topic(kafka, topic, partitions=4)
    common = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix)
    window = ("--window-seconds", str(WINDOW_SECONDS))

    def trained_reach(rows: int) -> None:
        def reached() -> bool:
            assert all(process.running() for process in processes), [process.log_tail() for process in processes]
            return figures.rows_applied(model_dir) >= rows

        wait_until(reached, STEP_SECONDS, f"{rows} rows trained")

    with WorkerPool(tmp_path / "workers") as pool:
        feed = start_millrace(
            "feed", *TASK, *common, *window, "--runner", "flink", "--audit", "--start", "earliest",
            "--work-dir", str(tmp_path / "flink"),
            "--environment_type=EXTERNAL", f"--environment_config={pool.address}",
        )  # fmt: skip
        trainer = start_millrace(
            "train", *TASK, *common, "--online", "--audit", "--model-dir", str(model_dir),
            "--checkpoint-seconds", "3", "--export-seconds", "600",
        )  # fmt: skip
        processes = [feed, trainer]
        for process in processes:
            process.wait_ready(STEP_SECONDS)
        wait_until(lambda: bool(pool.worker_pids()), STEP_SECONDS, "a worker")
        producer = start_millrace("events", "generate", *common, *window, "--rate", str(RATE), "--ledger", str(ledger))
        processes.append(producer)

        trained_reach(ROWS)
        killed = pool.worker_pids()
        os.kill(killed[0], signal.SIGKILL)
        wait_until(lambda: bool(set(pool.worker_pids()) - set(killed)), STEP_SECONDS, "another worker")
        trained_reach(figures.rows_applied(model_dir) + ROWS)
        assert set(pool.worker_pids()).isdisjoint(killed)

        processes.remove(producer)
        assert producer.stop(60.0) == 0
        sent = figures.sent_fids(ledger, [])
        # What does not come within this time is lost; the audit tells how much that is.
        deadline = Deadline(DRAIN_SECONDS)
        while figures.rows_applied(model_dir) < len(sent) and not deadline.expired():
            time.sleep(0.5)
        assert trainer.stop(60.0) == 0
        assert feed.stop(60.0) == 0

    assert figures.ledger_summary(ledger)["undelivered"] == 0
    result = audit.audit_rows(sent, *read_audit(model_dir))
    assert (result.rows_lost, result.rows_duplicated, result.rows_unknown) == (0, 0, 0), result
    assert result.rows_trained == len(sent) >= 2 * ROWS
    # What was written since the last checkpoint comes again; all of it would mean that there was none.
    last = json.loads((model_dir / "progress.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["rows_duplicate"] < ROWS
