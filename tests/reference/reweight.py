"""How often one row counts, and with which label."""

import math
from collections.abc import Sequence

from millrace.transforms.steps.labels.reweight import ActionWeight


def reweight(
    before: Sequence[int], now: Sequence[int], label: float, priority: Sequence[int], weights: Sequence[ActionWeight]
) -> tuple[int, float]:
    labels = {weight.action: weight.label for weight in weights}
    if _standing(before, priority) <= _standing(now, priority):
        return (0 if before or now else 1), label
    label = labels.get(_best(now, priority), label)
    was, is_now = _count(before, priority, weights), _count(now, priority, weights)
    if _best(before, priority) not in labels:
        return is_now, label
    if math.trunc(labels[_best(before, priority)]) != math.trunc(label):
        return was + is_now, label
    if was > is_now:
        return was - is_now, -label
    return is_now - was, label


def _best(actions: Sequence[int], priority: Sequence[int]) -> int | None:
    return next((action for action in priority if action in actions), None)


def _standing(actions: Sequence[int], priority: Sequence[int]) -> int:
    if not actions:
        return 2000
    best = _best(actions, priority)
    return 1000 if best is None else list(priority).index(best) + 1


def _count(actions: Sequence[int], priority: Sequence[int], weights: Sequence[ActionWeight]) -> int:
    if not actions:
        return 0
    by_action = {weight.action: weight.weight for weight in weights}
    count = 1
    for action in actions:
        if action not in priority or action == _best(actions, priority):
            count *= by_action.get(action, 1)
    return count
