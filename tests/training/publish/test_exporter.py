"""Exports: fids in the graph equal the feed's, and another process predicts what the trainer predicts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import NOW
from millrace.runtime.checksum import crc32c_of_file
from millrace.training.publish.exporter import MANIFEST_PATH, Export, Exporter, serving_fids
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout, TrainTensors
from millrace.transforms.batch.list_columns import values_and_splits
from millrace.transforms.batch.record_batch import AUDIT
from millrace.transforms.feed.config import FidFeature
from millrace.transforms.feed.train_rows import row_fids
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
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
    exporter = Exporter(TASK, tmp_path)
    return exporter.write(exporter.cut(trained, "deltas", 7, 9), trained)


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
    assert manifest["signature"]["inputs"] == TASK.serving_inputs()
    assert manifest["signature"]["inputs"]["device"] == "string"
    assert manifest["store"] == f"feed@{exported.version}"


def test_versions_grow_and_only_the_newest_three_are_kept(trained: TrainStep, tmp_path: Path) -> None:
    exporter = Exporter(TASK, tmp_path)
    versions = [exporter.write(exporter.cut(trained), trained).version for _ in range(4)]
    assert versions == sorted(set(versions))
    assert exporter.versions() == versions[1:]
    assert sorted(path.name for path in exporter.base.iterdir()) == [str(version) for version in versions[1:]]


def test_what_a_crash_left_half_written_is_removed_by_the_next_export(trained: TrainStep, tmp_path: Path) -> None:
    exporter = Exporter(TASK, tmp_path)
    torn = exporter.base / "temp-17"
    torn.mkdir(parents=True)
    exporter.write(exporter.cut(trained), trained)
    assert not torn.exists() and len(exporter.versions()) == 1
