"""Figures of a run, read from what its processes left: the ledger, the checkpoints, the predictions."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.cli.loop.freshness import Probe
from millrace.transforms.batch.fid import audit_fid


def read_ledger(path: Path) -> pa.Table:
    """One row per (impression, item) that was sent."""
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
    """{"p50", "p99", "n"} of `values`; `asked` is how many probes were sent."""
    if len(values) == 0:
        return {"p50": float("nan"), "p99": float("nan"), "n": 0, "asked": asked}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "n": len(values), "asked": asked}


def rows_applied(model_dir: Path) -> int:
    """Rows that the trainer had applied when it last wrote its progress; 0 before that."""
    path = model_dir / "progress.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["rows_trained"]) if lines else 0


def auc_figures(ledger: Path, model_dir: Path) -> dict[str, float | None]:
    """AUC over the last third of the run: the model's own predictions, and the true probabilities where known."""
    from millrace.training.step.metrics import last_third, read_predictions

    model = last_third(*read_predictions(model_dir / "predictions.bin"))
    oracle = ledger_summary(ledger).get("auc_oracle_last_third")
    figures: dict[str, float | None] = {"auc_model": round(model, 4)}
    if isinstance(oracle, float):
        figures |= {"auc_oracle": round(oracle, 4), "lift_of_oracle": round((model - 0.5) / (oracle - 0.5), 3)}
    return figures


def versions_published(model_dir: Path, seen: Sequence[float]) -> int:
    """Versions that were exported; old folders are removed, so those that the server was seen to serve count too."""
    return len({*versions_on_disk(model_dir), *map(int, seen)})


def versions_on_disk(model_dir: Path) -> list[int]:
    """Numbers of the exports that are there, ascending."""
    folders = (model_dir / "exports" / "standalone").glob("[0-9]*")
    return sorted(int(path.name) for path in folders if path.name.isdecimal())


def delay_curve(data: Path, delays: Sequence[int]) -> list[dict[str, float | None]]:
    """AUC of the last third of `data` for each delay in rows, and without user and item ids (delay None)."""
    from millrace.examples.movies import MovieContent, MovieRanking
    from millrace.training.offline_trainer import quality_by_delay, read_input

    task, without = MovieRanking(), MovieContent()
    points = quality_by_delay(task, read_input(data, task), delays, without, read_input(data, without))
    return [
        {"delay_rows": float(point["delay_rows"]) or None, "auc": round(float(point["auc_last_third"]), 4)}
        for point in points
    ]
