"""Checks that the rules of a table share. A failed one is a ValueError that says the rule, the field and its bounds."""

import dataclasses
import math
from typing import Any


def check(rule: object, condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(f"{rule}: {problem}")


def check_number(rule: object, name: str, low: float = 0.0, below: float = math.inf) -> None:
    """A finite int or float in [low, below)."""
    value = getattr(rule, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    check(rule, number, f"{name} must be a number, not {value!r}")
    lowest = "not negative" if low == 0 else f"at least {low}"
    check(rule, math.isfinite(value) and value >= low, f"{name} must be finite and {lowest}, not {value!r}")
    check(rule, value < below, f"{name} must be below {below:g}, not {value!r}")


def check_positive(rule: object, name: str) -> None:
    check_number(rule, name)
    check(rule, getattr(rule, name) > 0, f"{name} must be above 0, not {getattr(rule, name)!r}")


def check_count(rule: object, name: str, low: int = 0) -> None:
    value = getattr(rule, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    check(rule, whole and value >= low, f"{name} must be an integer of at least {low}, not {value!r}")


def check_flag(rule: object, name: str) -> None:
    value = getattr(rule, name)
    check(rule, isinstance(value, bool), f"{name} must be True or False, not {value!r}")


def check_optimizer(rule: Any, fractions: tuple[str, ...] = ()) -> None:
    """All fields of an optimizer: numbers are not negative, and below 1 where named in `fractions`."""
    for field in dataclasses.fields(rule):
        if field.name == "learning_rate" and callable(rule.learning_rate):
            check(rule, rule.warmup_steps == 0, "warmup_steps need a learning_rate that is a number, not a function")
        elif field.type is bool:
            check_flag(rule, field.name)
        elif field.type is int:
            check_count(rule, field.name)
        else:
            check_number(rule, field.name, below=1.0 if field.name in fractions else math.inf)
