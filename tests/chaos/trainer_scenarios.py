"""Scenarios of a trainer that counts what it learns; each function strikes a world and counts its rows."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import flush_or_raise, make_producer
from millrace.runtime.servers.dev_servers import KafkaServer
from millrace.training.state.checkpoint import verify_checkpoint
from millrace.training.state.lease import read_owner
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.provenance import provenance_of
from tests.chaos.audit import Audit
from tests.chaos.feed_world import PARTITIONS, READY_SECONDS, FeedWorld
from tests.chaos.served import Served
from tests.chaos.trainer_world import MODEL_TASK, TrainerWorld, check, metric
from tests.fakes.poison import BLOCK_FAULTS, ROW_FAULTS
from tests.fakes.train_blocks import make_batch

_IN_USE, _REPLACED = 2, 3  # exit codes of a trainer
_DISK_BYTES = 128 << 20
_RATE = 400
_POISON_PARTITION = 60  # of the source, where a feed of a topic with four partitions has no rows
_POISONED_FIRST, _POISON_RECORDS = 1000, 10
_PREDICTION_BYTES = 5  # of a record of predictions.bin


def trainer_stands_still(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The trainer gets SIGSTOP while blocks are sent, and SIGCONT later."""
    model_dir = folder / "model"
    with TrainerWorld(server, folder) as world:
        sender = world.send()
        trainer = world.start_trainer(model_dir, "trainer")
        world.learn_more(model_dir, trainer)
        os.kill(trainer.pid, signal.SIGSTOP)
        try:
            sender.send_for(stop_seconds)
        finally:
            os.kill(trainer.pid, signal.SIGCONT)
        world.learn_more(model_dir, trainer)
        return world.audit(model_dir, trainer)


def train_topic_anew(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The train topic is deleted and made again while the trainer runs, and the blocks that it learned come again."""
    model_dir = folder / "model"
    with TrainerWorld(server, folder) as world:
        world.send()
        trainer = world.start_trainer(model_dir, "trainer")
        world.learn_more(model_dir, trainer)
        world.drain(model_dir, trainer)  # what a deleted topic held unread is lost with it
        world.make_anew(world.train_topic)
        world.send(again=True)
        world.learn_more(model_dir, trainer)
        return world.audit(model_dir, trainer)


def two_trainers_one_folder(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """A second trainer of the folder is refused; a spare takes over from the first one, which is killed."""
    model_dir = folder / "model"
    with TrainerWorld(server, folder) as world:
        world.send()
        first = world.start_trainer(model_dir, "first")
        served = Served(world, model_dir)
        world.learn_more(model_dir, first)
        second = world.start_trainer(model_dir, "second", wait=False)
        wait_until(lambda: check(first) and not second.running(), READY_SECONDS, "the second trainer ends")
        if second.exit_code != _IN_USE:
            raise AssertionError(f"the second trainer ended with {second.exit_code}, not {_IN_USE}")
        spare = world.start_trainer(model_dir, "spare", "--wait-for-lease", wait=False)
        wait_until(lambda: "waiting for the lease" in spare.log_path.read_text(), READY_SECONDS, "the spare waits")
        world.learn_more(model_dir, first)
        first.kill()
        spare.wait_ready(READY_SECONDS)
        world.learn_more(model_dir, spare)
        _check_epoch(model_dir, 2)
        world.drain(model_dir, spare)
        served.check_equals(model_dir, spare)
        return world.audit(model_dir, spare)


def two_trainers_two_folders(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """A trainer of a copy of the folder begins: the first one ends, and servers of its exports follow the second."""
    model_dir, copy = folder / "model", folder / "copy"
    with TrainerWorld(server, folder) as world:
        world.send()
        first = world.start_trainer(model_dir, "first")
        served = Served(world, model_dir)
        world.learn_more(model_dir, first)
        os.kill(first.pid, signal.SIGSTOP)  # as a snapshot of a volume is taken in one moment
        try:
            shutil.copytree(model_dir, copy)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        world.learn_more(model_dir, first)
        second = world.start_trainer(copy, "second")
        wait_until(lambda: check(second) and not first.running(), READY_SECONDS, "the first trainer ends")
        if first.exit_code != _REPLACED:
            raise AssertionError(f"the first trainer ended with {first.exit_code}, not {_REPLACED}")
        world.learn_more(copy, second)
        _check_epoch(copy, 2)
        world.drain(copy, second)
        served.check_equals(copy, second)
        return world.audit(copy, second)


def disk_full(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """The disk of the model directory is full for a while; then training, checkpoints and exports go on."""
    with _small_disk(folder / "disk") as disk, TrainerWorld(server, folder) as world:
        model_dir = disk / "model"
        world.send()
        trainer = world.start_trainer(model_dir, "trainer")
        world.learn_more(model_dir, trainer)
        wait_until(lambda: check(trainer) and bool(_exports(model_dir)), READY_SECONDS, "an export")
        wait_until(
            lambda: _fill(disk) and check(trainer) and all(metric(trainer, name) >= 2 for name in _FAILURES),
            READY_SECONDS,
            "checkpoints and exports fail",
            0.2,
        )
        before = _exports(model_dir)
        (disk / "ballast").unlink()
        world.learn_more(model_dir, trainer)
        wait_until(lambda: check(trainer) and bool(_exports(model_dir) - before), READY_SECONDS, "another export")
        audit = world.audit(model_dir, trainer)
        _check_folder(model_dir)
        return audit


def poisoned_blocks(server: KafkaServer, folder: Path, stop_seconds: float) -> Audit:
    """Poisoned blocks and rows come beside those of a feed; what is clean is learned, the rest are dead letters."""
    model_dir = folder / "model"
    with FeedWorld("prism", server, folder, flags=("--audit",)) as feed, TrainerWorld(server, folder) as world:
        feed.send(_RATE)
        trainer = world.start_trainer(model_dir, "trainer")
        world.learn_more(model_dir, trainer)
        clean, letters = _send_poison(world)
        world.learn_more(model_dir, trainer)
        feed.stop_sending()
        fed = [audit_fid(*ledger.rows()[:3]) for ledger in feed.ledgers]
        audit = world.audit(model_dir, trainer, [*fed, *clean], letters)
        feed.feed.check()
        return audit


def _check_epoch(model_dir: Path, epoch: int) -> None:
    if (found := read_owner(model_dir).epoch) != epoch:
        raise AssertionError(f"the folder is of epoch {found}, not {epoch}")


_FAILURES = ('millrace_save_failures_total{what="checkpoint"}', 'millrace_save_failures_total{what="export"}')


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # also while a file is still open


def _fill(disk: Path) -> bool:
    """Leaves no byte; True."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return True


def _exports(model_dir: Path) -> set[int]:
    return {int(path.name) for path in (model_dir / "exports" / "standalone").glob("[0-9]*")}


def _check_folder(model_dir: Path) -> None:
    """Raises unless the folder holds whole files only."""
    left = [str(path) for path in model_dir.glob("**/temp-*")]
    if left:
        raise AssertionError(f"left over: {left}")
    for checkpoint in (model_dir / "checkpoints").iterdir():
        verify_checkpoint(checkpoint)
    for line in (model_dir / "progress.jsonl").read_text("utf-8").splitlines():
        json.loads(line)
    if (model_dir / "predictions.bin").stat().st_size % _PREDICTION_BYTES:
        raise AssertionError("predictions.bin ends within a record")


def _send_poison(world: TrainerWorld) -> tuple[list[np.ndarray], int]:
    """Sends each kind of poison once; returns audit fids of the clean rows in it, and the number of dead letters."""
    producer, clean, letters = make_producer(world.kafka), [], 0
    first = _POISONED_FIRST

    def block() -> pa.RecordBatch:
        nonlocal first
        first += _POISON_RECORDS
        # With ids that the feed's world has not: its users like other items, which would be poison to the guard.
        return make_batch(MODEL_TASK, first, _POISON_RECORDS, partition=_POISON_PARTITION, first_id=1_000_000)

    for reason, change in BLOCK_FAULTS.values():
        if reason != "too_large":  # the broker refuses those
            producer.produce(world.train_topic, change(block()), partition=letters % PARTITIONS)
            letters += 1
    for index, (_, change_row) in enumerate(ROW_FAULTS.values()):
        batch = block()
        producer.produce(
            world.train_topic, record_batch.to_bytes(change_row(batch, index)), partition=index % PARTITIONS
        )
        clean.append(np.delete(audit_fid(*provenance_of(batch)), index))
        letters += 1
    flush_or_raise(producer)
    return clean, letters


TRAINER_SCENARIOS = {
    "trainer-stands-still": trainer_stands_still,
    "train-topic-anew": train_topic_anew,
    "two-trainers-one-folder": two_trainers_one_folder,
    "two-trainers-two-folders": two_trainers_two_folders,
    "disk-full": disk_full,
    "poisoned-blocks": poisoned_blocks,
}
