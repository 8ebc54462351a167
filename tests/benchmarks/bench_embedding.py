"""Embedding store through the TensorFlow ops, as a user calls it, beside the same without TensorFlow and a peer.

python tests/benchmarks/bench_embedding.py [--json] [--keys N] [--dim D] [--batch B] [--no-peers]

`store` and `bare` cases come from build/cmake/store_bench (`make bench` builds it): the same table called from C++, and
the least that a table has to do. `tfra` cases need the peer of `make bench-peer`. Ratios are of medians in this run.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from id_stream import IdStream, distinct_keys, touch_memory

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, RandomUniform, TableConfig

_ROOT = Path(__file__).resolve().parents[2]
_STORE_BENCH = _ROOT / "build" / "cmake" / "store_bench"
_PEER_PYTHON = _ROOT / "build" / "peer-venv" / "bin" / "python"
_PEER_SCRIPT = _ROOT / "tests" / "benchmarks" / "peer" / "tfra_peer.py"
_WARM_UP, _ROUNDS = 5, 20
_DRAWS = (1.05, 0.0)
_CASES = ("insert", "lookup", "lookup + update")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Table:
    """A table of `arguments.keys` entries, trained with Adagrad."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._batch, self._dim = arguments.batch, arguments.dim
        self.keys = distinct_keys(arguments.keys)
        self._store = EmbeddingStore([TableConfig("t", self._dim, Adagrad(0.1), RandomUniform())], "bench")
        self._step = tf.function(self._train, input_signature=[tf.TensorSpec([None], tf.int64)])

    def insert(self) -> tuple[float, float]:
        """(seconds of all, longest batch in seconds), all keys in batches."""
        rows, longest = tf.ones((self._batch, self._dim)), 0.0
        start = time.perf_counter()
        for first in range(0, self.keys.size, self._batch):
            ids = tf.constant(self.keys[first : first + self._batch])
            began = time.perf_counter()
            self._store.assign("t", ids, rows[: ids.shape[0]])
            longest = max(longest, time.perf_counter() - began)
        return time.perf_counter() - start, longest

    def memory_bytes(self) -> int:
        return self._store.stats("t").memory_bytes

    def lookup(self, ids: tf.Tensor) -> Any:
        return self._store.lookup("t", ids)

    def step(self, ids: tf.Tensor) -> Any:
        return self._step(ids)

    def _train(self, ids: tf.Tensor) -> tf.Tensor:
        """Look up, loss, gradient, update: what the peer's step does."""
        rows = self._store.lookup("t", ids)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = 1e-6 * tf.reduce_sum(rows * rows)
        self._store.apply_gradients("t", ids, tape.gradient(loss, rows))
        return loss


def median_seconds(work: Callable[[tf.Tensor], Any], ids: IdStream, batch: int) -> float:
    """All batches are drawn before the first runs, as a trainer's are: its input is another thread's work."""
    batches = [tf.constant(ids.draw(batch)) for _ in range(_WARM_UP + _ROUNDS)]
    seconds = []
    for drawn in batches:
        start = time.perf_counter()
        work(drawn)  # returns when it is done: on the CPU eager calls are synchronous
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[_WARM_UP:]))


def measure_ops(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cases `op ...` of both draws, and what the table takes."""
    keys, batch, dim = arguments.keys, arguments.batch, arguments.dim
    payload = 8 + 4 + 4 * 2 * dim
    touch_memory(2 * keys * payload)
    before = resident_bytes()
    table = Table(arguments)
    seconds, longest = table.insert()
    resident = resident_bytes() - before - table.keys.nbytes
    for zipf in _DRAWS:
        ids = IdStream(table.keys, zipf)
        yield _case("op insert", keys / seconds / 1e6, "M ids/s", zipf)
        yield _case("op lookup", batch / median_seconds(table.lookup, ids, batch) / 1e6, "M ids/s", zipf)
        yield _case("op lookup + update", batch / median_seconds(table.step, ids, batch) / 1e6, "M ids/s", zipf)
    yield _case("bytes per entry", table.memory_bytes() / keys, "bytes")
    yield _case("bytes per entry over payload", table.memory_bytes() / keys / payload, "ratio")
    yield _case("resident growth over payload", resident / keys / payload, "ratio")
    yield _case("longest batch of the insert", longest * 1e3, "ms")


def measure_peers(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Cases `store ...`, `bare ...` and `tfra ...`, where these are built."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("keys", "dim", "batch")]
    flat = [part for size in sizes for part in size.split("=")]
    for zipf in _DRAWS:
        if _STORE_BENCH.exists():
            yield from _lines([str(_STORE_BENCH), *flat, "--zipf", str(zipf), "--json"], "", zipf)
        if _PEER_PYTHON.exists():
            yield from _lines([str(_PEER_PYTHON), str(_PEER_SCRIPT), *flat, "--zipf", str(zipf)], "tfra ", zipf)


def _lines(command: list[str], prefix: str, zipf: float) -> Iterator[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            case = json.loads(line)
            yield _case(prefix + case["case"], case["value"], case["unit"], zipf)


def ratios(cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the ops reach of each peer."""
    values = {(case["case"], case.get("zipf")): case["value"] for case in cases}
    for zipf in _DRAWS:
        for case in _CASES:
            for peer in ("store", "bare", "tfra"):
                beside = values.get((f"{peer} {case}", zipf))
                if beside:
                    yield _case(f"op / {peer}, {case}", values[f"op {case}", zipf] / beside, "ratio", zipf)


def _case(name: str, value: float, unit: str, zipf: float | None = None) -> dict[str, Any]:
    case: dict[str, Any] = {"case": name, "value": round(value, 3), "unit": unit}
    return case if zipf is None else case | {"zipf": zipf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=65536)
    parser.add_argument("--no-peers", action="store_true", help="measure the ops alone")
    arguments = parser.parse_args()

    cases: list[dict[str, Any]] = []

    def report(case: dict[str, Any]) -> None:
        cases.append(case)
        sizes = {"keys": arguments.keys, "dim": arguments.dim}
        text = f"{case['case']:<36} {case['value']:>12,.3f} {case['unit']:<8} {case.get('zipf', '')}"
        print(json.dumps(case | sizes) if arguments.json else text, flush=True)

    if not arguments.no_peers:
        for case in measure_peers(arguments):
            report(case)
    for case in measure_ops(arguments):
        report(case)
    for case in ratios(list(cases)):
        report(case)


if __name__ == "__main__":
    main()
