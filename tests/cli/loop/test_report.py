"""The report holds its figures, fetches nothing, and shows its plots in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from millrace.cli.loop.report import RunRecord, render, write_report

_PLOTS = ("plot-auc", "plot-freshness", "plot-throughput", "plot-timeline", "plot-delay")


def _record() -> RunRecord:
    samples = [
        {"t": float(t), "auc": 0.5 + t / 400, "log_loss": 0.6, "events_per_s": 1000.0, "deltas_applied": float(t)}
        for t in range(100)
    ]
    marks: list[dict[str, object]] = [
        {"t": 20.0, "kind": "version", "label": "1764000000"},
        {"t": 45.0, "kind": "kill", "label": "trainer killed"},
        {"t": 52.0, "kind": "back", "label": "back after 7 s"},
        {"t": 60.0, "kind": "rollback", "label": "millrace rollback to 1764000000"},
        {"t": 70.0, "kind": "release", "label": "millrace release"},
        {"t": 71.0, "kind": "released", "label": "released"},
        {"t": 80.0, "kind": "poison", "label": "3072 wrong labels"},
        {"t": 81.0, "kind": "alarm", "label": "guard: alarm"},
        {"t": 86.0, "kind": "resume", "label": "--resume-from-good"},
    ]
    summary: dict[str, object] = {
        "auc_model": 0.741,
        "auc_oracle": 0.79,
        "freshness_ms": {"p50": 900.0, "p99": 2000.0, "n": 120},
        "rows_lost": 0,
        "rows_duplicated": 0,
        "rows_trained": 123456,
        "predictions_failed": 0,
    }
    curve = [
        {"delay_rows": 256.0, "auc": 0.74},
        {"delay_rows": 33000.0, "auc": 0.67},
        {"delay_rows": None, "auc": 0.66},
    ]
    return RunRecord("A <title> & more", summary, samples, marks, [500.0, 900.0, 1500.0], curve)


def test_every_plot_is_inline_and_nothing_is_fetched() -> None:
    page = render(_record())
    for name in _PLOTS:
        assert f'<svg id="{name}"' in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page.replace("xlink:href", "href"))
    assert "<script" not in page


def test_text_from_outside_is_escaped() -> None:
    assert "A &lt;title&gt; &amp; more" in render(_record())


def test_a_run_without_a_single_sample_still_gets_its_report() -> None:
    assert "no probe finished" in render(RunRecord("empty", {}))


def test_the_summary_is_json_with_every_figure(tmp_path: Path) -> None:
    write_report(_record(), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["rows_trained"] == 123456
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "summary.json"]


def test_a_broken_promise_is_named() -> None:
    record = _record()
    record.summary |= {"rows_lost": 3, "dead_letters": 5, "dead_letters_expected": 6}
    assert record.failures() == ["rows_lost=3", "dead_letters=5 but 6 bad records were sent"]


def test_the_timeline_names_what_happened_to_the_loop() -> None:
    page = render(_record())
    timeline = page[page.index('<svg id="plot-timeline"') :]
    timeline = timeline[: timeline.index("</svg>")]
    for label in ("trainer killed", "millrace rollback to", "millrace release", "guard: alarm", "--resume-from-good"):
        assert f"<!-- {label.replace('--', '- -')}" in timeline or f">{label}" in timeline, label


def test_what_a_hold_let_through_is_named() -> None:
    record = _record()
    record.summary |= {"rollback": {"held": False}, "guard": {"deltas_after_alarm": 2}}
    assert record.failures() == [
        "rollback: predictions changed while the model was held",
        "guard: deltas_after_alarm=2",
    ]
    record.summary |= {"rollback": {"held": True}, "guard": {"left_out": "the events had ended before"}}
    assert record.failures() == []


def test_a_browser_finds_every_plot_drawn(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    write_report(_record(), tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [chromium, *flags, f"file://{tmp_path / 'report.html'}"], capture_output=True, text=True, timeout=90, check=True
    )
    for name in _PLOTS:
        plot = re.search(rf'<svg id="{name}".*?</svg>', done.stdout, re.DOTALL)
        assert plot and plot.group().count("<path") > 5, name


def test_what_did_not_come_to_its_end_is_a_failure_and_stands_in_the_report(tmp_path: Path) -> None:
    record = RunRecord(
        "t", {"unfinished": ["producer exited with 1: <log>"]}, unfinished=["producer exited with 1: <log>"]
    )
    assert record.failures() == ["producer exited with 1: <log>"]
    write_report(record, tmp_path)
    assert "producer exited with 1: &lt;log&gt;" in (tmp_path / "report.html").read_text()
