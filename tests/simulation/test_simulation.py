import logging
from collections.abc import Iterator

import pytest

from tests.simulation.run import RULES, WORLDS, run_seed

_SEEDS = 60  # a slice of `make simulate`: some seconds
_MOST_SEEDS = 1500  # the rarest of these faults shows after some hundred seeds


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
def test_all_promises_are_kept_whatever_happens(world: type) -> None:
    problems = {seed: problem for seed in range(_SEEDS) if (problem := run_seed(seed, world=world))}
    assert not problems


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_switched_off_breaks_a_promise(rule: str) -> None:
    assert any("BrokenPromiseError" in run_seed(seed, [rule], RULES[rule]) for seed in range(_MOST_SEEDS))
