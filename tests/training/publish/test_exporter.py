"""Exports: fids in the graph equal the feed's, and another process predicts what the trainer predicts."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW, EmbeddingStore, Entries
from millrace.runtime.checksum import crc32c_of_file
from millrace.runtime.errors import UserError
from millrace.training.publish.exporter import MANIFEST_PATH, Export, Exporter, export_checkpoint, serving_fids
from millrace.training.publish.published import ModelWriter
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.state.lease import Lease
from millrace.training.state.saver import UnfitError
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout, TrainTensors
from millrace.training.stream.position import Position
from millrace.transforms.batch.list_columns import values_and_splits
from millrace.transforms.batch.record_batch import AUDIT
from millrace.transforms.feed.config import FidFeature
from millrace.transforms.feed.train_rows import row_fids
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
WRITER = ModelWriter("feed", "line", 4)
REPOSITORY = Path(__file__).resolve().parents[2]
_LOAD = """
import json, sys
import numpy as np
import tensorflow as tf
from millrace.ops import library
library.load()
model = tf.saved_model.load(sys.argv[1])
raw = json.load(open(sys.argv[2]))
signature = model.signatures["serving_default"]
types = {"user_id": tf.int64, "item_id": tf.int64, "hour": tf.int64, "device": tf.string}
outputs = signature(**{name: tf.constant(values, types[name]) for name, values in raw.items()})
dense = [variable.shape.as_list() for variable in model.dense_variables]
print(json.dumps({"click": outputs["click"].numpy().tolist(), "dense": dense}))
"""


@pytest.fixture(scope="module")
def trained() -> TrainStep:
    queue = BatchQueue(TrainLayout.of(TASK, audit=True), "test-export")
    store, audit = new_stores(TASK, queue.name, audit=True)
    step = TrainStep(TASK, store, queue, audit)
    for i in range(20):
        batch = make_batch(TASK, i * 50, 50)
        queue.put(Ticket.of(batch, 1), batch)
        step.step(NOW)
    return step


@pytest.fixture
def exported(trained: TrainStep, tmp_path: Path) -> Export:
    exporter = Exporter(TASK, tmp_path, WRITER)
    return exporter.write(exporter.cut(trained, "deltas", (7, 9), 1234, {"auc": 0.7}), trained)


# Ints beyond 48 bits and empty strings stand for missing values when serving; the feed gets nulls there.
integers = st.one_of(st.integers(0, 2**48 - 1), st.none())
strings = st.one_of(st.text(min_size=1, max_size=20), st.none())


@settings(deadline=None, max_examples=40)
@given(st.lists(integers, min_size=1, max_size=20))
def test_fids_of_integers_equal_those_of_the_feed(values: list[int | None]) -> None:
    feature = TASK.features[0]
    raw = pa.RecordBatch.from_pydict({"user_id": pa.array(values, pa.int64())})
    feed = row_fids(raw, [FidFeature("f", feature.slot, "user_id")])
    fids, splits = serving_fids(feature, tf.constant([-1 if value is None else value for value in values], tf.int64))
    expected_fids, expected_splits = values_and_splits(feed.column(0))
    assert (fids.numpy().tolist(), splits.numpy().tolist()) == (expected_fids.tolist(), expected_splits.tolist())


@settings(deadline=None, max_examples=40)
@given(st.lists(strings, min_size=1, max_size=20))
def test_fids_of_strings_equal_those_of_the_feed(values: list[str | None]) -> None:
    feature = next(feature for feature in TASK.features if feature.name == "device")
    raw = pa.RecordBatch.from_pydict({feature.column: pa.array(values, pa.string())})
    feed = row_fids(raw, [FidFeature("f", feature.slot, feature.column)])
    fids, splits = serving_fids(feature, tf.constant([value or "" for value in values], tf.string))
    expected_fids, expected_splits = values_and_splits(feed.column(0))
    assert (fids.numpy().tolist(), splits.numpy().tolist()) == (expected_fids.tolist(), expected_splits.tolist())


def test_another_process_predicts_what_the_trainer_predicts(
    trained: TrainStep, exported: Export, tmp_path: Path
) -> None:
    users, items = np.arange(60) % 55, (np.arange(60) * 7) % 55  # some were never seen
    raw = {"user_id": users.tolist(), "item_id": items.tolist(), "hour": [5] * 60, "device": ["phone", ""] * 30}
    values, splits = {AUDIT: tf.zeros([0], tf.int64)}, {AUDIT: tf.zeros([61], tf.int64)}
    for name in TrainLayout.of(TASK).features:
        feature = next(feature for feature in TASK.features if feature.name == name)
        dtype = tf.string if feature.input_dtype == "string" else tf.int64
        values[name], splits[name] = serving_fids(feature, tf.constant(raw[feature.input_name], dtype))
    logits = trained.predict(TrainTensors(values, splits, tf.zeros([60, 1]), tf.ones([60]), tf.ones([60])))
    expected = 1 / (1 + np.exp(-logits.numpy()[:, 0]))
    moved = tmp_path / "elsewhere"
    shutil.move(exported.path, moved)
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(moved), str(tmp_path / "raw.json")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    assert np.allclose(answer["click"], expected, atol=1e-5)
    assert answer["dense"] == [variable.shape.as_list() for variable in trained.dense.variables]
    assert np.std(expected) > 0.05


def test_the_manifest_describes_every_file_and_no_audit_table(exported: Export) -> None:
    manifest = json.loads((exported.path / MANIFEST_PATH).read_text())
    files = {str(path.relative_to(exported.path)) for path in exported.path.rglob("*") if path.is_file()}
    assert {file["path"] for file in manifest["files"]} == files - {str(MANIFEST_PATH)}
    for file in manifest["files"]:
        path = exported.path / file["path"]
        assert (path.stat().st_size, crc32c_of_file(path)) == (file["size_bytes"], file["crc32c"])
    assert manifest["tables"] == [table.name for table in TASK.tables()]
    assert not any("audit" in file for file in files)
    assert (manifest["delta_topic"], manifest["delta_offsets"], manifest["delta_sequence"]) == ("deltas", {"0": 9}, 7)
    assert (manifest["schema_version"], manifest["lineage"], manifest["epoch"]) == (2, "line", 4)
    assert (manifest["event_time_ms"], manifest["quality"]) == (1234, {"auc": 0.7})
    assert 0 < manifest["cut_at_ms"] <= manifest["created_at_ms"]
    assert (exported.delta_sequence, exported.event_time_ms, exported.quality) == (7, 1234, {"auc": 0.7})
    assert manifest["signature"]["inputs"] == TASK.serving_inputs()
    assert manifest["signature"]["inputs"]["device"] == "string"
    assert manifest["store"] == f"feed@{exported.version}"


def test_versions_grow_and_only_the_newest_three_are_kept(trained: TrainStep, tmp_path: Path) -> None:
    exporter = Exporter(TASK, tmp_path, WRITER)
    versions = [exporter.write(exporter.cut(trained), trained).version for _ in range(4)]
    assert versions == sorted(set(versions))
    assert exporter.versions() == versions[1:]
    assert sorted(path.name for path in exporter.base.iterdir()) == [str(version) for version in versions[1:]]


def test_versions_that_are_in_use_stay_and_all_do_while_nobody_can_tell(trained: TrainStep, tmp_path: Path) -> None:
    in_use: list[set[int] | None] = [None]
    exporter = Exporter(TASK, tmp_path, WRITER, keep=1, in_use=lambda: in_use[0])
    first, second = (exporter.write(exporter.cut(trained), trained).version for _ in range(2))
    assert exporter.versions() == [first, second]
    in_use[0] = {first}
    third = exporter.write(exporter.cut(trained), trained).version
    assert exporter.versions() == [first, third]


def test_the_version_that_no_alarm_can_question_stays_beside_the_newest(trained: TrainStep, tmp_path: Path) -> None:
    exporter = Exporter(TASK, tmp_path, WRITER, keep=1)
    _, second = (exporter.write(exporter.cut(trained), trained).version for _ in range(2))
    assert exporter.versions() == [second]
    exporter.trusted = second
    _, fourth = (exporter.write(exporter.cut(trained), trained).version for _ in range(2))
    assert exporter.versions() == [second, fourth]
    cuts = exporter.cut_times()
    assert list(cuts) == [second, fourth] and 0 < cuts[second] <= cuts[fourth]
    (exporter.base / str(second) / MANIFEST_PATH).write_text("{}")  # as before manifests had times
    assert exporter.cut_times()[second] == second * 1000


def test_what_earlier_owners_of_the_lease_left_is_removed_and_what_a_later_one_writes_stays(
    trained: TrainStep, tmp_path: Path
) -> None:
    exporter = Exporter(TASK, tmp_path, WRITER)
    for name in ("temp-1796000000", "temp-3-1796000000.host.1.2.00000000", "temp-5-1796000001.host.1.2.00000000"):
        (exporter.base / name).mkdir(parents=True)
    version = exporter.write(exporter.cut(trained), trained).version
    names = sorted(path.name for path in exporter.base.iterdir())
    assert names == [str(version), "temp-5-1796000001.host.1.2.00000000"]


def test_a_failed_export_leaves_nothing_to_the_next_one(
    trained: TrainStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(TASK, tmp_path, WRITER)
    cut = exporter.cut(trained)
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            exporter.write(cut, trained)
    assert list(exporter.base.iterdir()) == []
    version = exporter.write(exporter.cut(trained), trained).version
    assert [path.name for path in exporter.base.iterdir()] == [str(version)]


def test_entries_that_are_not_finite_are_in_no_export(
    trained: TrainStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = TASK.tables()[0]
    ids, _ = trained.store.dump(table.name)
    bad = ids[:3]
    entries = EmbeddingStore.entries

    def with_bad(store: EmbeddingStore, name: str, **arguments: Any) -> Iterator[Entries]:
        for page in entries(store, name, **arguments):
            hit = np.isin(page.ids, bad)[:, None] if name == table.name else False
            yield page._replace(values=np.where(hit, np.nan, page.values))

    monkeypatch.setattr(EmbeddingStore, "entries", with_bad)
    exporter = Exporter(TASK, tmp_path, WRITER)
    export = exporter.write(exporter.cut(trained), trained)
    monkeypatch.undo()
    assert f"table {table.name}: 3 entries are not finite" in caplog.text
    restored = EmbeddingStore([each.for_serving() for each in TASK.tables()], "test-finite")
    try:
        restored.restore(export.path / "assets")
        found, _ = restored.dump(table.name)
        assert found.tolist() == ids[3:].tolist()
    finally:
        EmbeddingStore.release("test-finite")


def test_a_model_whose_dense_part_is_not_finite_is_not_exported(trained: TrainStep, tmp_path: Path) -> None:
    variable = trained.dense.variables[0]
    before = variable.numpy()
    exporter = Exporter(TASK, tmp_path, WRITER)
    try:
        variable.assign(np.full_like(before, np.nan))
        with pytest.raises(UnfitError, match="not finite"):
            exporter.cut(trained)
    finally:
        variable.assign(before)
    assert exporter.versions() == []
    exporter.cut(trained).tables.drop()


class Expiring(FeedRanking):
    features = (dataclasses.replace(FeedRanking.features[0], expire_days=1.0), *FeedRanking.features[1:])


def test_entries_that_are_expired_by_event_time_are_in_no_export_whatever_the_wall_clock_says(tmp_path: Path) -> None:
    task, days = Expiring(), 86_400
    queue = BatchQueue(TrainLayout.of(task, audit=True), "test-expiring")
    store, audit = new_stores(task, queue.name, audit=True)
    step = TrainStep(task, store, queue, audit)
    table = task.tables()[0].name
    for first, time in ((0, 1000 * days), (5000, 1003 * days)):  # years before now
        batch = make_batch(task, first, 5, users=10_000)
        queue.put(Ticket.of(batch, 1), batch)
        step.step(time)
    young = sorted(fid for page in store.entries(table) for fid in page.ids[page.timestamps == 1003 * days].tolist())
    checkpoints = Checkpoints(tmp_path, task.name, task.schema_fingerprint())
    checkpoints.finish(checkpoints.cut(step, Position(), 0, event_clock=1000 * days))
    exporter = Exporter(task, tmp_path, WRITER)
    all_of_them = exporter.write(exporter.cut(step, event_clock=1000 * days), step)
    newer = exporter.write(exporter.cut(step, event_clock=1003 * days), step)
    of_checkpoint = export_checkpoint(task, tmp_path)
    try:
        restored = EmbeddingStore([each.for_serving() for each in task.tables()], "test-expired")
        found = []
        for export in (all_of_them, newer, of_checkpoint):
            restored.restore(export.path / "assets")
            found.append(restored.dump(table)[0].tolist())
        assert 0 < len(young) < len(found[0])
        assert found[1] == young
        assert found[2] == found[0]  # the clock of the checkpoint, in which all are young
    finally:
        EmbeddingStore.release("test-expired")
        queue.close()


def test_export_of_a_checkpoint_waits_for_no_trainer_but_refuses_beside_one(trained: TrainStep, tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    half_written = tmp_path / "exports" / "standalone" / "temp-9-1.host.1.2.00000000"
    half_written.mkdir(parents=True)
    with pytest.raises(UserError, match="in use by process"):
        export_checkpoint(TASK, tmp_path)
    assert half_written.is_dir()
    lease.close()
