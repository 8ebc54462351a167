"""Checkpoints: exactly what was cut comes back; anything damaged is passed over by name."""

import functools
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.errors import UserError
from millrace.training.state.checkpoint import (
    CheckpointError,
    Checkpoints,
    newest_manifest,
    read_audit,
    verify_checkpoint,
)
from millrace.training.state.save_schedule import SaveSchedule
from millrace.training.state.saver import Saver
from millrace.training.step.train_step import AUDIT_TABLE, TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Passed, Position
from millrace.transforms.batch.fid import audit_fid
from tests.conformance.covers import covers
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
BATCHES = [make_batch(TASK, i * 8, 8) for i in range(6)]


class Trainer:
    """A step and a position that learn given batches."""

    def __init__(self) -> None:
        self.queue = BatchQueue(TrainLayout.of(TASK, audit=True), "test-checkpoint")
        store, audit = new_stores(TASK, self.queue.name, audit=True)
        self.step, self.position = TrainStep(TASK, store, self.queue, audit), Position()

    def learn(self, index: int) -> None:
        batch = BATCHES[index]
        ticket = Ticket.of(batch, 1)
        self.queue.put(ticket, batch)
        self.step.step()
        self.position.applied(ticket.partition, ticket.offset, ticket.row)
        self.position.passed(Passed({0: index + 1}))

    def save(self, checkpoints: Checkpoints, sequence: int = 0) -> Path:
        cut = checkpoints.cut(self.step, self.position, sequence, prediction_rows=5)
        checkpoints.finish(cut)
        return cut.folder

    def state(self) -> dict[str, Any]:
        tables = {t.name: self.step.store.dump(t.name, with_state=True) for t in TASK.tables()}
        dense = [v.numpy() for v in (*self.step.dense.variables, *(o.value for o in self.step.optimizer.variables))]
        assert self.step.audit_store is not None
        audit = self.step.audit_store.dump(AUDIT_TABLE.name)
        flat = {f"{name}{i}": array for name, pair in tables.items() for i, array in enumerate(pair)}
        return flat | {f"dense{i}": v for i, v in enumerate(dense)} | {"audit0": audit[0], "audit1": audit[1]}


def checkpoints_in(folder: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, TASK.name, TASK.schema_fingerprint(), **settings)


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    for name in left:
        assert np.array_equal(left[name], right[name]), name


@covers("emb:K3")
def test_a_schedule_by_steps_writes_nothing_at_the_start_the_last_step_at_the_end_and_at_once_on_demand(
    tmp_path: Path,
) -> None:
    def saved_steps(name: str) -> list[str]:
        return sorted(path.parent.name for path in (tmp_path / name).glob("checkpoints/*/manifest.json"))

    with ThreadPoolExecutor(1) as thread:
        for name in ("at the end", "on demand"):
            trainer, checkpoints = Trainer(), checkpoints_in(tmp_path / name)
            cut = functools.partial(checkpoints.cut, trainer.step, trainer.position, delta_sequence=0)
            saver = Saver("checkpoint", SaveSchedule(every_steps=100), cut, checkpoints.finish, thread)
            assert not saver.start_if_due(0)
            trainer.learn(0)
            assert not saver.start_if_due(1)
            assert saved_steps(name) == []
            if name == "at the end":
                saver.save_at_end(1)
            else:
                saver.schedule.force()
                assert saver.start_if_due(1)
                saver.wait()
            assert saved_steps(name) == ["1"]


def test_restoring_at_every_step_gives_the_same_model_as_never_stopping(tmp_path: Path) -> None:
    straight = Trainer()
    for index in range(len(BATCHES)):
        straight.learn(index)
    checkpoints = checkpoints_in(tmp_path)
    for index in range(len(BATCHES)):
        trainer = Trainer()
        restored = checkpoints.restore(trainer.step)
        trainer.position = restored.position
        assert restored.position.offsets == ({0: index} if index else {})
        trainer.learn(index)
        trainer.save(checkpoints)
    assert_equal(trainer.state(), straight.state())
    fids, counts = read_audit(tmp_path)
    sent = np.concatenate([audit_fid(*_provenance(batch)) for batch in BATCHES])
    assert sorted(fids.tolist()) == sorted(sent.tolist()) and set(counts.tolist()) == {1.0}


def _provenance(batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ticket = Ticket.of(batch, 1)
    return ticket.partition, ticket.offset, ticket.row


def test_what_happens_after_the_cut_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    trainer, checkpoints = Trainer(), checkpoints_in(tmp_path)
    trainer.learn(0)
    before = trainer.state()
    cut = checkpoints.cut(trainer.step, trainer.position, delta_sequence=3)
    trainer.learn(1)
    checkpoints.finish(cut)
    other = Trainer()
    restored = checkpoints.restore(other.step)
    assert_equal(other.state(), before)
    assert (restored.position.rows_applied, restored.position.offsets) == (BATCHES[0].num_rows, {0: 1})
    assert (restored.global_step, restored.delta_sequence) == (1, 3)


@pytest.fixture
def two_saved(tmp_path: Path) -> tuple[Path, Path, Checkpoints]:
    trainer, checkpoints = Trainer(), checkpoints_in(tmp_path)
    trainer.learn(0)
    older = trainer.save(checkpoints)
    trainer.learn(1)
    return older, trainer.save(checkpoints), checkpoints


@pytest.mark.parametrize(
    "damaged",
    [
        "tables/user.shard-00000-of-00001.part-00000-of-00001.table",
        "dense/variables.index",
        "offsets.json",
        "seen.arrow",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_the_file(
    two_saved: tuple[Path, Path, Checkpoints], damaged: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer, checkpoints = two_saved
    path = newer / damaged
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(Trainer().step)
    assert restored.name == older.name
    assert str(path) in caplog.text


def test_a_crash_before_the_manifest_leaves_the_checkpoint_before(two_saved: tuple[Path, Path, Checkpoints]) -> None:
    older, newer, checkpoints = two_saved
    trainer = Trainer()
    checkpoints.restore(trainer.step)
    trainer.learn(2)
    checkpoints.cut(trainer.step, trainer.position, 0)
    assert checkpoints.restore(Trainer().step).name == newer.name
    newest = newest_manifest(newer.parents[1])
    assert newest is not None and newest[1].rows_applied == 2 * BATCHES[0].num_rows


def test_a_save_that_fails_leaves_nothing_behind(
    two_saved: tuple[Path, Path, Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, checkpoints = two_saved
    trainer = Trainer()
    checkpoints.restore(trainer.step)
    trainer.learn(2)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    cut = checkpoints.cut(trainer.step, trainer.position, 0)
    monkeypatch.setattr("millrace.training.state.checkpoint.sync_tree", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.finish(cut)
    assert sorted(first.parent.iterdir()) == [first, second]


def test_what_a_killed_process_left_goes_with_the_next_save(two_saved: tuple[Path, Path, Checkpoints]) -> None:
    first, second, checkpoints = two_saved
    (second / "manifest.json").unlink()
    trainer = Trainer()
    checkpoints.restore(trainer.step)
    trainer.learn(1)
    trainer.learn(2)
    saved = trainer.save(checkpoints)
    assert sorted(first.parent.iterdir()) == [first, saved]


def test_only_the_newest_three_are_kept(tmp_path: Path) -> None:
    trainer, checkpoints = Trainer(), checkpoints_in(tmp_path)
    for index in range(5):
        trainer.learn(index)
        trainer.save(checkpoints)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4", "5"]


def test_a_checkpoint_of_another_declaration_is_refused_by_name(two_saved: tuple[Path, Path, Checkpoints]) -> None:
    _, newer, _ = two_saved
    other = Checkpoints(newer.parents[1], TASK.name, "0123456789abcdef")
    with pytest.raises(UserError, match="schema fingerprint.*0123456789abcdef"):
        other.restore(Trainer().step)


def test_a_manifest_of_another_format_is_refused(two_saved: tuple[Path, Path, Checkpoints]) -> None:
    _, newer, _ = two_saved
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"format_version": 9}))
    with pytest.raises(CheckpointError, match="format version 9"):
        verify_checkpoint(newer)
