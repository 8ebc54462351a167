"""The whole loop with real processes: the trainer is killed, and the audit finds every row applied exactly once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from millrace.cli.loop.options import LoopOptions
from millrace.cli.loop.report import RunRecord
from millrace.cli.loop.run import LoopRun
from millrace.cli.loop.scenario import generated

pytestmark = [pytest.mark.service, pytest.mark.slow]

_SECONDS = 45.0


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("loop")
    options = LoopOptions(
        runner="prism", report=folder / "report", state=folder / "state", window_seconds=3.0, export_seconds=8.0,
        checkpoint_seconds=5.0, seconds=_SECONDS,
    )  # fmt: skip
    return LoopRun(generated(600, seed=1, bad_records=2), options, Console(stderr=True)).run()


def test_no_row_is_lost_or_doubled_although_the_trainer_is_killed(record: RunRecord) -> None:
    assert record.summary["trainer_killed"], "the run ended before the kill"
    figures = {name: record.summary[name] for name in ("rows_lost", "rows_duplicated", "rows_unknown")}
    assert figures == {"rows_lost": 0, "rows_duplicated": 0, "rows_unknown": 0}
    assert record.summary["rows_trained"] == record.summary["rows_sent"]


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
