from collections.abc import Callable
from pathlib import Path
from typing import Any

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.serving.agent.desired_state import Announced, Target
from millrace.serving.agent.gate import ExportFacts, ExportGate, parse_gate
from millrace.serving.agent.version_chooser import Choice, VersionChooser

_SENT = {"user_id": "int64"}


def _export(version: int, base: str = "/m", **quality: float) -> ModelEvent:
    return ModelEvent(
        kind=ModelEvent.EXPORT,
        version=version,
        export_base=base,
        quality={"rows": 10.0} | quality,
        created_at_ms=version,
    )


def _announced(event: ModelEvent, hold: ModelEvent | None = None) -> Announced:
    return Announced(event, event, hold)


def _target(version: int, base: str = "/m", **fields: Any) -> Target:
    return Target(version, Path(base) / str(version), **fields)


def _on_disk(*versions: int) -> Callable[..., tuple[int, ...]]:
    return lambda *_: versions


class _Manifests(dict[int, ExportFacts]):
    def __call__(self, folder: Path) -> ExportFacts | None:
        return self.get(int(folder.name))


def test_a_version_that_the_gate_refuses_leaves_the_one_before_in_service() -> None:
    chooser = VersionChooser(parse_gate("auc>0.6"), read=_Manifests())
    assert chooser.choose(_announced(_export(1, auc=0.7)), _on_disk(1)) == Choice(_target(1))
    refused = chooser.choose(_announced(_export(2, auc=0.5)), _on_disk(1, 2))
    assert refused == Choice(_target(1), 2, "auc>0.6 is required, and its auc is 0.5")
    assert chooser.choose(_announced(_export(3, auc=0.61)), _on_disk(1, 2, 3)) == Choice(_target(3))


def test_a_blank_model_takes_nothing_over() -> None:
    chooser = VersionChooser(ExportGate(), read=_Manifests())
    chooser.choose(_announced(_export(1)), _on_disk(1))
    choice = chooser.choose(_announced(_export(2, "/new", rows=0.0)), _on_disk(2))
    assert (choice.target, choice.held_back) == (_target(1), 2)


def test_a_new_replica_goes_back_to_the_newest_version_that_passes() -> None:
    manifests = _Manifests({1: ExportFacts({"auc": 0.7, "rows": 1.0}), 2: ExportFacts({"auc": 0.65, "rows": 1.0})})
    chooser = VersionChooser(parse_gate("auc>0.6"), read=manifests)
    assert chooser.choose(_announced(_export(3, auc=0.5)), _on_disk(1, 2, 3)).target == _target(2)
    assert chooser.choose(_announced(_export(3, auc=0.5)), _on_disk(3)).target is None


def test_what_answers_says_what_the_next_version_must_take() -> None:
    same, other = ExportFacts({"rows": 1.0}, _SENT), ExportFacts({"rows": 1.0}, {"item_id": "int64"})
    chooser = VersionChooser(ExportGate(), read=_Manifests({1: same, 2: other, 3: same, 4: other}))
    choice = chooser.choose(_announced(_export(1)), _on_disk(1))
    chooser.note(choice.target, [1], _on_disk(1))
    assert chooser.choose(_announced(_export(2)), _on_disk(1, 2)).held_back == 2
    assert chooser.choose(_announced(_export(3)), _on_disk(1, 2, 3)).target == _target(3)
    # A failed version has no clients: those of version 1 still count. Once that is gone from disk and server, none do.
    chooser.note(_target(3), [1], _on_disk(1))
    assert chooser.choose(_announced(_export(4)), _on_disk(1, 4)).held_back == 4
    chooser.note(_target(3), [], _on_disk(4))
    assert chooser.choose(_announced(_export(4)), _on_disk(4)).target == _target(4)


def test_a_held_version_needs_no_gate_and_stays() -> None:
    chooser = VersionChooser(parse_gate("auc>0.9"), read=_Manifests())
    hold = ModelEvent(kind=ModelEvent.ROLLBACK, version=1, export_base="/m", as_of_ms=7)
    for version in (2, 3, 4):
        choice = chooser.choose(_announced(_export(version), hold), _on_disk())
        assert choice == Choice(_target(1, is_held=True, as_of_ms=7))


def test_a_pinned_version_is_served_as_it_was_cut_whatever_is_announced() -> None:
    chooser = VersionChooser(ExportGate(), pin=2, read=_Manifests({2: ExportFacts(cut_at_ms=99)}))
    assert chooser.choose(Announced(), _on_disk()) == Choice(None)
    hold = ModelEvent(kind=ModelEvent.ROLLBACK, version=1, export_base="/m", as_of_ms=7)
    for announced in (_announced(_export(5)), _announced(_export(6), hold)):
        assert chooser.choose(announced, _on_disk(2, 5)) == Choice(_target(2, is_held=True, as_of_ms=99))


def test_after_a_retirement_there_are_no_clients() -> None:
    same, other = ExportFacts({"rows": 1.0}, _SENT), ExportFacts({"rows": 1.0}, {"item_id": "int64"})
    chooser = VersionChooser(ExportGate(), read=_Manifests({1: same, 2: other}))
    chooser.note(chooser.choose(_announced(_export(1)), _on_disk(1)).target, [1], _on_disk(1))
    retired = Announced(ModelEvent(kind=ModelEvent.RETIRE), _export(1))
    assert chooser.choose(retired, _on_disk(1)) == Choice(None)
    assert chooser.choose(_announced(_export(2)), _on_disk(1, 2)).target == _target(2)
