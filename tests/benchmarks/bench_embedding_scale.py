"""The table called from C++ beside a bare loop over memory: by number of keys, dim and threads.

python tests/benchmarks/bench_embedding_scale.py [--json]

Needs build/cmake/store_bench, which `make bench` builds. The cost a key of both follows the caches; the last lines say
how far the store's curve leaves the bare one's.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STORE_BENCH = Path(__file__).resolve().parents[2] / "build" / "cmake" / "store_bench"
_KEYS = (1_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000)
_DIMS = (1, 8, 32, 64)
_THREADS = (1, 2, 4)
_BASE = 10_000_000
_BYTES_A_KEY = 200  # of dim 16, with what the draw takes


def measure(keys: int, dim: int, threads: int) -> Iterator[dict[str, Any]]:
    """Cases `bare ...` and `store ...` of uniform ids."""
    command = [str(_STORE_BENCH), "--keys", str(keys), "--dim", str(dim), "--threads", str(threads)]
    done = subprocess.run([*command, "--zipf", "0", "--json"], capture_output=True, text=True, check=True, timeout=300)
    for line in done.stdout.splitlines():
        case = json.loads(line)
        yield {key: case[key] for key in ("case", "value", "unit", "keys", "dim", "threads")}


def departures(curve: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How much more the store's cost a key grew than the bare loop's, since the fewest keys."""
    rates = {(case["case"], case["keys"]): case["value"] for case in curve}
    sizes = sorted({case["keys"] for case in curve})
    for operation in ("lookup", "lookup + update"):
        for keys in sizes[1:]:
            growth = [
                rates[f"{who} {operation}", sizes[0]] / rates[f"{who} {operation}", keys] for who in ("store", "bare")
            ]
            case = f"growth of the cost over bare's, {operation}"
            yield {"case": case, "value": round(growth[0] / growth[1], 3), "unit": "ratio", "keys": keys, "dim": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def report(case: dict[str, Any]) -> None:
        words = "  ".join(f"{key}={case[key]}" for key in ("keys", "dim", "threads") if key in case)
        text = f"{case['case']:<48} {case['value']:>10,.2f} {case['unit']:<8} {words}"
        print(json.dumps(case) if arguments.json else text, flush=True)

    if not _STORE_BENCH.exists():
        raise SystemExit("build/cmake/store_bench is not built: run `make build/cmake/store_bench`")
    curve = []
    for keys in _KEYS:
        if keys * _BYTES_A_KEY > memory * 0.6:
            continue
        for case in measure(keys, 16, 2):
            curve.append(case)
            report(case)
    for case in departures(curve):
        report(case)
    for dim in _DIMS:
        for case in measure(_BASE, dim, 2):
            report(case)
    for threads in _THREADS:
        for case in measure(_BASE, 16, threads):
            report(case)


if __name__ == "__main__":
    main()
