"""Runs simulated worlds and reports the seeds whose promises were broken.

python -m tests.simulation.run [--seeds 10000] [--seed N] [--without RULE] [--workers 2]

a seed decides on the world and on everything that happens in it, so `--seed N` shows a failure again.
"""

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.feed_world import FeedWorld
from tests.simulation.publish_world import PublishWorld
from tests.simulation.version_world import VersionWorld
from tests.simulation.world import World

# The world of seed n is that of n modulo their number; the feed's takes the longest.
WORLDS: tuple[type[World], ...] = (FeedWorld, PublishWorld, VersionWorld)

RULES: dict[str, type[World]] = {
    "floors": FeedWorld,
    "incarnations": FeedWorld,
    "floor commits": FeedWorld,
    "source numbers": FeedWorld,
    "shard clock": FeedWorld,
    "lease": PublishWorld,
    "known lineage": PublishWorld,
    "epochs": PublishWorld,
    "dense parts": PublishWorld,
    "spared versions": VersionWorld,
}
"""{rule that can be switched off: the world that must notice}."""

_BATCH = 50  # seeds that a worker runs at a time


def run_seed(seed: int, without: Collection[str] = (), world: type[World] | None = None) -> str:
    """Why the world of `seed` broke a promise; "" if it kept all."""
    try:
        (world or WORLDS[seed % len(WORLDS)])(seed, without).run()
    except Exception:  # an error of the product's code is a broken promise too
        return traceback.format_exc()
    return ""


def _run_batch(seeds: range, without: tuple[str, ...]) -> list[tuple[int, str]]:
    logging.disable(logging.CRITICAL)  # the product logs every fault that it survives
    return [(seed, problem) for seed in seeds if (problem := run_seed(seed, without))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000, help="run the seeds 0..N-1 (default: 10000)")
    parser.add_argument("--seed", type=int, help="run this one only, and show what the product logs")
    parser.add_argument("--without", action="append", default=[], choices=RULES, help="a rule to switch off")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    without = tuple(arguments.without)
    if arguments.seed is not None:
        problem = run_seed(arguments.seed, without)
        print(problem or f"seed {arguments.seed}: all promises are kept")
        return 1 if problem else 0
    began = time.monotonic()
    failed = _run_all(arguments.seeds, without, arguments.workers)
    for seed, problem in failed[:10]:
        print(f"seed {seed}: {problem.strip().splitlines()[-1]}")
    result = f"{len(failed)} broke a promise" if failed else "all promises are kept"
    print(f"{arguments.seeds} seeds in {time.monotonic() - began:.0f} s: {result}")
    if failed:
        print(f"again: python -m tests.simulation.run --seed {failed[0][0]}")
    return 1 if failed else 0


def _run_all(seeds: int, without: tuple[str, ...], workers: int) -> list[tuple[int, str]]:
    batches = [range(first, min(first + _BATCH, seeds)) for first in range(0, seeds, _BATCH)]
    failed: list[tuple[int, str]] = []
    done = 0
    with ProcessPoolExecutor(workers) as pool:
        for batch, found in zip(batches, pool.map(_run_batch, batches, [without] * len(batches)), strict=True):
            failed += found
            done += len(batch)
            print(f"\r{done} of {seeds} seeds, {len(failed)} failed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
