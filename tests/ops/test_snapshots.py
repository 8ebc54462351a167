"""Table files: what is refused, and a SavedModel that carries tables into another process."""

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

from ops.embedding_table import Adagrad, EmbeddingStore, PooledFeature, RandomUniform, Sgd, TableConfig, Zeros

TABLES = [TableConfig("items", 4, Adagrad(0.1), RandomUniform(), seed=1), TableConfig("bias", 1, Sgd(1.0), Zeros())]


@pytest.fixture
def store() -> EmbeddingStore:
    store = EmbeddingStore(TABLES, f"snapshots-{os.urandom(4).hex()}")
    store.apply_gradients("items", np.arange(40), np.random.default_rng(0).normal(size=(40, 4)))
    store.apply_gradients("bias", [1, 2], [[1.0], [2.0]])
    return store


def _fresh() -> EmbeddingStore:
    return EmbeddingStore(TABLES, f"snapshots-{os.urandom(4).hex()}")


def test_a_file_with_any_flipped_byte_is_refused_and_nothing_changes(store: EmbeddingStore, tmp_path: Path) -> None:
    path = Path(store.save(tmp_path)[1])
    good = path.read_bytes()
    other = _fresh()
    other.assign("items", [5], [[1.0, 2.0, 3.0, 4.0]])
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(tf.errors.OpError, match="bias-00000-of-00001.table"):
            other.restore(tmp_path)
    assert other.sizes() == {"items": 1, "bias": 0}
    path.write_bytes(good)
    other.restore(tmp_path)
    assert other.sizes() == store.sizes()


def test_a_truncated_file_names_its_block(store: EmbeddingStore, tmp_path: Path) -> None:
    path = Path(store.save(tmp_path)[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        tf.errors.DataLossError, match=r"items-00000-of-00001.table, block \d+: the file ends inside it"
    ):
        _fresh().restore(tmp_path)


def test_a_folder_without_table_files_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no table files"):
        store.restore(tmp_path)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ([TableConfig("items", 5), TABLES[1]], "table 'items' has dim 4, expected 5"),
        ([TableConfig("items", 4, Sgd()), TABLES[1]], "table 'items' has optimizer adagrad, expected sgd"),
        ([TABLES[0]], "has no table 'bias'"),
        ([*TABLES, TableConfig("new", 1)], "no file for table 'new'"),
    ],
)
def test_a_store_of_other_tables_refuses_the_files(
    store: EmbeddingStore, tmp_path: Path, tables: list[TableConfig], problem: str
) -> None:
    # emb:H36
    store.save(tmp_path)
    other = EmbeddingStore(tables, f"snapshots-{os.urandom(4).hex()}")
    with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
        other.restore(tmp_path)
    assert set(other.sizes().values()) == {0}


def test_equal_stores_save_equal_files(store: EmbeddingStore, tmp_path: Path) -> None:
    first = [Path(path).read_bytes() for path in store.save(tmp_path / "1")]
    other = _fresh()
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
from ops import library
from ops.embedding_table import EmbeddingStore

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
    path = tmp_path / "1" / "assets" / "items-00000-of-00001.table"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError, match=r"items-00000-of-00001.table, block \d+: checksum"):
        tf.saved_model.load(tmp_path / "1")


def _run(program: str, *arguments: str) -> Any:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
