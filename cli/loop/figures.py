"""Figures of a run, read from what its processes left: the ledger, the checkpoints, the predictions."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cli.loop.freshness import Probe
from transforms.fid import audit_fid


def read_ledger(path: Path) -> pa.Table:
    """One row an (impression, item) that was sent."""
    return pq.read_table(path)


def ledger_summary(path: Path) -> dict[str, object]:
    return json.loads(path.with_suffix(".json").read_text("utf-8"))


def sent_fids(ledger: Path, probes: Sequence[Probe]) -> np.ndarray:
    """int64 [rows]: audit fids of the ledger's rows and of the probes that the broker took."""
    rows = read_ledger(ledger)
    delivered = [probe for probe in probes if probe.offset >= 0]
    partitions = np.concatenate([rows["partition"].to_numpy(), [p.partition for p in delivered]]).astype(np.int64)
    offsets = np.concatenate([rows["offset"].to_numpy(), [p.offset for p in delivered]]).astype(np.int64)
    indices = np.concatenate([rows["row"].to_numpy(), np.zeros(len(delivered))]).astype(np.int64)
    return audit_fid(partitions, offsets, indices)


def percentiles(values: np.ndarray, asked: int) -> dict[str, float | int]:
    """{"p50", "p99", "n"} of `values`; `asked` is how many were hoped for."""
    if len(values) == 0:
        return {"p50": float("nan"), "p99": float("nan"), "n": 0, "asked": asked}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "n": len(values), "asked": asked}
