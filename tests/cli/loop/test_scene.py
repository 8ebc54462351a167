"""What parts wait for ends, with its name; probes are not asked for what servers cannot show."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.loop import scene as scene_module
from millrace.cli.loop.patience import StalledError
from millrace.cli.loop.scene import Scene


@dataclass
class _Prober:
    waiting: list[str]
    calls: list[str] = field(default_factory=list)

    def pause(self) -> None:
        self.calls.append("pause")

    def outstanding(self) -> list[str]:
        return self.waiting

    def set_aside(self) -> None:
        self.calls.append(f"set aside {len(self.waiting)}")


def _scene(look: Any = lambda: None, prober: Any = None) -> Scene:
    unused: Any = None
    return Scene(unused, unused, unused, Path(), unused, unused, unused, prober, look)


def test_what_does_not_come_is_named_with_its_time_and_what_helps() -> None:
    with pytest.raises(StalledError, match="the guard's alarm: not within 0.01 s; the log says more"):
        _scene().wait(lambda: False, "the guard's alarm", "the log says more", 0.01)


def test_processes_are_looked_at_while_something_is_waited_for() -> None:
    looks: list[int] = []
    _scene(lambda: looks.append(1)).wait(lambda: len(looks) > 1, "two looks", "nothing", 60.0)
    assert len(looks) > 1


def test_probes_on_their_way_have_some_time_and_are_then_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "_SETTLE_SECONDS", 0.01)
    prober = _Prober(["late"])
    _scene(prober=prober).pause_probes()
    assert prober.calls == ["pause", "set aside 1"]
