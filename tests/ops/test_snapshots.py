"""Snapshots: damage is found, equal stores give equal files, and a SavedModel takes tables to another process."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adagrad,
    CountingFilter,
    Occurrence,
    PooledFeature,
    RandomUniform,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.fakes.stores import open_store

TABLES = [TableConfig("items", 4, Adagrad(0.1), RandomUniform(), seed=1), TableConfig("bias", 1, Sgd(1.0), Zeros())]


@pytest.fixture
def store() -> EmbeddingStore:
    store = open_store(*TABLES)
    store.apply_gradients("items", np.arange(40), np.random.default_rng(0).normal(size=(40, 4)), timestamp=1000)
    store.apply_gradients("bias", [1, 2], [[1.0], [2.0]], timestamp=2000)
    return store


def _refuses(other: EmbeddingStore, folder: Path, problem: str) -> None:
    """A restore fails and leaves what was there."""
    before = {table: other.dump(table, with_state=True) for table in other.sizes()}
    with pytest.raises(tf.errors.OpError, match=problem):
        other.restore(folder)
    for table, (ids, values) in before.items():
        now = other.dump(table, with_state=True)
        np.testing.assert_array_equal(now[0], ids)
        np.testing.assert_array_equal(now[1], values)


def test_a_file_with_any_flipped_byte_is_refused_and_nothing_changes(store: EmbeddingStore, tmp_path: Path) -> None:
    path = next(Path(path) for path in store.save(tmp_path) if "bias" in path)
    good = path.read_bytes()
    other = open_store(*TABLES)
    other.assign("items", [5], [[1.0, 2.0, 3.0, 4.0]])
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(tf.errors.OpError, match=path.name):
            other.restore(tmp_path)
    assert other.sizes() == {"items": 1, "bias": 0}
    path.write_bytes(good)
    other.restore(tmp_path)
    assert other.sizes() == store.sizes()


def test_a_truncated_file_is_refused_and_says_where_it_ends(store: EmbeddingStore, tmp_path: Path) -> None:
    path = Path(store.save(tmp_path)[0])
    content = path.read_bytes()
    for length, place in ((0, ""), (7, ""), (100, ""), (len(content) // 2, r"block \d+"), (len(content) - 1, "end")):
        path.write_bytes(content[:length])
        _refuses(open_store(*TABLES), tmp_path, rf"{path.name}.*{place}")


def test_a_damaged_filter_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    table = TableConfig("t", 1, Sgd(1.0), Zeros(), occurrence=Occurrence(CountingFilter(100), 1))
    store, other = open_store(table), open_store(table)
    store.apply_gradients("t", [1, 2, 1], [[1.0]] * 3)
    store.apply_gradients("t", [1], [[1.0]])
    path = next(Path(path) for path in store.save(tmp_path) if path.endswith(".filter"))
    content = path.read_bytes()
    other.assign("t", [9], [[1.0]])
    for position in range(0, len(content), 41):
        bad = bytearray(content)
        bad[position] ^= 4
        path.write_bytes(bad)
        _refuses(other, tmp_path, path.name)


def test_a_save_leaves_no_other_files_and_replaces_those_of_the_same_name(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    first = store.save(tmp_path)
    store.apply_gradients("bias", [3], [[1.0]])
    assert store.save(tmp_path) == first
    assert sorted(str(path) for path in tmp_path.iterdir()) == sorted(first)
    other = open_store(*TABLES)
    other.restore(tmp_path)
    assert other.sizes() == {"items": 40, "bias": 3}


def test_a_save_that_cannot_write_says_where_and_leaves_the_store_usable(store: EmbeddingStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(tf.errors.OpError, match="file/folder"):
        store.save(tmp_path / "file" / "folder")
    store.save(tmp_path / "folder")


def test_equal_stores_save_equal_files(store: EmbeddingStore, tmp_path: Path) -> None:
    first = [Path(path).read_bytes() for path in store.save(tmp_path / "1")]
    other = open_store(*TABLES)
    other.restore(tmp_path / "1")
    assert [Path(path).read_bytes() for path in other.save(tmp_path / "2")] == first


def _export(store: EmbeddingStore, folder: Path, shared_name: str) -> None:
    """As an exporter does it: a serving store under the version's own name, its content in the assets."""
    snapshot = folder.parent / f"{folder.name}-snapshot"
    store.save(snapshot, with_state=False)
    serving = EmbeddingStore([table.for_serving() for table in store.tables], shared_name, snapshot=snapshot)
    features = [PooledFeature("items", "items", "mean"), PooledFeature("bias", "bias")]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="item_id")])
    def predict(item_id: tf.Tensor) -> dict[str, tf.Tensor]:
        splits = tf.range(tf.size(item_id, out_type=tf.int64) + 1)
        items, bias = serving.pooled_lookup(features, [item_id] * 2, [splits] * 2)
        return {"score": tf.reduce_sum(items, axis=1) + bias[:, 0]}

    module = tf.Module()
    module.store = serving
    tf.saved_model.save(module, folder, signatures={"serving_default": predict})


_OTHER_PROCESS = """
import gc, json, sys
import tensorflow as tf
from millrace.ops import library
from millrace.ops.embedding_table import EmbeddingStore

library.load()
first, second = (tf.saved_model.load(folder) for folder in sys.argv[1:3])
ids = tf.constant([1, 2, 99], tf.int64)
ask = lambda model: model.signatures["serving_default"](item_id=ids)["score"].numpy().tolist()
report = {"first": ask(first), "second": ask(second)}
view = EmbeddingStore.attach("model@1")
view.assign("items", [99], [[1.0, 2.0, 3.0, 4.0]])
view.erase("items", [1])
view.erase("bias", [1])
report |= {"after delta": ask(first), "second after delta": ask(second)}
again = tf.saved_model.load(sys.argv[1])
report["loaded again"] = ask(again)
del again, first
gc.collect()
try:
    view.sizes()
except tf.errors.NotFoundError as error:
    report["freed"] = error.message
report["second after unload"] = ask(second)
print(json.dumps(report))
"""


def test_a_saved_model_serves_takes_deltas_and_is_freed_in_another_process(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    _export(store, tmp_path / "1", "model@1")
    expected = (
        tf.reduce_sum(store.lookup("items", [1, 2, 99]), axis=1) + store.lookup("bias", [1, 2, 99])[:, 0]
    ).numpy()
    store.apply_gradients("bias", [2], [[-10.0]])
    _export(store, tmp_path / "2", "model@2")
    gc.collect()
    with pytest.raises(tf.errors.NotFoundError):
        EmbeddingStore.attach("model@1")  # the exporter keeps nothing
    for folder in tmp_path.glob("*-snapshot"):
        for path in folder.iterdir():
            path.unlink()  # all is in the assets

    report = _run(_OTHER_PROCESS, str(tmp_path / "1"), str(tmp_path / "2"))
    newer = expected + [0, 10, 0]
    np.testing.assert_allclose(report["first"], expected, rtol=1e-6)
    np.testing.assert_allclose(report["second"], newer, rtol=1e-6)
    np.testing.assert_allclose(report["after delta"], [0.0, expected[1], 10.0], rtol=1e-6)
    np.testing.assert_allclose(report["second after delta"], newer, rtol=1e-6)
    np.testing.assert_allclose(report["loaded again"], report["after delta"])
    assert "'model@1' is not open in this process; open are: model@2" in report["freed"]
    np.testing.assert_allclose(report["second after unload"], newer, rtol=1e-6)


def test_a_saved_model_with_a_damaged_table_does_not_load(store: EmbeddingStore, tmp_path: Path) -> None:
    _export(store, tmp_path / "1", f"damaged-{os.urandom(4).hex()}")
    gc.collect()
    path = next((tmp_path / "1" / "assets").glob("items.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError, match=rf"{path.name}, block \d+: checksum"):
        tf.saved_model.load(tmp_path / "1")


def _run(program: str, *arguments: str) -> Any:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
