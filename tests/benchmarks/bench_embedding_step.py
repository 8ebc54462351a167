"""Share of the embeddings in a train step of DLRM's size: 26 features of batch 4096 pooled in one call.

python tests/benchmarks/bench_embedding_step.py [--json] [--keys N]

13 dense inputs through 512-256-16, 26 embeddings of dim 16, all products of two (DLRM: Naumov et al. 2019), then
512-256-1. The embedding part is the lookup and the update with its merge; the rest is the dense model, forward and
backward, and its Adam.
"""

import argparse
import json
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from id_stream import IdStream

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, PooledFeature, RandomUniform, TableConfig

_FEATURES, _BATCH, _DIM, _DENSE = 26, 4096, 16, 13
_WARM_UP, _ROUNDS = 5, 20


def dense_model() -> keras.Model:
    dense = keras.Input([_DENSE])
    sparse = keras.Input([_FEATURES, _DIM])
    bottom = dense
    for units in (512, 256, _DIM):
        bottom = keras.layers.Dense(units, activation="relu")(bottom)
    vectors = keras.ops.concatenate([keras.ops.expand_dims(bottom, 1), sparse], axis=1)
    products = keras.ops.matmul(vectors, keras.ops.transpose(vectors, [0, 2, 1]))
    pairs = [i * (_FEATURES + 1) + j for i in range(_FEATURES + 1) for j in range(i)]
    top = keras.ops.take(keras.ops.reshape(products, [-1, (_FEATURES + 1) ** 2]), pairs, axis=1)
    top = keras.ops.concatenate([bottom, top], axis=1)
    for units in (512, 256):
        top = keras.layers.Dense(units, activation="relu")(top)
    return keras.Model([dense, sparse], keras.layers.Dense(1)(top))


class Trainer:
    def __init__(self, keys: int) -> None:
        self.features = [PooledFeature(f"f{i}", f"f{i}") for i in range(_FEATURES)]
        tables = [TableConfig(f.table, _DIM, Adagrad(0.05), RandomUniform()) for f in self.features]
        self.store = EmbeddingStore(tables, "dlrm")
        self.splits = [tf.range(_BATCH + 1, dtype=tf.int64)] * _FEATURES
        self.model = dense_model()
        self.optimizer = keras.optimizers.Adam(0.001)
        self.optimizer.build(self.model.trainable_variables)
        each = np.arange(1, keys // _FEATURES + 1, dtype=np.int64)
        for i, feature in enumerate(self.features):
            for first in range(0, each.size, 65536):
                self.store.lookup(feature.table, each[first : first + 65536] + (i << 48), missing="create")
        self.streams = [IdStream(each + (i << 48), 1.05) for i in range(_FEATURES)]
        self.step = tf.function(self._step)
        self.embeddings = tf.function(self._embeddings)

    def draw(self) -> list[tf.Tensor]:
        return [tf.constant(stream.draw(_BATCH)) for stream in self.streams]

    def _step(self, ids: list[tf.Tensor], dense: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        pooled = self.store.pooled_lookup(self.features, ids, self.splits, missing="create")
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            logits = self.model([dense, tf.stack(pooled, axis=1)], training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
        variables = self.model.trainable_variables
        gradients, of_pooled = tape.gradient(loss, ([v.value for v in variables], pooled))
        self.optimizer.apply(gradients, variables)
        self.store.apply_pooled_gradients(self.features, ids, self.splits, of_pooled)
        return loss

    def _embeddings(self, ids: list[tf.Tensor], dense: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The same without the dense model: the vectors stand in for their gradients."""
        pooled = self.store.pooled_lookup(self.features, ids, self.splits, missing="create")
        self.store.apply_pooled_gradients(self.features, ids, self.splits, pooled)
        return pooled[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keys", type=int, default=10_000_000, help="of all 26 tables together")
    arguments = parser.parse_args()
    trainer = Trainer(arguments.keys)
    random = np.random.default_rng(0)
    dense = tf.constant(random.normal(size=(_BATCH, _DENSE)), tf.float32)
    labels = tf.constant(random.integers(0, 2, (_BATCH, 1)), tf.float32)

    def median(work: Callable[..., tf.Tensor]) -> float:
        seconds = []
        for ids in [trainer.draw() for _ in range(_WARM_UP + _ROUNDS)]:
            start = time.perf_counter()
            work(ids, dense, labels).numpy()
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds[_WARM_UP:]))

    whole, embeddings = median(trainer.step), median(trainer.embeddings)
    for case, value, unit in (
        ("train step, 26 x 4096, DLRM", whole * 1e3, "ms"),
        ("its embeddings", embeddings * 1e3, "ms"),
        ("share of the embeddings", embeddings / whole, "ratio"),
    ):
        line = {"case": case, "value": round(value, 3), "unit": unit, "keys": arguments.keys}
        print(json.dumps(line) if arguments.json else f"{case:<36} {value:>12,.3f} {unit}", flush=True)


if __name__ == "__main__":
    main()
