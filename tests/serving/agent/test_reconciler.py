"""Each case: target, what the server has, what is on disk, and what the server should be told."""

from pathlib import Path

import pytest

from millrace.serving.agent.desired_state import Target
from millrace.serving.agent.reconciler import Phase, make_plan
from millrace.serving.server.servable import State
from millrace.serving.server.version_manager import VersionStatus

_A, _L, _E = State.AVAILABLE, State.LOADING, State.END

_CASES = {
    "the first version": (5, [], {5}, Phase.LOADING, (5,)),
    "the old version stays until the target answers": (5, [(4, _A, "")], {4, 5}, Phase.LOADING, (5, 4)),
    "while the target loads too": (5, [(5, _L, ""), (4, _A, "")], {4, 5}, Phase.LOADING, (5, 4)),
    "then the target alone": (5, [(5, _A, ""), (4, _A, "")], {4, 5}, Phase.AVAILABLE, (5,)),
    "of several old ones the newest stays": (5, [(4, _A, ""), (3, _A, "")], {3, 4, 5}, Phase.LOADING, (5, 4)),
    "a rollback keeps the newer until the older answers": (4, [(5, _A, "")], {4, 5}, Phase.LOADING, (4, 5)),
    "a folder that is not there yet is not asked for": (5, [(4, _A, "")], {4}, Phase.WAITING_FOR_FILES, (4,)),
    "without any folder the server is left alone": (5, [], set(), Phase.WAITING_FOR_FILES, None),
    "the version before stands in for a missing one": (5, [], {3, 4}, Phase.WAITING_FOR_FILES, (4,)),
    "a refused target leaves the one before": (5, [(5, _E, "torn"), (4, _A, "")], {4, 5}, Phase.FAILED, (5, 4)),
    "the version before stands in for a refused one": (5, [(5, _E, "torn")], {3, 4, 5}, Phase.FAILED, (5, 4)),
    "unless it was refused too": (5, [(5, _E, "torn"), (4, _E, "torn")], {3, 4, 5}, Phase.FAILED, (5, 3)),
    "a stand-in is never newer": (5, [(5, _E, "torn")], {5, 6}, Phase.FAILED, (5,)),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_plan_for(case: str) -> None:
    version, rows, on_disk, phase, versions = _CASES[case]
    statuses = [VersionStatus(*row) for row in rows]
    plan = make_plan(Target(version, Path(f"/m/{version}")), False, statuses, on_disk)
    assert (plan.phase, plan.versions) == (phase, versions)
    assert bool(plan.error) == (phase in (Phase.FAILED, Phase.WAITING_FOR_FILES))


def test_without_a_target_the_server_is_left_alone_unless_the_model_is_retired() -> None:
    statuses = [VersionStatus(4, State.AVAILABLE, "")]
    assert make_plan(None, False, statuses, set()).versions is None
    assert make_plan(None, True, statuses, set()).versions == ()
