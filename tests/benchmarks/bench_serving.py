"""Prediction rate and latency of one server process, asked over gRPC from this one.

python tests/benchmarks/bench_serving.py [--json]
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import Deadline, wait_until
from millrace.serving.client.predict_client import PredictClient
from tests.fakes.exports import MODEL, write_table_export

_ITEMS = 10_000
_START_SECONDS = 60.0
_WARM_UP_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table_export(folder, 1, {item: item / _ITEMS for item in range(_ITEMS)})
        flags = ["--port", "0", "--model-name", MODEL, "--base-path", str(folder), "--no-deltas"]
        env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        server = ChildProcess("serve", [sys.executable, "-m", "millrace.cli.main", "serve", *flags], folder, env)
        server.start()
        try:
            address = str(server.wait_ready(_START_SECONDS)["address"])
            wait_until(lambda: _answers(address), _START_SECONDS, "a loaded version")
            for batch in (1, 100):
                for clients in (1, 4):
                    _report(_measure(address, batch, clients, arguments.seconds), batch, clients, arguments.json)
        finally:
            server.stop()


def _answers(address: str) -> bool:
    try:
        with PredictClient(address, MODEL) as client:
            client.predict({"item_id": np.zeros(1, np.int64)})
    except Exception:  # not loaded yet
        return False
    return True


def _measure(address: str, batch: int, clients: int, seconds: float) -> np.ndarray:
    """Latencies in seconds of all requests that `clients` threads made one after the other in `seconds`."""
    latencies: list[float] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        with PredictClient(address, MODEL) as client:
            for deadline, keep in ((Deadline(_WARM_UP_SECONDS), False), (Deadline(_WARM_UP_SECONDS + seconds), True)):
                while not deadline.expired():
                    inputs = {"item_id": random.integers(_ITEMS, size=batch)}
                    begin = time.perf_counter()
                    client.predict(inputs)
                    if keep:
                        latencies.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(latencies)


def _report(latencies: np.ndarray, batch: int, clients: int, as_json: bool) -> None:
    seconds = float(latencies.sum()) / clients
    case = {
        "case": f"predict, batch {batch}, {clients} client{'s' if clients > 1 else ''}",
        "value": round(len(latencies) / seconds, 1),
        "unit": "requests/s",
        "p50_ms": round(float(np.percentile(latencies, 50)) * 1000, 3),
        "p99_ms": round(float(np.percentile(latencies, 99)) * 1000, 3),
    }
    if as_json:
        print(json.dumps(case), flush=True)
    else:
        print(
            f"{case['case']:<34} {case['value']:>9} requests/s  p50 {case['p50_ms']} ms  p99 {case['p99_ms']} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
