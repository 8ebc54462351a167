"""What all simulated worlds share: a seed, the rules that are switched off, and how a broken promise is told."""

import random
from collections.abc import Callable, Collection, Sequence


class BrokenPromiseError(AssertionError):
    """A world has reached a state that must not be."""


class World:
    """A world that does one random thing after the other; everything in it is a function of the seed.

    Args:
      seed: of all random choices.
      without: names of rules that are switched off, to show that the simulation notices.
    """

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.random = random.Random(seed)
        self.without = frozenset(without)

    def run(self) -> None:
        """Raises BrokenPromiseError."""
        raise NotImplementedError

    def one_of(self, choices: Sequence[tuple[int, Callable[[], None]]]) -> None:
        """Does one of the things, each as often as its weight says."""
        weights = [weight for weight, _ in choices]
        self.random.choices([thing for _, thing in choices], weights)[0]()

    def promise(self, kept: bool, what: str) -> None:
        """Raises BrokenPromiseError unless it is kept."""
        if not kept:
            raise BrokenPromiseError(what)
