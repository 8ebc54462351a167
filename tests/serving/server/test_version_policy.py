"""Each case: what the versions are, and the one action that the policy asks for, or the version that answers."""

import pytest

from millrace.serving.server.servable import State
from millrace.serving.server.version_policy import Action, ActionKind, VersionSnapshot, best, next_action

_START, _LOADING, _AVAILABLE, _UNLOADING, _END = State
_LOAD, _UNLOAD = ActionKind.LOAD, ActionKind.UNLOAD

_Case = tuple[int, State, bool]

_CASES: dict[str, tuple[list[_Case], tuple[ActionKind, int] | None]] = {
    "nothing known, nothing to do": ([], None),
    "an aspired version is loaded": ([(1, _START, True)], (_LOAD, 1)),
    "the newest of several is loaded first": ([(1, _START, True), (3, _START, True), (2, _START, True)], (_LOAD, 3)),
    "a version that is no longer aspired is not loaded": ([(1, _START, False)], None),
    "the old version stays while the new one loads": ([(1, _AVAILABLE, False), (2, _LOADING, True)], None),
    "the new version is loaded beside the old one": ([(1, _AVAILABLE, False), (2, _START, True)], (_LOAD, 2)),
    "the old version goes once the new one answers": ([(1, _AVAILABLE, False), (2, _AVAILABLE, True)], (_UNLOAD, 1)),
    "the old version stays when the new one failed": ([(1, _AVAILABLE, False), (2, _END, True)], None),
    "the oldest of several goes first": (
        [(2, _AVAILABLE, False), (1, _AVAILABLE, False), (3, _AVAILABLE, True)],
        (_UNLOAD, 1),
    ),
    "everything goes when nothing is aspired": ([(1, _AVAILABLE, False)], (_UNLOAD, 1)),
    "an unload under way is not asked for again": ([(1, _UNLOADING, False), (2, _AVAILABLE, True)], None),
    "a load under way is not asked for again": ([(2, _LOADING, True)], None),
    "a failed version is not loaded again": ([(2, _END, True)], None),
    "unloading goes before loading": (
        [(1, _AVAILABLE, False), (2, _AVAILABLE, True), (3, _START, True)],
        (_UNLOAD, 1),
    ),
    "one load at a time": ([(1, _AVAILABLE, False), (2, _LOADING, False), (3, _START, True)], None),
    "a load waits for an unload": ([(1, _UNLOADING, False), (2, _AVAILABLE, False), (3, _START, True)], None),
    "a version that took long is newer than what serves, and stays": (
        [(1, _AVAILABLE, True), (2, _AVAILABLE, False), (5, _START, True)],
        (_LOAD, 5),
    ),
    "of two that are no longer aspired the newer stays": (
        [(1, _AVAILABLE, False), (2, _AVAILABLE, False), (5, _LOADING, True)],
        (_UNLOAD, 1),
    ),
    "a rollback loads the older version first": ([(1, _START, True), (2, _AVAILABLE, False)], (_LOAD, 1)),
    "after a rollback the newer version goes": ([(1, _AVAILABLE, True), (2, _AVAILABLE, False)], (_UNLOAD, 2)),
    "a version that ends loading in a rollback goes at once": (
        [(1, _START, True), (2, _AVAILABLE, False), (3, _AVAILABLE, False)],
        (_UNLOAD, 3),
    ),
    "a version is loaded anew beside the one that it replaces": (
        [(2, _AVAILABLE, False), (2, _START, True)],
        (_LOAD, 2),
    ),
    "steady": ([(1, _END, False), (2, _AVAILABLE, True)], None),
}


def _snapshots(rows: list[_Case]) -> list[VersionSnapshot]:
    return [VersionSnapshot(*row) for row in rows]


@pytest.mark.parametrize("case", _CASES)
def test_the_policy_asks_for(case: str) -> None:
    rows, expected = _CASES[case]
    action = next_action(_snapshots(rows))
    assert (action and (action.kind, rows[action.index][0])) == expected


def test_a_version_that_replaces_one_of_the_same_number_is_told_apart_by_its_place() -> None:
    assert next_action(_snapshots([(2, _AVAILABLE, True), (2, _AVAILABLE, False)])) == Action(_UNLOAD, 1)
    assert next_action(_snapshots([(2, _AVAILABLE, False), (2, _AVAILABLE, True)])) == Action(_UNLOAD, 0)


_BEST: dict[str, tuple[list[_Case], int | None]] = {
    "nothing is loaded": ([(1, _LOADING, True)], None),
    "the newest answers until the target does": (
        [(1, _AVAILABLE, True), (2, _AVAILABLE, False), (5, _LOADING, True)],
        1,
    ),
    "the target answers": ([(1, _AVAILABLE, False), (5, _AVAILABLE, True)], 1),
    "a rollback's target answers, though it is older": ([(2, _AVAILABLE, False), (1, _AVAILABLE, True)], 1),
    "in a rollback the oldest of the newer versions answers until then": (
        [(3, _AVAILABLE, False), (2, _AVAILABLE, False), (1, _LOADING, True)],
        1,
    ),
    "of two loads of a version the aspired one answers": ([(2, _AVAILABLE, True), (2, _AVAILABLE, False)], 0),
    "nothing is aspired": ([(1, _AVAILABLE, False), (2, _AVAILABLE, False)], 1),
}


@pytest.mark.parametrize("case", _BEST)
def test_the_best_version_is(case: str) -> None:
    rows, expected = _BEST[case]
    assert best(_snapshots(rows)) == expected
