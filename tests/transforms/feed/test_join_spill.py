"""Rows of a join that lie in files."""

from pathlib import Path

import pyarrow as pa
import pytest

from millrace.runtime.errors import UserError
from millrace.transforms.feed.join import JoinIndex
from millrace.transforms.feed.row_spill import SpillSettings, spilled
from tests.transforms.feed.join_rows import NOW, actions, config, impressions

_BATCHES, _ROWS = 60, 200


def _filled(spill: SpillSettings) -> JoinIndex:
    """An index with many rows, whose batches arrive too far apart to share a block."""
    index = JoinIndex(config(), spill=spill)
    for batch in range(_BATCHES):
        rows = [(f"r{batch}", item, batch) for item in range(_ROWS)]
        index.add_impressions(impressions(*rows, first_offset=batch * _ROWS), NOW + 60 * batch)
    return index


def test_memory_is_bounded_by_rows_and_the_rest_lies_in_files(tmp_path: Path) -> None:
    held, bounded = _filled(SpillSettings()), _filled(SpillSettings(5 * _ROWS, tmp_path))
    all_rows = _filled(SpillSettings(0, tmp_path)).spilled_bytes
    assert held.nbytes - bounded.nbytes >= 0.9 * all_rows
    assert 0.9 * all_rows <= bounded.spilled_bytes < all_rows
    assert held.spilled_bytes == 0
    assert bounded.pending_rows == held.pending_rows == _BATCHES * _ROWS


def test_arrow_holds_no_memory_for_rows_in_files(tmp_path: Path) -> None:
    rows = impressions(*((f"r{i}", i, 0) for i in range(5000)))
    before = pa.total_allocated_bytes()
    mapped = spilled(rows, tmp_path)
    assert pa.total_allocated_bytes() - before < rows.nbytes / 10
    assert mapped.equals(rows, check_metadata=True)


def test_files_have_no_names_and_so_cannot_stay_behind(tmp_path: Path) -> None:
    index = _filled(SpillSettings(0, tmp_path / "spill"))
    assert index.spilled_bytes > 0
    assert list((tmp_path / "spill").iterdir()) == []


def test_an_action_finds_its_row_in_a_file(tmp_path: Path) -> None:
    index = _filled(SpillSettings(0, tmp_path))
    left = index.add_actions(actions(("r3", 7, "click", 100)), NOW + 4000)
    assert (left.column("request_id").to_pylist(), left.column("item_id").to_pylist()) == (["r3"], [7])
    closed = index.close_expired(NOW + 100_000)
    assert closed.num_rows == _BATCHES * _ROWS - 1
    assert index.spilled_bytes == 0


def test_a_negative_limit_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="max_pending_rows"):
        SpillSettings(-1)
