"""The whole loop with real processes: a kill, a rollback and wrong labels, and every row is applied exactly once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.report import RunRecord
from millrace.cli.loop.run import LoopRun
from millrace.cli.loop.scenario import generated

# The run waits as long as anything moves: minutes on a busy machine.
pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(1800)]

_SECONDS = 45.0


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("loop")
    options = LoopOptions(
        runner="prism", report=folder / "report", state=folder / "state", window_seconds=3.0, export_seconds=8.0,
        checkpoint_seconds=5.0, seconds=_SECONDS,
    )  # fmt: skip
    return LoopRun(generated(600, seed=1, bad_records=2), options, Console(stderr=True)).run()


def _part(record: RunRecord, name: str) -> dict[str, object]:
    part = record.summary[name]
    assert record.failures() == [] and isinstance(part, dict) and "left_out" not in part
    return part


def test_no_row_is_lost_or_doubled_although_the_trainer_is_killed_and_goes_back(record: RunRecord) -> None:
    assert _part(record, "trainer_killed")["signal"] == "SIGKILL"
    figures = {name: record.summary[name] for name in ("rows_lost", "rows_duplicated", "rows_unknown")}
    assert figures == {"rows_lost": 0, "rows_duplicated": 0, "rows_unknown": 0}
    left_out = int(str(record.summary["rows_passed_over"]))
    assert int(str(record.summary["rows_trained"])) + left_out == record.summary["rows_sent"]


def test_a_rollback_holds_the_answers_bit_for_bit_until_it_is_released(record: RunRecord) -> None:
    rollback = _part(record, "rollback")
    assert rollback["held"] and int(str(rollback["exports_passed"])) >= 2
    assert int(str(rollback["answers_compared"])) > 5


def test_the_guard_publishes_nothing_of_wrong_labels_and_goes_on_when_told(record: RunRecord) -> None:
    guard = _part(record, "guard")
    assert (guard["deltas_after_alarm"], guard["failed_requests"]) == (0, 0)
    assert str(guard["healthz"]).startswith("503 the guard found: ") and int(str(guard["poisoned_rows"])) > 1000
    kinds = [mark["kind"] for mark in record.marks if mark["kind"] != "version"]
    assert kinds == [
        "kill", "back", "rollback", "held", "release", "released", "poison", "alarm", "resume", "released",
    ]  # fmt: skip


def test_no_prediction_fails_while_versions_change_and_the_trainer_is_away(record: RunRecord) -> None:
    assert record.summary["predictions_failed"] == 0
    assert int(str(record.summary["predictions_ok"])) > 100
    assert int(str(record.summary["versions_published"])) >= 2


def test_every_bad_record_is_one_dead_letter(record: RunRecord) -> None:
    assert record.summary["dead_letters"] == record.summary["dead_letters_expected"] != 0


def test_an_action_on_a_new_item_reaches_the_server(record: RunRecord) -> None:
    freshness = record.summary["freshness_ms"]
    assert isinstance(freshness, dict) and freshness["n"] >= 20
    assert int(str(record.summary["deltas_applied"])) > 5


def test_a_run_that_breaks_off_tells_why_and_leaves_a_report_of_what_there_is(tmp_path: Path) -> None:
    options = LoopOptions(report=tmp_path / "report", state=tmp_path / "state", seconds=20.0, drain_seconds=5.0)
    broken = replace(generated(100, seed=1, bad_records=0), producer=("generate", "--rate", "much"))
    record = LoopRun(broken, options, Console(stderr=True)).run()
    assert "producer exited with 2: " in record.failures()[0] and "--rate" in record.failures()[0]
    assert record.summary["unfinished"] == record.failures()
    # No row was sent, and a model that has learned nothing is not exported.
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["versions_published"] == 0
    assert "producer exited with 2" in (tmp_path / "report" / "report.html").read_text()
