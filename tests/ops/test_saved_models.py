"""SavedModels of several tables in another process: what they predict, how they train on, and what they hold."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adagrad,
    Adam,
    Fp16,
    Ftrl,
    Int8,
    OneBit,
    PooledFeature,
    RandomUniform,
    Segment,
    Sgd,
    TableConfig,
    Zeros,
)

TABLES = [
    TableConfig("items", segments=[Segment(1, Ftrl(0.1)), Segment(4, Adam(0.1), RandomUniform(), Fp16())], seed=1),
    TableConfig("users", 4, Adagrad(0.1), RandomUniform(-1.0, 1.0), seed=2, compressor=Int8(range=2.0)),
    TableConfig("words", segments=[Segment(3, Adagrad(0.1), compressor=OneBit(packed=True)), Segment(2, Sgd(0.1))]),
]
FEATURES = [
    PooledFeature("item", "items"),
    PooledFeature("user", "users"),
    PooledFeature("title", "words", "mean"),
    PooledFeature("history", "items", "first_n", max_length=2),
]
ROWS = 5
IDS = np.random.default_rng(0).integers(-30, 30, (len(FEATURES), ROWS, 3))
WEIGHTS = tf.reshape(tf.range(24.0), [24, 1]) / 24
SERVING = [table.for_serving() for table in TABLES]


class Ranker(tf.Module):
    """Scores rows of three ids per feature."""

    def __init__(self, store: EmbeddingStore, weights: tf.Tensor) -> None:
        super().__init__()
        self.store = store
        self.weights = tf.Variable(weights)

    @tf.function(input_signature=[tf.TensorSpec([len(FEATURES), None, 3], tf.int64, name="ids")])
    def score(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"score": self._score(self.store.pooled_lookup(FEATURES, *self._ragged(ids)))}

    def _ragged(self, ids: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        splits = 3 * tf.range(tf.shape(ids, tf.int64)[1] + 1)
        return [tf.reshape(feature, [-1]) for feature in tf.unstack(ids)], [splits] * len(FEATURES)

    def _score(self, pooled: list[tf.Tensor]) -> tf.Tensor:
        flat = [tf.reshape(feature, [tf.shape(feature)[0], -1]) for feature in pooled]
        return tf.matmul(tf.concat(flat, axis=1), self.weights)[:, 0]


class Trainer(Ranker):
    """Learns from labels of rows too."""

    @tf.function(input_signature=[tf.TensorSpec([len(FEATURES), None, 3], tf.int64), tf.TensorSpec([None], tf.float32)])
    def train(self, ids: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        ragged = self._ragged(ids)
        pooled = self.store.pooled_lookup(FEATURES, *ragged, missing="create")
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            loss = tf.reduce_mean(tf.square(self._score(pooled) - labels))
        dense, sparse = tape.gradient(loss, [self.weights, pooled])
        self.store.apply_pooled_gradients(FEATURES, *ragged, sparse, timestamp=1000)
        self.weights.assign_sub(0.01 * dense)
        return loss


def _labels(step: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(step).normal(size=ROWS), tf.float32)


_OTHER_PROCESS = """
import gc, json, sys
import tensorflow as tf
from millrace.ops import library
from millrace.ops.embedding_table import EmbeddingStore

folder, ids, labels = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
library.load()
ids = tf.constant(ids, tf.int64)
score = lambda model: model.signatures["serving_default"](ids=ids)["score"].numpy().tolist()

first, second = (tf.saved_model.load(f"{folder}/serving") for _ in range(2))
report = {"served": [score(first), score(second)]}
view = EmbeddingStore.attach("ranker@serving")
report["compressors"] = [segment.compressor.kind for table in view.tables for segment in table.segments]
del first
gc.collect()
report["served after one of two was dropped"] = score(second)
del second
gc.collect()
try:
    view.sizes()
except tf.errors.NotFoundError:
    report["freed"] = True

training = tf.saved_model.load(f"{folder}/training")
report["losses"] = [float(training.train(ids, tf.constant(each))) for each in labels]
report["score after training"] = score(training)
EmbeddingStore.attach("ranker@training").save(f"{folder}/there")
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved-models")


@pytest.fixture(scope="module")
def ranker(folder: Path) -> Trainer:
    """A model after a few steps; its tables are in folders `weights` and `state`."""
    ranker = Trainer(EmbeddingStore(TABLES, "ranker"), WEIGHTS)
    for step in range(3):
        ranker.train(IDS, _labels(step))
    ranker.store.save(folder / "weights", with_state=False)
    ranker.store.save(folder / "state")
    return ranker


@pytest.fixture(scope="module")
def report(ranker: Trainer, folder: Path) -> dict[str, Any]:
    """What a process saw that loaded the model twice in serving form and once in training form."""
    serving = Ranker(EmbeddingStore(SERVING, "ranker@serving", snapshot=folder / "weights"), ranker.weights)
    training = Trainer(EmbeddingStore(TABLES, "ranker@training", snapshot=folder / "state"), ranker.weights)
    for model, form in ((serving, "serving"), (training, "training")):
        tf.saved_model.save(model, str(folder / form), signatures={"serving_default": model.score})
    labels = [_labels(step).numpy().tolist() for step in range(3, 6)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [str(folder), json.dumps(IDS.tolist()), json.dumps(labels)]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_compressed_tables_predict_there_what_they_predict_here(
    ranker: Trainer, report: dict[str, Any], folder: Path
) -> None:
    here = Ranker(EmbeddingStore(SERVING, "served-here"), ranker.weights)
    here.store.restore(folder / "weights")
    assert report["compressors"] == ["fp32", "fp16", "int8", "one_bit", "fp32"]
    for scores in report["served"]:
        np.testing.assert_array_equal(scores, here.score(IDS)["score"])


def test_one_of_two_loaded_models_can_be_dropped(report: dict[str, Any]) -> None:
    assert report["served after one of two was dropped"] == report["served"][1]
    assert report["freed"]


def test_a_loaded_model_trains_on_as_this_one_does(ranker: Trainer, report: dict[str, Any], folder: Path) -> None:
    here = Trainer(EmbeddingStore(TABLES, "trained-here"), ranker.weights)
    here.store.restore(folder / "state")
    losses = [here.train(IDS, _labels(step)) for step in range(3, 6)]
    np.testing.assert_array_equal(report["losses"], losses)
    np.testing.assert_array_equal(report["score after training"], here.score(IDS)["score"])
    for written in here.store.save(folder / "here"):
        assert (folder / "there" / Path(written).name).read_bytes() == Path(written).read_bytes()


class Counts(tf.Module):
    """Reads a table whose entries all count up."""

    def __init__(self, store: EmbeddingStore) -> None:
        super().__init__()
        self.store = store

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def counts(self, ids: tf.Tensor) -> tf.Tensor:
        return self.store.lookup("counts", ids)


def test_a_store_is_exported_while_it_trains(tmp_path: Path) -> None:
    table = TableConfig("counts", 8, Sgd(1.0), Zeros())
    store = EmbeddingStore([table], "counting")
    ids = np.arange(2000)
    counting = threading.Event()
    counting.set()

    def count() -> None:
        while counting.is_set():
            store.apply_gradients("counts", ids, -np.ones((ids.size, 8), np.float32))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for version in range(3):
            snapshot, export = tmp_path / f"snapshot-{version}", str(tmp_path / f"export-{version}")
            before = store.lookup("counts", ids).numpy().min()
            store.save(snapshot, with_state=False)
            after = store.lookup("counts", ids).numpy().max()
            serving = EmbeddingStore([table.for_serving()], f"counts@{version}", snapshot=snapshot)
            tf.saved_model.save(Counts(serving), export)
            loaded = tf.saved_model.load(export)
            counts = loaded.counts(ids).numpy()
            assert (counts == counts[:, :1]).all()
            assert before <= counts.min() and counts.max() <= after
            np.testing.assert_array_equal(loaded.counts(ids), counts)
    finally:
        counting.clear()
        thread.join()
