"""What the ledger keeps of what was sent."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from millrace.pipelines.traffic.ledger import EventLedger, oracle_auc
from millrace.pipelines.traffic.source import GeneratedSource
from millrace.pipelines.traffic.world import EventWorld, WorldConfig

_NOW = 1_764_000_000_000


def _ledger(delivered: int = 10) -> EventLedger:
    """Two draws of five impressions of three items, the first `delivered` of them acknowledged."""
    ledger = EventLedger("events.impressions", "r-0")
    source = GeneratedSource(EventWorld(WorldConfig(users=20, items=20)))
    assert [ledger.add(source.draw(5, _NOW), _NOW + at) for at in (0, 1)] == [0, 5]
    for impression in range(delivered):
        ledger.delivered(impression, impression % 2, 100 + impression)
    return ledger


def test_rows_carry_the_place_that_the_broker_gave_them() -> None:
    table = _ledger().to_table()
    assert table.num_rows == 30
    row = table.slice(3 * 6 + 2, 1).to_pylist()[0]
    assert (row["request_id"], row["partition"], row["offset"], row["row"]) == ("r-0-6", 0, 106, 2)
    assert row["timestamp_ms"] == _NOW + 1


def test_only_acknowledged_rows_are_kept() -> None:
    ledger = _ledger(delivered=4)
    assert ledger.to_table().num_rows == 12
    assert ledger.undelivered() == 6


def test_observed_actions_are_marked() -> None:
    ledger = _ledger()
    ledger.observe(1, 4)
    observed = ledger.to_table()["observed"].to_numpy(zero_copy_only=False)
    assert np.flatnonzero(observed).tolist() == [15 + 4]


def test_the_oracle_has_no_auc_where_nothing_is_known() -> None:
    assert oracle_auc(_ledger().to_table()) == {"auc_oracle": None, "auc_oracle_last_third": None}


def test_it_is_written_with_its_summary_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.parquet"
    ledger = _ledger()
    ledger.write(path, ledger.to_table(), {"events": 3})
    assert pq.read_table(path).num_rows == 30
    assert json.loads(path.with_suffix(".json").read_text()) == {"events": 3}
    assert sorted(file.name for file in path.parent.iterdir()) == ["ledger.json", "ledger.parquet"]
