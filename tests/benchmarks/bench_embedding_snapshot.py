"""Snapshots: how fast beside `dd`, and what training feels of them.

python tests/benchmarks/bench_embedding_snapshot.py [--json] [--keys N] [--folder DIR]

`dd` writes as many bytes to the same disk, synced. Training is lookup and update of uniform batches through the ops.
"""

import argparse
import json
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from id_stream import IdStream, distinct_keys

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, RandomUniform, TableConfig

_DIM, _BATCH, _SECONDS = 16, 65536, 5.0


def dd_seconds(folder: Path, size: int) -> float:
    """Seconds that dd takes to write and sync `size` bytes of one file."""
    target = folder / "dd"
    start = time.perf_counter()
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={size >> 20}", "conv=fsync"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


class Training:
    """Steps on a thread of their own until they are stopped; remembers how long each took."""

    def __init__(self, store: EmbeddingStore, keys: np.ndarray) -> None:
        ids = IdStream(keys, 0.0)
        self._batches = [tf.constant(ids.draw(_BATCH)) for _ in range(32)]
        self._store = store
        self._step = tf.function(self._train, input_signature=[tf.TensorSpec([None], tf.int64)])

    def _train(self, ids: tf.Tensor) -> None:
        self._store.apply_gradients("t", ids, self._store.lookup("t", ids))

    def run(self, stop: threading.Event) -> np.ndarray:
        """Seconds of each step."""
        seconds = []
        while not stop.is_set():
            start = time.perf_counter()
            self._step(self._batches[len(seconds) % len(self._batches)])
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)

    def run_for(self, seconds: float) -> np.ndarray:
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        taken = self.run(stop)
        timer.join()
        return taken

    def run_during(self, store: EmbeddingStore, folder: Path) -> tuple[np.ndarray, float, float]:
        """(seconds of each step during a snapshot, seconds of the cut, seconds of the snapshot)."""
        stop, times = threading.Event(), [0.0, 0.0]

        def save() -> None:
            start = time.perf_counter()
            cut = store.cut()
            times[0] = time.perf_counter() - start
            cut.write(folder)
            times[1] = time.perf_counter() - start
            stop.set()

        saver = threading.Thread(target=save)
        saver.start()
        taken = self.run(stop)
        saver.join()
        return taken, times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()

    def report(case: str, value: float, unit: str) -> None:
        line = {"case": case, "value": round(value, 3), "unit": unit, "keys": arguments.keys, "dim": _DIM}
        print(json.dumps(line) if arguments.json else f"{case:<44} {value:>12,.3f} {unit}", flush=True)

    keys = distinct_keys(arguments.keys)
    store = EmbeddingStore([TableConfig("t", _DIM, Adagrad(0.05), RandomUniform())], "snapshots")
    for first in range(0, keys.size, _BATCH):
        store.lookup("t", keys[first : first + _BATCH], missing="create")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        size = sum(Path(path).stat().st_size for path in store.save(folder / "idle"))
        saved = time.perf_counter() - start
        wrote = dd_seconds(folder, size)
        report("save", size / saved / 1e6, "MB/s")
        report("dd", size / wrote / 1e6, "MB/s")
        report("save over dd", wrote / saved, "ratio")
        training = Training(store, keys)
        training.run_for(1.0)
        alone = training.run_for(_SECONDS)
        during, cut, lasted = training.run_during(store, folder / "busy")
        report("train step alone, median", float(np.median(alone)) * 1e3, "ms")
        report("train step alone, longest", alone.max() * 1e3, "ms")
        report("train steps during a snapshot", len(during), "steps")
        report("train step during, longest", during.max() * 1e3, "ms")
        report("the cut itself", cut * 1e3, "ms")
        report("a snapshot beside training", lasted, "s")
        report("training during over alone", alone.mean() / during.mean(), "ratio")
        start = time.perf_counter()
        store.restore(folder / "idle")
        report("restore", size / (time.perf_counter() - start) / 1e6, "MB/s")


if __name__ == "__main__":
    main()
