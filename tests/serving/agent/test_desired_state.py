import json
from typing import Any

import pytest

from millrace.serving.agent.desired_state import DesiredState, EventError


def _event(kind: str, version: int | str, **fields: Any) -> bytes:
    event = {
        "event_id": f"{kind}-{version}",
        "bzid": "default",
        "model_name": "m",
        "kind": kind,
        "version": str(version),
        "export_base": "/models/m",
        "sub_graphs": {"standalone": {"path": f"/models/m/{version}", "size_bytes": "10"}},
        "schema_version": 1,
    }
    return json.dumps(event | fields).encode()


def _after(*events: bytes) -> DesiredState:
    state = DesiredState("default", "m")
    for event in events:
        state.apply(event)
    return state


def _version(state: DesiredState) -> int | None:
    return state.target.version if state.target else None


_CASES = {
    "nothing announced": ([], None, 0),
    "an export is the target": ([("EXPORT", 5)], 5, 5),
    "a newer export replaces it": ([("EXPORT", 5), ("EXPORT", 6)], 6, 6),
    "a duplicate changes nothing": ([("EXPORT", 5), ("EXPORT", 5)], 5, 5),
    "a late export is ignored": ([("EXPORT", 5), ("EXPORT", 4)], 5, 5),
    "a rollback goes back": ([("EXPORT", 5), ("EXPORT", 6), ("ROLLBACK", 5)], 5, 6),
    "after a rollback the same export is late": ([("EXPORT", 6), ("ROLLBACK", 5), ("EXPORT", 6)], 5, 6),
    "after a rollback a newer export resumes": ([("EXPORT", 6), ("ROLLBACK", 5), ("EXPORT", 7)], 7, 7),
    "a rollback to an unseen version wins too": ([("EXPORT", 5), ("ROLLBACK", 9), ("EXPORT", 8)], 9, 9),
    "retire removes the target": ([("EXPORT", 5), ("RETIRE", 0)], None, 5),
    "a late export does not revive a retired model": ([("EXPORT", 5), ("RETIRE", 0), ("EXPORT", 5)], None, 5),
    "a newer export revives a retired model": ([("EXPORT", 5), ("RETIRE", 0), ("EXPORT", 6)], 6, 6),
    "a checkpoint is no version to serve": ([("EXPORT", 5), ("CHECKPOINT", 9)], 5, 5),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_target_after(case: str) -> None:
    events, version, newest_seen = _CASES[case]
    state = _after(*(_event(kind, number) for kind, number in events))
    assert (_version(state), state.newest_seen) == (version, newest_seen)


def test_events_of_other_models_and_businesses_do_not_count() -> None:
    state = _after(_event("EXPORT", 5, model_name="other"), _event("EXPORT", 6, bzid="other"))
    assert state.target is None


def test_the_folder_comes_from_the_sub_graph_else_from_the_export_base() -> None:
    assert str(_after(_event("EXPORT", 5)).target.path) == "/models/m/5"  # type: ignore[union-attr]
    state = _after(_event("ROLLBACK", 4, sub_graphs={}))
    assert str(state.target.path) == "/models/m/4"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"{", "not a model event"),
        (b"\xff\xfe", "not a model event"),
        (b"[]", "schema_version is 0"),
        (_event("EXPORT", "five"), "not a model event"),
        (_event("PROMOTE", 5), "not a model event|kind is missing"),
        (_event("EXPORT", 5, schema_version=2), "schema_version is 2"),
        (_event("EXPORT", 5, model_name=""), "model_name or kind is missing"),
        (_event("EXPORT", -1), "must be positive"),
        (_event("EXPORT", 5, sub_graphs={"standalone": {"path": "models/5"}}), "not an absolute path"),
        (_event("EXPORT", 5, sub_graphs={"standalone": {"path": "/models/6"}}), "ends in the version 5"),
    ],
)
def test_a_malformed_event_is_refused_and_changes_nothing(value: bytes, problem: str) -> None:
    state = _after(_event("EXPORT", 3))
    with pytest.raises(EventError, match=problem):
        state.apply(value)
    assert (_version(state), state.newest_seen) == (3, 3)


def test_unknown_fields_are_read_over() -> None:
    assert _version(_after(_event("EXPORT", 5, new_field={"a": 1}))) == 5
