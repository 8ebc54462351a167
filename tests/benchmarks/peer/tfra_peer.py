"""The peer of the embedding store: a table of TensorFlow Recommenders Addons (TFRA) 0.8.1 on the CPU.

python tests/benchmarks/peer/tfra_peer.py [--keys N] [--dim D] [--batch B] [--zipf S]

Runs in an environment of its own (`make bench-peer`): TFRA wants an older TensorFlow than ours. Prints one JSON line a
case. Time is the median of 20 batches after 5 to warm up; an insert is timed from the first key to the last.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable

# Both are read when TensorFlow is imported. TFRA's optimizers are those of Keras 2.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_recommenders_addons import dynamic_embedding as de  # noqa: E402

_WARM_UP = 5
_ROUNDS = 20
_LEARNING_RATE = 0.1


class IdStream:
    """Batches of ids drawn from `keys`, the r-th of them with weight r**-zipf (0: all alike)."""

    def __init__(self, keys: np.ndarray, zipf: float) -> None:
        self._keys = keys
        self._random = np.random.default_rng(1)
        self._cdf = np.cumsum(np.arange(1, keys.size + 1) ** -zipf) if zipf else None

    def draw(self, count: int) -> tf.Tensor:
        """int64 [count]."""
        if self._cdf is None:
            return tf.constant(self._keys[self._random.integers(0, self._keys.size, count)])
        return tf.constant(self._keys[np.searchsorted(self._cdf, self._random.random(count) * self._cdf[-1])])


def distinct_keys(count: int) -> np.ndarray:
    """int64 [count], scattered, in random order."""
    return (np.random.default_rng(0).permutation(count).astype(np.int64) + 1) * 7919


def make_table(keys: int, dim: int) -> de.Variable:
    return de.get_variable(
        "peer",
        key_dtype=tf.int64,
        value_dtype=tf.float32,
        dim=dim,
        devices=["/CPU:0"],
        init_size=2 * keys,
        initializer=tf.keras.initializers.RandomNormal(0.0, 0.01),
    )


def make_step(table: de.Variable) -> Callable[[tf.Tensor], tf.Tensor]:
    """One step of a trainer: merge duplicates, look up, loss, gradient, Adagrad."""
    shadow = de.shadow_ops.ShadowVariable(table, name="shadow")
    optimizer = de.DynamicEmbeddingOptimizer(tf.keras.optimizers.legacy.Adagrad(_LEARNING_RATE))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
    def step(ids: tf.Tensor) -> tf.Tensor:
        distinct, places = tf.unique(ids)
        with tf.GradientTape() as tape:
            rows = tf.gather(de.shadow_ops.embedding_lookup(shadow, distinct), places)
            loss = 1e-6 * tf.reduce_sum(rows * rows)
        optimizer.apply_gradients(zip(tape.gradient(loss, [shadow]), [shadow], strict=True))
        return loss

    return step


def insert_seconds(table: de.Variable, keys: np.ndarray, batch: int, dim: int) -> float:
    """Inserts `keys` in whole batches; what is left over stays out."""
    rows = tf.ones((batch, dim))
    start = time.perf_counter()
    for first in range(0, keys.size - batch + 1, batch):
        table.upsert(tf.constant(keys[first : first + batch]), rows)
    return time.perf_counter() - start


def median_seconds(work: Callable[[tf.Tensor], tf.Tensor], ids: IdStream, batch: int) -> float:
    """All batches are drawn before the first runs, as a trainer's are: its input is another thread's work."""
    batches = [ids.draw(batch) for _ in range(_WARM_UP + _ROUNDS)]
    seconds = []
    for drawn in batches:
        start = time.perf_counter()
        work(drawn)  # returns when it is done: on the CPU eager calls are synchronous
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[_WARM_UP:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=65536)
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the draw; 0 draws all keys alike")
    arguments = parser.parse_args()
    count, dim, batch = arguments.keys, arguments.dim, arguments.batch

    def report(case: str, value: float, unit: str) -> None:
        measured = {"peer": "tfra-0.8.1", "case": case, "value": round(value, 4), "unit": unit}
        print(json.dumps(measured | vars(arguments)), flush=True)

    keys = distinct_keys(count)
    ids = IdStream(keys, arguments.zipf)
    table = make_table(count, dim)
    whole = count - count % batch
    report("insert", whole / insert_seconds(table, keys, batch, dim) / 1e6, "M ids/s")
    report("lookup", batch / median_seconds(tf.function(table.lookup), ids, batch) / 1e6, "M ids/s")
    report("lookup + update", batch / median_seconds(make_step(table), ids, batch) / 1e6, "M ids/s")
    report("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "GB")


if __name__ == "__main__":
    main()
