"""Backfills: units are complete or absent, resumed after a stop, and the same with any number of workers."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.pipelines.feed import backfill
from millrace.pipelines.feed.backfill import Backfill, file_units, parse_hour, run_backfill
from millrace.pipelines.feed.launch import FeedFailedError
from millrace.pipelines.feed.options import FeedOptions, FileSettings, RecordFiles, RecordFormat
from millrace.runtime.errors import UserError
from millrace.transforms.feed.rows_folder import SUCCESS
from tests.pipelines.feed.test_event_feed import config, make_world, write_lines

_HOURS = 3


def _events(folder: Path) -> FeedOptions:
    """Three hours of events as files; actions of an hour's last impressions may lie in the next hour's file."""
    for hour in range(_HOURS):
        world = make_world(60, seed=hour)
        cut = len(world.actions) * 2 // 3
        later = folder / f"actions-{hour + 1}.json"
        write_lines(folder / f"impressions-{hour}.json", [_renamed(line, hour) for line in world.impressions])
        actions = [_renamed(line, hour) for line in world.actions]
        first = folder / f"actions-{hour}.json"
        write_lines(first, (first.read_bytes().splitlines() if first.exists() else []) + actions[:cut])
        write_lines(later, actions[cut:])
    pattern = f"{{INT(0, {_HOURS - 1})}}.json"
    source = FileSettings(str(folder / f"impressions-{pattern}"), str(folder / f"actions-{pattern}"))
    return FeedOptions(config(), source, folder / "rows", "direct")


def _renamed(line: bytes, hour: int) -> bytes:
    event = json.loads(line)
    return json.dumps({**event, "request_id": f"{hour}-{event['request_id']}"}).encode()


def _rows(folder: Path) -> list[tuple[object, ...]]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.rglob("part-*.parquet")))
    names = ("__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__", "__REQ_ID__", "__LABEL__")
    return sorted(zip(*(map(str, table[name].to_pylist()) for name in names), strict=True))


def _run(options: FeedOptions, output: Path, workers: int = 1) -> dict[str, int]:
    return run_backfill(Backfill(tuple(file_units(options)), output, workers), threading.Event())


def test_every_unit_is_marked_and_every_row_is_there_once_with_a_source_of_its_own(tmp_path: Path) -> None:
    options = _events(tmp_path)
    counters = _run(options, tmp_path / "out")
    rows = _rows(tmp_path / "out")
    assert len(rows) == _HOURS * 120 == counters["impression_rows"]
    assert len({row[:3] for row in rows}) == len(rows)
    assert {row[0] for row in rows} == {"0", "1", "2"}
    folders = sorted(path.parent.name for path in (tmp_path / "out").rglob(SUCCESS))
    assert folders == ["out", "unit-00000", "unit-00001", "unit-00002"]
    assert json.loads((tmp_path / "out" / SUCCESS).read_text())["units"] == _HOURS


def test_actions_in_the_file_of_the_next_unit_find_their_rows(tmp_path: Path) -> None:
    options = _events(tmp_path)
    _run(options, tmp_path / "out")
    expected = sum(make_world(60, seed=0).labels.values())
    first = [row for row in _rows(tmp_path / "out") if row[0] == "0"]
    assert sum(row[4] == "[1.0]" for row in first) == expected


def test_two_workers_make_the_bytes_that_one_makes(tmp_path: Path) -> None:
    options = _events(tmp_path)
    _run(options, tmp_path / "one")
    _run(options, tmp_path / "two", workers=2)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_what_is_done_is_not_done_again_and_what_is_half_done_is_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, output = _events(tmp_path), tmp_path / "out"
    (tmp_path / "impressions-1.json").rename(tmp_path / "kept")
    (tmp_path / "impressions-1.json").write_bytes(b"not JSON\n" * 3000)
    with pytest.raises(FeedFailedError):
        _run(options, output)
    assert [path.name for path in sorted(output.iterdir()) if not path.name.startswith(".")] == ["unit-00000"]
    assert not (output / SUCCESS).exists()
    (tmp_path / "kept").rename(tmp_path / "impressions-1.json")
    ran = []
    original = backfill._run_unit
    monkeypatch.setattr(backfill, "_run_unit", lambda *given: (ran.append(given[1].name), original(*given))[1])
    counters = _run(options, output)
    assert ran == ["unit-00001", "unit-00002"]
    assert counters["impression_rows"] == _HOURS * 120
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_the_output_of_another_recipe_or_task_is_refused(tmp_path: Path) -> None:
    options = _events(tmp_path)
    _run(options, tmp_path / "out")
    with pytest.raises(UserError, match="another recipe; choose a new folder"):
        _run(replace(options, config=config(negative_rate=0.5)), tmp_path / "out")


def test_a_stop_leaves_no_half_unit(tmp_path: Path) -> None:
    options, stop = _events(tmp_path), threading.Event()
    stop.set()
    run_backfill(Backfill(tuple(file_units(options)), tmp_path / "out"), stop)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_patterns_that_match_no_file_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "part-1").write_bytes(b"")
    source = RecordFiles(str(tmp_path / "part-{INT(0, 3)}"), RecordFormat("example"))
    options = FeedOptions(config(), source, tmp_path / "rows", "direct")
    assert [unit.name for unit in file_units(options)] == ["unit-00001"]
    with pytest.raises(UserError, match="nothing to do"):
        Backfill(tuple(file_units(replace(options, source=replace(source, pattern=str(tmp_path / "x"))))), tmp_path)


@pytest.mark.parametrize("text", ["2026", "2026013199", "20260131 5", "yesterday", "202601310500"])
def test_an_hour_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--from=.*write YYYYMMDDHH"):
        parse_hour(text, "--from")
