"""Embedding store: lookups and updates a second through the TensorFlow ops.

python tests/benchmarks/bench_embedding.py [--json] [--keys N] [--dim D] [--batch B]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from ops.embedding_table import EmbeddingStore
from ops.table_config import Adagrad, PooledFeature, RandomUniform, TableConfig

_SECONDS = 2.0


def rate(units: int, work: Callable[[int], object]) -> float:
    """Units a second of `work(round)`, after one round to warm up."""
    work(0)
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS:
        rounds += 1
        work(rounds)
    return units * rounds / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=65536)
    arguments = parser.parse_args()
    keys, dim, batch = arguments.keys, arguments.dim, arguments.batch

    table = TableConfig("t", dim, Adagrad(0.05), RandomUniform())
    store = EmbeddingStore([table], "bench")
    random = np.random.default_rng(0)
    ids = [tf.constant(random.integers(0, keys, batch)) for _ in range(16)]
    gradients = tf.constant(random.normal(size=(batch, dim)), tf.float32)
    one_each = [tf.range(batch + 1, dtype=tf.int64)]
    four_each = [tf.range(0, batch + 1, 4, dtype=tf.int64)]
    feature = [PooledFeature("f", "t", "sum")]

    def report(case: str, value: float, unit: str) -> None:
        line = {"case": case, "value": round(value), "unit": unit, "keys": keys, "dim": dim, "batch": batch}
        print(json.dumps(line) if arguments.json else f"{case:<36} {value:>14,.0f} {unit}", flush=True)

    start = time.perf_counter()
    for first in range(0, keys, batch):
        store.lookup("t", tf.range(first, min(first + batch, keys), dtype=tf.int64), missing="create")
    report("create", keys / (time.perf_counter() - start), "ids/s")

    @tf.function
    def step(batch_ids: tf.Tensor) -> None:
        store.pooled_lookup(feature, [batch_ids], one_each, missing="create")
        store.apply_pooled_gradients(feature, [batch_ids], one_each, [gradients])

    report("lookup", rate(batch, lambda i: store.lookup("t", ids[i % 16])), "ids/s")
    report(
        "pooled lookup, 4 ids a row",
        rate(batch, lambda i: store.pooled_lookup(feature, [ids[i % 16]], four_each)),
        "ids/s",
    )
    report("update", rate(batch, lambda i: store.apply_gradients("t", ids[i % 16], gradients)), "ids/s")
    report("pooled lookup and update", rate(batch, lambda i: step(ids[i % 16])), "ids/s")
    small = ids[0][:64]
    report("lookup of 64 ids", rate(1, lambda i: store.lookup("t", small)), "calls/s")
    peer = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, tf.zeros([dim]))
    every = tf.range(keys, dtype=tf.int64)
    peer.insert(every, store.lookup("t", every))
    report("lookup, tf.lookup.MutableHashTable", rate(batch, lambda i: peer.lookup(ids[i % 16])), "ids/s")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        size = sum(Path(path).stat().st_size for path in store.save(folder))
        report("save", size / (time.perf_counter() - start), "bytes/s")
        start = time.perf_counter()
        store.restore(folder)
        report("restore", size / (time.perf_counter() - start), "bytes/s")


if __name__ == "__main__":
    main()
