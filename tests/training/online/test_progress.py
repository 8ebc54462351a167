"""What a trainer reports about its predictions."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from millrace.training.online.progress import Progress
from millrace.training.step.metrics import read_predictions
from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.position import Position
from millrace.transforms.batch.record_batch import INVALID_LABEL


def ticket(labels: list[float], sample_rates: list[float]) -> Ticket:
    rows = np.arange(len(labels))
    column = np.array(labels, np.float32)[:, np.newaxis]
    return Ticket(len(labels), column, np.array(sample_rates, np.float32), rows, rows, rows)


def test_predictions_are_those_of_sampled_rows_and_leave_out_rows_without_a_label(tmp_path: Path) -> None:
    progress = Progress(tmp_path, prediction_rows=0, heads=["click"])
    progress.add(ticket([1.0, INVALID_LABEL, 0.0], [1.0, 1.0, 0.25]), np.zeros((3, 1), np.float32))
    progress.report(1, Position())
    labels, scores = read_predictions(tmp_path / "predictions.bin")
    assert labels.tolist() == [1, 0]
    # Where negatives are kept with probability 1/4, the odds of a positive are four times as high: 4 : 1.
    assert scores.tolist() == pytest.approx([0.5, 0.8])


def test_a_line_of_progress_has_the_counts_of_the_position_and_null_for_what_is_not_known(tmp_path: Path) -> None:
    progress = Progress(tmp_path, prediction_rows=0, heads=["click"])
    progress.add(ticket([1.0], [1.0]), np.zeros((1, 1), np.float32))
    progress.report(7, Position(rows_applied=5, rows_duplicate=2, rows_too_old=1))
    (line,) = map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    assert [line[name] for name in ("global_step", "rows_trained", "rows_duplicate", "rows_too_old")] == [7, 5, 2, 1]
    assert (line["auc"], line["calibration"]) == (None, 0.5)


def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(tmp_path, prediction_rows=0, heads=["click"])
    (tmp_path / "progress.jsonl").mkdir()
    progress.report(1, Position())
    assert "progress is not written" in caplog.text


def test_a_line_that_a_full_disk_cuts_short_is_taken_back(tmp_path: Path) -> None:
    progress = Progress(tmp_path, prediction_rows=0, heads=["click"])
    progress.report(1, Position())
    whole = (tmp_path / "progress.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 30, hard))  # as a disk with room for 30 bytes more
        progress.report(2, Position())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    progress.report(3, Position())
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == [1, 3]


def test_a_restart_cuts_off_predictions_that_came_after_its_checkpoint(tmp_path: Path) -> None:
    before = Progress(tmp_path, prediction_rows=0, heads=["click"])
    before.add(ticket([1.0, 0.0, 1.0], [1.0] * 3), np.zeros((3, 1), np.float32))
    before.report(1, Position())
    Progress(tmp_path, prediction_rows=2, heads=["click"])
    assert read_predictions(tmp_path / "predictions.bin")[0].tolist() == [1, 0]


def test_every_head_has_figures_and_predictions_of_its_own(tmp_path: Path) -> None:
    progress = Progress(tmp_path, prediction_rows=0, heads=["click", "buy"])
    rows = np.arange(3)
    labels = np.array([[1, 0], [0, INVALID_LABEL], [INVALID_LABEL, INVALID_LABEL]], np.float32)
    logits = np.array([[0, 2], [-2, 0], [0, 0]], np.float32)
    progress.add(Ticket(3, labels, np.ones(3, np.float32), rows, rows, rows), logits)
    progress.report(1, Position())
    (line,) = map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    assert (line["auc"], line["heads"]["click"]["auc"], line["heads"]["buy"]["auc"]) == (1.0, 1.0, None)
    assert REGISTRY.get_sample_value("millrace_progressive_auc", {"head": "click"}) == 1.0
    assert read_predictions(tmp_path / "predictions.bin")[0].tolist() == [1, 0]
    buy_labels, buy_scores = read_predictions(tmp_path / "predictions.bin", head=1)
    assert (buy_labels.tolist(), buy_scores.tolist()) == ([0], pytest.approx([0.8808], abs=1e-4))
