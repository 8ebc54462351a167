"""The most prior action of one row."""

from collections.abc import Sequence


def most_prior(actions: Sequence[int] | None, priority: Sequence[int]) -> int | None:
    if not actions:
        return None
    for action in priority:
        if action in actions:
            return action
    return actions[0]
