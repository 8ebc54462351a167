"""The ledger of a producer: every row that a broker acknowledged, with the truth that only the producer knows."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.pipelines.traffic.source import PlannedImpressions
from millrace.runtime.atomic_file import sync_folder, write_text
from millrace.training.step.metrics import auc

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("user_id", pa.int64()),
        pa.field("item_id", pa.int64()),
        pa.field("topic", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("row", pa.int32()),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("p_true", pa.float64()),
        pa.field("clicked", pa.bool_()),
        pa.field("observed", pa.bool_()),
    ]
)
"""One row per impression and item.

`partition`, `offset` and `row` are its provenance (`transforms.batch.fid.audit_fid` makes its audit id of them).
`p_true` is the true click probability, NaN where unknown. `clicked` says whether somebody acted, and `observed` whether
an action was sent that arrives within the window: the label that a feed can see.
"""


@dataclass
class _Chunk:
    """The impressions of one draw, which are sent together."""

    first: int
    user_ids: np.ndarray
    item_ids: np.ndarray
    timestamp_ms: int
    p_true: np.ndarray
    clicked: np.ndarray
    observed: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.observed = np.zeros(self.item_ids.size, bool)


class EventLedger:
    """Collects impressions, their partitions and offsets, and which of their actions were sent in time.

    Args:
      topic: of the impressions.
      request_prefix: the request id of impression n is `<request_prefix>-<n>`.
    """

    def __init__(self, topic: str, request_prefix: str) -> None:
        self._topic = topic
        self._request_prefix = request_prefix
        self._chunks: list[_Chunk] = []
        self._partitions: list[int] = []
        self._offsets: list[int] = []

    @property
    def impressions(self) -> int:
        return len(self._partitions)

    def request_id(self, impression: int) -> str:
        return f"{self._request_prefix}-{impression}"

    def add(self, draw: PlannedImpressions, timestamp_ms: int) -> int:
        """Adds impressions that are being sent; returns the number of the first one."""
        first = self.impressions
        count = len(draw.user_ids)
        self._chunks.append(_Chunk(first, draw.user_ids, draw.item_ids, timestamp_ms, draw.p_true, draw.clicked))
        self._partitions.extend([-1] * count)
        self._offsets.extend([-1] * count)
        return first

    def delivered(self, impression: int, partition: int, offset: int) -> None:
        """The broker acknowledged this impression."""
        self._partitions[impression] = partition
        self._offsets[impression] = offset

    def observe(self, chunk: int, row: int) -> None:
        """An action on this row of the `chunk`-th draw was sent in time."""
        self._chunks[chunk].observed[row] = True

    @property
    def draws(self) -> int:
        return len(self._chunks)

    def undelivered(self) -> int:
        """Number of impressions that no broker acknowledged."""
        return self._partitions.count(-1)

    def to_table(self) -> pa.Table:
        """The acknowledged rows (`LEDGER_SCHEMA`) in the order in which they were sent."""
        chunks = self._chunks
        if not chunks:
            return LEDGER_SCHEMA.empty_table()
        shown = np.repeat([chunk.item_ids.shape[1] for chunk in chunks], [len(chunk.user_ids) for chunk in chunks])
        impression = np.repeat(np.arange(self.impressions), shown)  # of each row
        first_row = np.cumsum(shown) - shown
        partitions = np.array(self._partitions)[impression]
        requests = pa.array([self.request_id(number) for number in range(self.impressions)])
        columns = [
            requests.take(pa.array(impression)),
            pa.array(np.concatenate([chunk.user_ids for chunk in chunks])[impression]),
            pa.array(np.concatenate([chunk.item_ids.reshape(-1) for chunk in chunks])),
            pa.repeat(pa.scalar(self._topic), len(impression)),
            pa.array(partitions, pa.int32()),
            pa.array(np.array(self._offsets)[impression], pa.int64()),
            pa.array(np.arange(len(impression)) - first_row[impression], pa.int32()),
            pa.array(np.repeat([chunk.timestamp_ms for chunk in chunks], [chunk.item_ids.size for chunk in chunks])),
            pa.array(np.concatenate([chunk.p_true.reshape(-1) for chunk in chunks])),
            pa.array(np.concatenate([chunk.clicked.reshape(-1) for chunk in chunks])),
            pa.array(np.concatenate([chunk.observed for chunk in chunks])),
        ]
        table = pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA)
        return table.filter(pa.array(partitions >= 0))

    @staticmethod
    def write(path: Path, table: pa.Table, summary: dict[str, object]) -> None:
        """Puts `table` at `path` (Parquet) and `summary` beside it (same name, `.json`); each appears whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, temporary)
        temporary.replace(path)
        sync_folder(path.parent)
        write_text(path.with_suffix(".json"), json.dumps(summary, indent=2) + "\n")


def oracle_auc(table: pa.Table) -> dict[str, float | None]:
    """{"auc_oracle", "auc_oracle_last_third"}: AUC of the true probabilities against the observed labels.

    No model can expect a higher one. None where probabilities are unknown or only one label occurs.
    """
    p_true, observed = table["p_true"].to_numpy(), table["observed"].to_numpy(zero_copy_only=False)
    last = slice(2 * len(p_true) // 3, None)
    return {"auc_oracle": _auc(observed, p_true), "auc_oracle_last_third": _auc(observed[last], p_true[last])}


def _auc(observed: np.ndarray, p_true: np.ndarray) -> float | None:
    value = auc(observed, p_true) if not np.isnan(p_true).any() else float("nan")
    return None if np.isnan(value) else round(value, 5)
