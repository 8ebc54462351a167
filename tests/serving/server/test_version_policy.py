"""Each case: what the versions are, and the one action that the policy asks for."""

import pytest

from millrace.serving.server.servable import State
from millrace.serving.server.version_policy import Action, ActionKind, VersionSnapshot, next_action

_START, _LOADING, _AVAILABLE, _UNLOADING, _END = State
_LOAD, _UNLOAD = ActionKind.LOAD, ActionKind.UNLOAD

_CASES = {
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
    "loading goes before unloading": (
        [(1, _AVAILABLE, False), (2, _AVAILABLE, True), (3, _START, True)],
        (_LOAD, 3),
    ),
    "a rollback loads the older version first": ([(1, _START, True), (2, _AVAILABLE, False)], (_LOAD, 1)),
    "after a rollback the newer version goes": ([(1, _AVAILABLE, True), (2, _AVAILABLE, False)], (_UNLOAD, 2)),
    "steady": ([(1, _END, False), (2, _AVAILABLE, True)], None),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_policy_asks_for(case: str) -> None:
    snapshots, expected = _CASES[case]
    action = next_action([VersionSnapshot(*snapshot) for snapshot in snapshots])
    assert action == (Action(*expected) if expected else None)
