"""Checkpoints: exactly what was cut comes back; anything damaged is passed over by name."""

import functools
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW
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
from millrace.training.task import Task
from millrace.transforms.batch.fid import audit_fid
from tests.conformance.covers import covers
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
BATCHES = [make_batch(TASK, i * 8, 8) for i in range(6)]


class Trainer:
    """A step and a position that learn given batches."""

    def __init__(self, task: Task = TASK) -> None:
        self.queue = BatchQueue(TrainLayout.of(task, audit=True), "test-checkpoint")
        store, audit = new_stores(task, self.queue.name, audit=True)
        self.step, self.position = TrainStep(task, store, self.queue, audit), Position()

    def learn(self, index: int) -> None:
        batch = BATCHES[index]
        ticket = Ticket.of(batch, 1)
        self.queue.put(ticket, batch)
        self.step.step(NOW)
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
        "dense.npz",
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


class Layers(FeedRanking):
    """The task with dense layers of given names and widths, in this order; all are added up to the logit."""

    def __init__(self, **units: int) -> None:
        self._units = units

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        whole = keras.layers.Concatenate()(list(embeddings.values()))
        made = [keras.layers.Dense(units, name=name)(whole) for name, units in self._units.items()]
        return {"click": keras.layers.Dense(1, name="logit")(keras.layers.Concatenate()(made))}


def trained(task: Task, model_dir: Path) -> Trainer:
    """A trainer of `task` that has learned one batch and saved it."""
    trainer = Trainer(task)
    trainer.learn(0)
    trainer.save(checkpoints_in(model_dir))
    return trainer


def by_name(step: TrainStep) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in zip(step.dense.names, step.dense.variables, strict=True)}


def test_layers_that_changed_places_get_their_own_weights_and_slots_back(tmp_path: Path) -> None:
    before = trained(Layers(left=4, right=4), tmp_path)
    after = Trainer(Layers(right=4, left=4))
    checkpoints_in(tmp_path).restore(after.step)
    old, new = by_name(before.step), by_name(after.step)
    assert before.step.dense.names != after.step.dense.names
    for name in ("left/kernel", "right/kernel", "left/bias", "right/bias"):
        assert np.array_equal(old[name], new[name]), name
    slots = {v.path: v.numpy() for v in before.step.optimizer.variables}
    assert all(np.array_equal(slots[v.path], v.numpy()) for v in after.step.optimizer.variables)


def test_a_dense_model_that_does_not_fit_is_refused_with_the_names_of_both_sides(tmp_path: Path) -> None:
    trained(Layers(left=4, right=4), tmp_path)
    with pytest.raises(UserError) as other_width:
        checkpoints_in(tmp_path).restore(Trainer(Layers(left=4, right=5)).step)
    assert "model/right/bias [4] there, [5] in the task" in str(other_width.value)
    with pytest.raises(UserError) as other_name:
        checkpoints_in(tmp_path).restore(Trainer(Layers(left=4, middle=4)).step)
    text = str(other_name.value)
    assert text.index("only there:") < text.index("model/right/bias") < text.index("only in the task:")
    assert text.index("only in the task:") < text.index("model/middle/bias")


def test_a_changed_learning_rate_holds_after_a_restart_and_the_count_of_updates_goes_on(tmp_path: Path) -> None:
    class Slower(FeedRanking):
        dense_learning_rate = 0.125

    trained(TASK, tmp_path)
    restarted = Trainer(Slower())
    checkpoints_in(tmp_path).restore(restarted.step)
    assert float(restarted.step.optimizer.learning_rate) == 0.125
    assert int(restarted.step.optimizer.iterations) == 1


def test_a_checkpoint_of_format_1_is_read_by_position_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(TASK, tmp_path)
    folder = tmp_path / "checkpoints" / "1"
    as_format_1(folder, trainer.step)
    restored = Trainer()
    with caplog.at_level(logging.WARNING):
        assert checkpoints_in(tmp_path).restore(restored.step).name == "1"
    assert "format 1" in caplog.text
    assert_equal(restored.state(), trainer.state())
    with pytest.raises(UserError, match="only there: model/at position 1"):
        checkpoints_in(tmp_path).restore(Trainer(Few()).step)


class Few(FeedRanking):
    """The task with a logit that is a sum, without any dense variable."""

    def build_model(self, embeddings: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
        import keras

        whole = keras.layers.Concatenate()(list(embeddings.values()))
        return {"click": keras.layers.Dense(1, use_bias=False, name="logit")(whole)}


def as_format_1(folder: Path, step: TrainStep) -> None:
    """Makes a checkpoint what the first format was: dense variables by position."""
    state = {f"model_{i}": variable for i, variable in enumerate(step.dense.variables)}
    state |= {f"optimizer_{i}": variable.value for i, variable in enumerate(step.optimizer.variables)}
    (folder / "dense.npz").unlink()
    (folder / "dense").mkdir()
    tf.train.Checkpoint(**state, global_step=step.global_step).write(str(folder / "dense" / "variables"))
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [file for file in manifest["files"] if file["path"] != "dense.npz"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1, "files": files}))


def test_another_save_of_a_step_that_fails_leaves_its_good_checkpoint(
    two_saved: tuple[Path, Path, Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, newer, checkpoints = two_saved
    trainer = Trainer()
    checkpoints.restore(trainer.step)
    cut = checkpoints.cut(trainer.step, trainer.position, 0)
    verify_checkpoint(newer)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("millrace.training.state.checkpoint.sync_tree", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.finish(cut)
    verify_checkpoint(newer)


def test_a_process_that_dies_while_it_replaces_a_checkpoint_leaves_one_of_them(
    two_saved: tuple[Path, Path, Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, newer, checkpoints = two_saved
    trainer = Trainer()
    checkpoints.restore(trainer.step)
    newer.rename(newer.with_name(f"{newer.name}.replaced"))  # where it stands between the two renames
    restored = checkpoints.restore(Trainer().step)
    assert (restored.name, restored.global_step) == (f"{newer.name}.replaced", 2)
    trainer.save(checkpoints)
    assert sorted(path.name for path in newer.parent.iterdir()) == ["1", "2"]


def test_checkpoints_that_may_hold_what_went_wrong_are_set_aside_and_the_one_before_is_kept(tmp_path: Path) -> None:
    trainer, checkpoints = Trainer(), checkpoints_in(tmp_path, keep=1)
    for index, saved_at in enumerate((1000, 2000, 3000)):
        trainer.learn(index)
        checkpoints.trusted_ms = 1500 * 1000 if index else 0
        folder = trainer.save(checkpoints)
        os.utime(folder / "manifest.json", (saved_at, saved_at))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]
    assert [path.name for path in checkpoints.set_aside(2_500_000)] == ["suspect-3"]
    assert checkpoints.restore(Trainer().step).name == "1"
    with pytest.raises(UserError, match="all checkpoints were written after"):
        checkpoints.set_aside(500_000)


def test_a_save_that_fails_before_it_begins_frees_the_store_and_topic_ids_are_kept(tmp_path: Path) -> None:
    trainer, checkpoints = Trainer(), checkpoints_in(tmp_path)
    trainer.learn(0)
    trainer.position.passed(Passed({0: 5}, {0: "id"}))
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError) as kept:
        trainer.save(checkpoints)
    (tmp_path / "checkpoints").unlink()
    trainer.save(checkpoints)
    assert kept.traceback  # what holds the error, holds the cut too
    restored = checkpoints.restore(Trainer().step).position
    assert (restored.offsets, restored.topic_ids) == ({0: 5}, {0: "id"})
