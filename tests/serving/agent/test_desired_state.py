import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.serving.agent.desired_state import Announced, DesiredState, Target
from millrace.serving.agent.model_events import EventError, event_key, parse_event
from millrace.serving.agent.state_file import Memory, StateFile


def _event(kind: str, version: int | str, **fields: Any) -> bytes:
    event = {
        "event_id": f"{kind}-{version}",
        "bzid": "default",
        "model_name": "m",
        "kind": kind,
        "version": str(version),
        "export_base": "/models/m",
        "sub_graphs": {"standalone": {"path": f"/models/m/{version}", "size_bytes": "10"}},
        "schema_version": 2,
    }
    return json.dumps(event | fields).encode()


def _after(*events: bytes) -> DesiredState:
    state = DesiredState("default", "m")
    for event in events:
        state.apply(event)
    return state


def _wanted(announced: Announced) -> Target | None:
    return None if announced.retired else announced.held or announced.export


def _version(state: DesiredState) -> int | None:
    target = _wanted(state.announced)
    return target.version if target else None


_CASES = {
    "nothing announced": ([], None),
    "an export is the target": ([("EXPORT", 5)], 5),
    "a newer export replaces it": ([("EXPORT", 5), ("EXPORT", 6)], 6),
    "a duplicate changes nothing": ([("EXPORT", 5), ("EXPORT", 5)], 5),
    "a late export is ignored": ([("EXPORT", 5), ("EXPORT", 4)], 5),
    "a rollback goes back": ([("EXPORT", 5), ("EXPORT", 6), ("ROLLBACK", 5)], 5),
    "exports do not end a rollback": ([("EXPORT", 6), ("ROLLBACK", 5), ("EXPORT", 7), ("EXPORT", 8)], 5),
    "its release does": ([("EXPORT", 6), ("ROLLBACK", 5), ("EXPORT", 7), ("RELEASE", 0)], 7),
    "a second rollback replaces the first": ([("EXPORT", 6), ("ROLLBACK", 5), ("ROLLBACK", 4)], 4),
    "a rollback to an unseen version wins too": ([("EXPORT", 5), ("ROLLBACK", 9), ("EXPORT", 8)], 9),
    "retire removes the target": ([("EXPORT", 5), ("RETIRE", 0)], None),
    "also while it is held": ([("EXPORT", 5), ("ROLLBACK", 4), ("RETIRE", 0)], None),
    "an older export does not revive a retired model": ([("EXPORT", 5), ("RETIRE", 0), ("EXPORT", 4)], None),
    "the same export, announced again, does": ([("EXPORT", 5), ("RETIRE", 0), ("EXPORT", 5)], 5),
    "a newer export revives it": ([("EXPORT", 5), ("RETIRE", 0), ("EXPORT", 6)], 6),
    "a revived model is still held": ([("ROLLBACK", 4), ("RETIRE", 0), ("EXPORT", 6)], 4),
    "a checkpoint is no version to serve": ([("EXPORT", 5), ("CHECKPOINT", 9)], 5),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_target_after(case: str) -> None:
    events, version = _CASES[case]
    assert _version(_after(*(_event(kind, number) for kind, number in events))) == version


def test_the_hold_of_a_guard_ends_with_its_model_and_that_of_a_user_does_not() -> None:
    old, new = {"lineage": "a", "epoch": "1"}, {"lineage": "b", "epoch": "2"}
    hold = _event("ROLLBACK", 4, held_by="guard", **old)
    assert _version(_after(_event("EXPORT", 5, **old), hold)) == 4
    assert _version(_after(_event("EXPORT", 5, **old), hold, _event("EXPORT", 6, **new))) == 6
    assert _version(_after(_event("EXPORT", 6, **new), hold)) == 6, "after compaction"
    user = _event("ROLLBACK", 4, **old)
    assert _version(_after(_event("EXPORT", 5, **old), user, _event("EXPORT", 6, **new))) == 4


def test_a_held_version_takes_deltas_up_to_the_time_of_the_rollback() -> None:
    state = _after(_event("ROLLBACK", 5, as_of_ms="1234"))
    assert state.announced.held == Target(5, Path("/models/m/5"), True, 1234)
    state = _after(_event("ROLLBACK", 5, created_at_ms="99", schema_version=1))
    assert state.announced.held == Target(5, Path("/models/m/5"), True, 99)


@pytest.mark.parametrize(
    ("events", "version"),
    [
        ([("ROLLBACK", "user", 4), ("ROLLBACK", "guard", 5), ("RELEASE", "guard", 0)], 4),
        ([("ROLLBACK", "guard", 5), ("ROLLBACK", "user", 4), ("RELEASE", "user", 0)], 9),
        ([("ROLLBACK", "guard", 5)], 5),
        ([("ROLLBACK", "guard", 5), ("RELEASE", "guard", 0)], 9),
        ([("RELEASE", "user", 0), ("ROLLBACK", "guard", 5)], 5),
        ([("ROLLBACK", "guard", 5), ("RELEASE", "user", 0)], 9),
    ],
)
def test_a_guard_leaves_a_users_rollback_in_force_and_a_user_releases_both_whatever_their_clocks_say(
    events: list[tuple[str, str, int]], version: int
) -> None:
    holds = [
        [
            _event(kind, number, held_by=by, created_at_ms=str(clocks[by] + i))
            for i, (kind, by, number) in enumerate(events)
        ]
        for clocks in ({"user": 0, "guard": 0}, {"user": 3_600_000, "guard": 0}, {"user": 0, "guard": 3_600_000})
    ]
    assert [_version(_after(_event("EXPORT", 9), *each)) for each in holds] == [version] * 3


def test_events_of_other_models_and_name_spaces_do_not_count() -> None:
    state = _after(_event("EXPORT", 5, model_name="other"), _event("EXPORT", 6, bzid="other"))
    assert state.announced == Announced()


def test_the_folder_comes_from_the_sub_graph_else_from_the_export_base() -> None:
    assert str(_after(_event("EXPORT", 5)).announced.export.path) == "/models/m/5"  # type: ignore[union-attr]
    state = _after(_event("ROLLBACK", 4, sub_graphs={}))
    assert str(state.announced.held.path) == "/models/m/4"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("later", "version"),
    [
        ({"lineage": "a", "epoch": "2"}, 3),  # of a newer trainer, although its number is smaller
        ({"lineage": "a", "epoch": "1"}, 5),
        ({"lineage": "b", "epoch": "1", "created_at_ms": "101"}, 3),  # a new model, announced later
        ({"lineage": "b", "epoch": "1", "created_at_ms": "100"}, 5),
        ({"lineage": "b", "epoch": "2", "created_at_ms": "99"}, 3),  # of a trainer that took over; its clock is behind
        ({"created_at_ms": "101"}, 3),  # of a trainer before lineages
    ],
)
def test_exports_go_forward_within_lineage_and_epoch(later: dict[str, str], version: int) -> None:
    first = _event("EXPORT", 5, lineage="a", epoch="1", created_at_ms="100")
    assert _version(_after(first, _event("EXPORT", 3, **({"created_at_ms": "100"} | later)))) == version


def test_another_lineage_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    _after(
        _event("EXPORT", 5, lineage="a", created_at_ms="100"),
        _event("EXPORT", 6, lineage="b", created_at_ms="200"),
        _event("EXPORT", 7, lineage="a", created_at_ms="150"),
    )
    takes_over, ignored = (record.getMessage() for record in caplog.records)
    assert "version 6 of lineage 'b' takes over from version 5 of lineage 'a'" in takes_over
    assert "version 7 of lineage 'a' is ignored" in ignored


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"{", "not a model event"),
        (b"\xff\xfe", "not a model event"),
        (b"[]", "schema_version is 0"),
        (_event("EXPORT", "five"), "not a model event"),
        (_event("PROMOTE", 5), "not a model event|kind is missing"),
        (_event("EXPORT", 5, schema_version=3), "schema_version is 3"),
        (_event("EXPORT", 5, model_name=""), "model_name or kind is missing"),
        (_event("EXPORT", -1), "must be positive"),
        (_event("EXPORT", 5, epoch=str(1 << 62)), "must be below 2\\^62"),
        (_event("ROLLBACK", 0), "must be positive"),
        (_event("EXPORT", 5, sub_graphs={"standalone": {"path": "models/5"}}), "not an absolute path"),
        (_event("EXPORT", 5, sub_graphs={"standalone": {"path": "/models/6"}}), "ends in the version 5"),
    ],
)
def test_a_malformed_event_is_refused_and_changes_nothing(value: bytes, problem: str) -> None:
    state = _after(_event("EXPORT", 3))
    with pytest.raises(EventError, match=problem):
        state.apply(value)
    assert _version(state) == 3


def test_unknown_fields_and_schema_1_are_read() -> None:
    assert _version(_after(_event("EXPORT", 5, new_field={"a": 1}, schema_version=1))) == 5


# What trainers and commands can write: exports that never go back under their key, and holds in any order.


@st.composite
def _logs(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    lineage, epoch, version, log = 0, 0, 1, []
    for moment in range(1, draw(st.integers(1, 14)) + 1):
        kind = draw(st.sampled_from(["EXPORT", "EXPORT", "EXPORT", "RETIRE", "ROLLBACK", "RELEASE"]))
        fields: dict[str, Any] = {"created_at_ms": str(moment), "event_id": str(moment)}
        if kind in ("ROLLBACK", "RELEASE"):
            fields["held_by"] = draw(st.sampled_from(["user", "guard"]))
        if kind == "EXPORT":
            step = draw(st.sampled_from(["again", "version", "epoch", "lineage"]))
            version += step != "again"
            epoch += step == "epoch"
            if step == "lineage":
                lineage, epoch, version = lineage + 1, 0, draw(st.integers(1, 9))
        fields |= {"lineage": str(lineage), "epoch": str(epoch)}
        number = draw(st.integers(1, 9)) if kind == "ROLLBACK" else version
        value = _event(kind, number, **fields)
        log.append((event_key(parse_event(value)), value))
    return log


def _compacted(log: Sequence[tuple[str, bytes]], upto: int) -> list[tuple[str, bytes]]:
    """`log` with only the newest record of each key among the first `upto`, as a broker may leave it at any time."""
    last = {key: i for i, (key, _) in enumerate(log[:upto])}
    return [record for i, record in enumerate(log) if i >= upto or last[record[0]] == i]


def _by_the_last_of_each_key(log: Sequence[tuple[str, bytes]]) -> tuple[bool, int | None]:
    """(retired, version that should run), from the newest event of each key alone, and the order of the two holds."""
    last = {key: parse_event(value) for key, value in log}
    place = {key: i for i, (key, _) in enumerate(log)}
    version, hold = last.get("default/m"), last.get("default/m/hold")
    if version is not None and version.kind == version.RETIRE:
        return True, None
    guard = last.get("default/m/hold/guard")
    if hold is not None and hold.kind == hold.ROLLBACK:
        return False, hold.version
    is_later = guard is not None and (hold is None or place["default/m/hold"] < place["default/m/hold/guard"])
    is_of_model = guard is not None and (version is None or guard.lineage == version.lineage)
    if guard is not None and guard.kind == guard.ROLLBACK and is_later and is_of_model:
        return False, guard.version
    return False, version.version if version is not None else None


@dataclass
class _Reader:
    """An agent that reads a topic to its end, saves what it knows, ends, and starts again."""

    path: Path
    log: list[tuple[str, bytes]]
    read: int = 0
    compacted: int = 0
    state: DesiredState = field(default_factory=lambda: DesiredState("default", "m"))

    def go_on(self, upto: int) -> None:
        for _, value in self.log[self.read : upto]:
            self.state.apply(value)
        self.read = max(self.read, upto)

    def restart(self, compact: int) -> None:
        store = StateFile(self.path, "m")
        store.save(Memory(self.state.announced))
        self.state = DesiredState("default", "m", StateFile(self.path, "m").load().announced)
        for _, value in _compacted(self.log[: self.read], min(compact, self.read)):
            self.state.apply(value)


@given(_logs(), st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=4), st.integers(0, 14))
def test_restarts_and_compaction_at_any_point_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[tuple[str, bytes]],
    stops: list[tuple[int, int]],
    compact: int,
) -> None:
    expected = _by_the_last_of_each_key(log)
    reader = _Reader(tmp_path_factory.mktemp("state") / "state.json", log)
    for upto, compacted in sorted(stops):
        reader.go_on(min(upto, len(log)))
        reader.restart(compacted)
    reader.go_on(len(log))
    fresh = _after(*(value for _, value in _compacted(log, compact)))
    for state in (reader.state, fresh):
        target = _wanted(state.announced)
        assert (state.announced.retired, target.version if target else None) == expected


@given(_logs(), st.randoms())
def test_the_order_between_exports_and_holds_does_not_matter(log: list[tuple[str, bytes]], random: Any) -> None:
    keys = {key: key.split("/")[2:3] == ["hold"] for key, _ in log}
    queues = {kind: [value for key, value in log if keys[key] is kind] for kind in set(keys.values())}
    state = DesiredState("default", "m")
    while queues:
        key = random.choice(sorted(queues))
        state.apply(queues[key].pop(0))
        if not queues[key]:
            del queues[key]
    target = _wanted(state.announced)
    assert (state.announced.retired, target.version if target else None) == _by_the_last_of_each_key(log)


@given(_logs(), st.integers(0, 14))
def test_a_late_export_changes_nothing_for_who_remembers(
    tmp_path_factory: pytest.TempPathFactory, log: list[tuple[str, bytes]], compact: int
) -> None:
    newest = _after(*(value for _, value in log)).announced.newest
    lineage = {"lineage": newest.lineage if newest else "x", "epoch": str(newest.epoch if newest else 0)}
    version = newest.version if newest else 9
    log = [*log, ("default/m", _event("EXPORT", version + 1, **lineage))]
    late = [("default/m", _event("EXPORT", number, **lineage)) for number in (1, version)]
    reader = _Reader(tmp_path_factory.mktemp("state") / "state.json", [*log, *late])
    reader.go_on(len(reader.log))
    reader.restart(compact)
    target = _wanted(reader.state.announced)
    assert (reader.state.announced.retired, target.version if target else None) == _by_the_last_of_each_key(log)
