"""What the fuzzers written in Python have in common: runs that their number repeats, and a command line."""

import argparse
import time
from collections.abc import Callable


def count(run: Callable[[int], bool], runs: int, seed: int) -> int:
    """How many of the runs with the numbers `seed` and following returned True.

    Raises AssertionError, with how to repeat the run, when one raises.
    """
    found = 0
    for number in range(seed, seed + runs):
        try:
            found += run(number)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}; repeat with --runs 1 --seed {number}") from error
    return found


def main(about: str, fuzz: Callable[[int, int], int], found: str, others: str = "refused") -> None:
    """The command line of a fuzzer.

    Args:
      about: what it does, in one line.
      fuzz: takes the number of runs and the first one's number; returns how many of them were `found`.
      found, others: words for the two outcomes.
    """
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    start = time.monotonic()
    number = fuzz(arguments.runs, arguments.seed)
    rate = arguments.runs / (time.monotonic() - start)
    print(f"{others} {arguments.runs - number:,}, {found} {number:,}, {rate:,.0f} runs a second")
