"""Which checkpoints stay, as a rule over paths and times, and as the rule of Checkpoints."""

import json
import logging
import os
from pathlib import Path

import pytest

from millrace.training.state.checkpoint import CheckpointCut, Checkpoints, newest_first
from millrace.training.state.retention import Retention, Saved, read_exempt
from millrace.training.stream.position import Position
from tests.conformance.covers import covers


def saves(*names: int | str, at: float = 0.0) -> list[Saved]:
    return [Saved(Path(str(name)), at) for name in names]


def after_saving(
    retention: Retention, kept: list[Saved], new: list[Saved], exempt: frozenset[Path] = frozenset()
) -> list[Saved]:
    """What is left when `new` were saved one after the other."""
    for each in new:
        kept = [*kept, each]
        gone = retention.superfluous(kept, exempt)
        kept = [left for left in kept if left.path not in gone]
    return kept


@covers("emb:K1")
def test_exempt_checkpoints_stay_and_do_not_count() -> None:
    exempt = frozenset({Path("10"), Path("20")})
    kept = after_saving(Retention(3), [], saves(10, 20, 30, 40, 50), exempt)
    assert kept == saves(10, 20, 30, 40, 50)
    assert after_saving(Retention(3), kept, saves(60), exempt) == saves(10, 20, 40, 50, 60)


@covers("emb:K2")
def test_one_checkpoint_of_each_period_is_kept_for_good() -> None:
    start = 1_700_000_000.0
    kept = after_saving(Retention(2, 0.7), [], saves("s1", "s2", "s3", "s4", at=start + 1))
    assert [each.path.name for each in kept] == ["s1", "s3", "s4"]


def test_what_is_kept_for_good_is_still_kept_many_periods_later() -> None:
    hours = [Saved(Path(str(hour)), 3600.0 * hour) for hour in range(100)]
    kept = after_saving(Retention(2, 24 * 3600), [], hours)
    assert [int(each.path.name) for each in kept] == [0, 24, 48, 72, 96, 98, 99]


def test_without_a_period_only_the_newest_are_kept() -> None:
    assert after_saving(Retention(2), [], saves(1, 2, 3, 4)) == saves(3, 4)
    assert Retention(2).superfluous(saves(1)) == []


def test_a_smaller_limit_takes_effect_at_the_next_save() -> None:
    assert after_saving(Retention(1), saves(1, 2, 3), saves(4)) == saves(4)


@pytest.mark.parametrize("settings", [{"max_to_keep": 0}, {"keep_every_seconds": 0.0}, {"keep_every_seconds": -1.0}])
def test_limits_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retention(**settings)  # type: ignore[arg-type]


def test_exempt_paths_are_resolved_and_vanished_ones_dropped(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    names = ["checkpoints/10", str(tmp_path / "elsewhere"), "checkpoints/11", "checkpoints/../checkpoints/10"]
    (tmp_path / "exempt.json").write_text(json.dumps(names))
    expected = {(tmp_path / "checkpoints" / "10").resolve(), (tmp_path / "elsewhere").resolve()}
    assert read_exempt(tmp_path / "exempt.json") == expected


def test_no_file_exempts_nothing(tmp_path: Path) -> None:
    assert read_exempt(tmp_path / "exempt.json") == frozenset()


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", '"checkpoints/10"'])
def test_an_exempt_file_that_holds_something_else_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "exempt.json").write_text(content)
    with pytest.raises(ValueError, match="exempt.json"):
        read_exempt(tmp_path / "exempt.json")


def save(checkpoints: Checkpoints, model_dir: Path, step: int, saved_at: float | None = None) -> None:
    folder = model_dir / "checkpoints" / str(step)
    checkpoints.finish(CheckpointCut(folder, tables={}, global_step=step, position=Position(), delta_sequence=0))
    if saved_at is not None:
        os.utime(folder / "manifest.json", (saved_at, saved_at))


def steps(model_dir: Path) -> list[int]:
    return sorted(int(folder.name) for folder in newest_first(model_dir / "checkpoints"))


def test_the_exempt_file_is_read_at_each_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "m", "f", keep=2)
    for step in (1, 2):
        save(checkpoints, tmp_path, step)
    exempt = tmp_path / "exempt_checkpoints.json"
    exempt.write_text('["checkpoints/1"]')
    for step in (3, 4):
        save(checkpoints, tmp_path, step)
    assert steps(tmp_path) == [1, 3, 4]
    exempt.write_text("[]")
    save(checkpoints, tmp_path, 5)
    assert steps(tmp_path) == [4, 5]


def test_nothing_is_removed_while_the_exempt_file_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "exempt_checkpoints.json").write_text("[")
    checkpoints = Checkpoints(tmp_path, "m", "f", keep=1)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            save(checkpoints, tmp_path, step)
    assert steps(tmp_path) == [1, 2] and "exempt_checkpoints.json" in caplog.text


def test_the_time_of_a_checkpoint_is_that_of_its_manifest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "m", "f", keep=1, keep_every_seconds=100)
    for step, saved_at in ((1, 1000), (2, 1010), (3, 1100), (4, 1150), (5, 1190)):
        save(checkpoints, tmp_path, step, saved_at)
    assert steps(tmp_path) == [1, 3, 5]


@covers("emb:K6")
def test_a_restart_goes_on_from_what_is_on_disk(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(Checkpoints(tmp_path, "m", "f"), tmp_path, step)
    for path in sorted((tmp_path / "checkpoints" / "1").iterdir()):
        path.unlink()
    (tmp_path / "checkpoints" / "1").rmdir()
    restarted = Checkpoints(tmp_path, "m", "f")
    assert steps(tmp_path) == [2, 3]
    save(restarted, tmp_path, 4)
    assert steps(tmp_path) == [2, 3, 4]
    save(restarted, tmp_path, 5)
    assert steps(tmp_path) == [3, 4, 5]
