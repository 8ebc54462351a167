"""Draws a scenario from a seed: a runner, a rate of events, and the faults with their times."""

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

Runner = Literal["prism", "flink"]
FaultKind = Literal["kill feed", "kill worker", "kill broker", "restart broker", "resubmit"]

# On Prism the workers run inside the feed.
_KINDS: dict[Runner, tuple[FaultKind, ...]] = {
    "prism": ("kill feed", "kill broker", "restart broker", "resubmit"),
    "flink": ("kill worker", "kill broker", "restart broker", "resubmit"),
}
_BEFORE_SECONDS, _BETWEEN_SECONDS, _AFTER_SECONDS = (1.0, 8.0), (2.0, 6.0), 3.0
_RATES = (200, 1500)


class Fault(NamedTuple):
    """A fault that strikes after `after_seconds` of events since the last fault, or since the start."""

    after_seconds: float
    kind: FaultKind


@dataclass(frozen=True)
class Scenario:
    """One run; `rate` is in events per second, `seconds` passes from the last fault to the end of the events."""

    runner: Runner
    seed: int
    rate: int
    faults: tuple[Fault, ...]
    seconds: float = _AFTER_SECONDS

    @property
    def name(self) -> str:
        return f"{self.runner}-{self.seed}"

    def describe(self) -> str:
        return ", ".join(f"{fault.kind} after {fault.after_seconds:.1f} s" for fault in self.faults)


def scenario_of(runner: Runner, seed: int) -> Scenario:
    """The scenario of a seed; seeds that follow each other begin with different faults."""
    rng = random.Random(f"{runner} {seed}")
    kinds = _KINDS[runner]
    first = Fault(rng.uniform(*_BEFORE_SECONDS), kinds[seed % len(kinds)])
    more = [Fault(rng.uniform(*_BETWEEN_SECONDS), rng.choice(kinds)) for _ in range(rng.randrange(2))]
    return Scenario(runner, seed, rng.randrange(*_RATES), (first, *more))
