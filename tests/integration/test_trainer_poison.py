"""A trainer process that is fed poison: rows that no gate can know to be wrong, and rows that a gate must refuse."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import EmbeddingStore
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import Topics
from millrace.training.state.checkpoint import Checkpoints, newest_manifest
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.layout import TrainLayout
from millrace.transforms.batch import record_batch
from tests.benchmarks.bench_guard import KINDS
from tests.chaos.poison import make_ratings, run_seed
from tests.fakes.poison import BLOCK_FAULTS, ROW_FAULTS
from tests.fakes.train_blocks import make_batch

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]  # of processes that start one after another

TASK = FeedRanking()
SECONDS = 120.0
BATCH_ROWS = 64
BLOCK_RECORDS = 80  # 320 rows
POISONED_ROWS = (10, 110, 210)  # of each block: one row in a hundred
BLOCKS = 63  # 20 s at 1,000 rows per second
LARGEST_BYTES = 10_000_000  # the broker takes what the trainer refuses


def test_the_guard_stops_each_kind_of_poison_in_time_and_servers_follow_again_after_it(
    kafka: KafkaConnection, zookeeper: str, tmp_path: Path
) -> None:
    results = list(run_seed(kafka, zookeeper, make_ratings(tmp_path / "ratings"), 1, tmp_path / "run"))
    assert [result.line() for result in results if result.problem] == []
    assert {result.kind for result in results} == set(KINDS)


@pytest.fixture
def start_trainer(kafka: KafkaConnection, start_millrace: Callable[..., ChildProcess]) -> Callable[..., ChildProcess]:
    def start(topics: Topics, model_dir: Path, name: str) -> ChildProcess:
        # Batches are cut by their number of rows alone, so that the time at which blocks come changes nothing.
        return start_millrace(
            "train", "--task", "millrace.examples.feed_ranking:FeedRanking", "--online", "--audit",
            "--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--model-dir", str(model_dir),
            "--checkpoint-seconds", "1", "--batch-size", str(BATCH_ROWS), "--max-wait-ms", "1e9", name=name,
        )  # fmt: skip

    return start


def test_a_model_that_learns_for_20_seconds_among_poisoned_rows_equals_one_that_never_saw_them(
    kafka: KafkaConnection, topics: Topics, tmp_path: Path, start_trainer: Callable[..., ChildProcess]
) -> None:
    poisoned, kept = blocks_with_faults()
    batches = sum(block.num_rows for block in kept) // BATCH_ROWS
    clean_topics = Topics(f"{topics.prefix}clean.")
    for names in (topics, clean_topics):
        ensure_topic(kafka, names.train(TASK.name), config={"max.message.bytes": str(LARGEST_BYTES)})
    produce(kafka, clean_topics, [record_batch.to_bytes(block) for block in kept], 0.0)
    trainers = {
        tmp_path / name: start_trainer(names, tmp_path / name, f"train-{name}")
        for name, names in (("clean", clean_topics), ("poisoned", topics))
    }
    for trainer in trainers.values():
        trainer.wait_ready(SECONDS)
    produce(kafka, topics, poisoned, 20.0)
    for model_dir, trainer in trainers.items():
        wait_until(lambda: rows_applied(model_dir, trainer) == batches * BATCH_ROWS, SECONDS, "all rows are learned")  # noqa: B023
        assert trainer.stop(SECONDS) == 0
        assert rows_applied(model_dir) == batches * BATCH_ROWS
    wanted, found = (weights(model_dir) for model_dir in trainers)
    assert found == wanted and all(wanted.values())
    check_dead_letters(kafka, topics)


def blocks_with_faults() -> tuple[list[bytes], list[pa.RecordBatch]]:
    """(messages with poisoned rows and poisoned blocks between them, the blocks without those rows)."""
    faults = itertools.cycle(ROW_FAULTS.values())
    poisoned, kept = [], []
    for number in range(BLOCKS):
        whole = block = make_batch(TASK, number * BLOCK_RECORDS, BLOCK_RECORDS)
        for row in POISONED_ROWS:
            block = next(faults)[1](block, row)
        poisoned.append(record_batch.to_bytes(block))
        keep = np.ones(whole.num_rows, bool)
        keep[list(POISONED_ROWS)] = False
        kept.append(whole.filter(pa.array(keep)))
    for number, (_, change) in enumerate(BLOCK_FAULTS.values()):
        poisoned.insert(number * 5, change(make_batch(TASK, 1_000_000 + number * 10, 10)))
    return poisoned, kept


def produce(kafka: KafkaConnection, topics: Topics, values: list[bytes], seconds: float) -> None:
    """Sends the messages, evenly spread over these seconds."""
    producer = make_producer(kafka, **{"message.max.bytes": LARGEST_BYTES})
    begun = time.monotonic()
    for number, value in enumerate(values):
        time.sleep(max(0.0, begun + seconds * number / len(values) - time.monotonic()))  # the rate of the rows
        producer.produce(topics.train(TASK.name), value, partition=0)
        producer.poll(0)
    flush_or_raise(producer)


def rows_applied(model_dir: Path, trainer: ChildProcess | None = None) -> int:
    assert trainer is None or trainer.running(), trainer.log_tail()
    newest = newest_manifest(model_dir)
    return newest[1].rows_applied if newest else 0


def weights(model_dir: Path) -> dict[str, object]:
    """{name of a dense variable or table: its values, a table's with optimizer state} in the newest checkpoint."""
    queue = BatchQueue(TrainLayout.of(TASK, audit=True), model_dir.name)
    store, audit = new_stores(TASK, queue.name, audit=True)
    step = TrainStep(TASK, store, queue, audit, BATCH_ROWS)
    Checkpoints(model_dir, TASK.name, TASK.schema_fingerprint()).restore(step)
    found: dict[str, object] = {f"dense {i}": v.numpy().tolist() for i, v in enumerate(step.dense.variables)}
    for table in store.tables:
        fids, values = store.dump(table.name)
        order = np.argsort(fids)
        found[table.name] = fids[order].tolist(), values[order].tolist()
    for each in (store, audit):
        if each is not None:
            EmbeddingStore.release(each.shared_name)
    return found


def check_dead_letters(kafka: KafkaConnection, topics: Topics) -> None:
    """Each poisoned row and each poisoned block is there once, with its reason."""
    messages = itertools.chain.from_iterable(read_messages(resolve_range(kafka, topics.train_dead_letter)))
    letters = [(each.value(), dict(each.headers())["reason"].decode()) for each in messages]
    of_blocks = sorted(reason for reason, _ in BLOCK_FAULTS.values())
    assert sorted(reason for _, reason in letters if reason in of_blocks) == of_blocks
    rows = [(record_batch.from_bytes(value), reason) for value, reason in letters if reason not in of_blocks]
    faults = itertools.cycle(reason for reason, _ in ROW_FAULTS.values())
    wanted = sorted(itertools.islice(faults, BLOCKS * len(POISONED_ROWS)))
    assert sorted(itertools.chain.from_iterable([reason] * block.num_rows for block, reason in rows)) == wanted
