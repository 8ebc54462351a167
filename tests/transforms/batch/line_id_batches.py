"""Batches of labels and line ids for tests: of dictionaries, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.provenance import with_provenance

_LABELS = pa.list_(pa.float32())

actions = st.one_of(st.none(), st.lists(st.integers(-1, 5), max_size=5))
labels = st.one_of(
    st.none(),
    st.lists(st.sampled_from([record_batch.INVALID_LABEL, -2.5, -1.0, 0.0, 0.5, 1.0, 3.0, 7200.0]), max_size=4),
)


def batch_of(rows: Sequence[dict[str, Any]], fields: Sequence[str], start: int = 0) -> pa.RecordBatch:
    """The rows from `start` on, a slice, with these fields of the line id, labels and provenance."""
    columns = {
        line_id.FIELDS[name].column: pa.array([row.get(name) for row in rows], line_id.FIELDS[name].type)
        for name in fields
    }
    columns[record_batch.LABEL] = pa.array([row.get("label") for row in rows], _LABELS)
    return with_provenance(pa.RecordBatch.from_pydict(columns)).slice(start)


def rows_of(batch: pa.RecordBatch, fields: Sequence[str]) -> list[dict[str, Any]]:
    """{field: value} of each row, labels under "label"."""
    columns = {name: batch.column(line_id.FIELDS[name].column).to_pylist() for name in fields}
    columns["label"] = batch.column(record_batch.LABEL).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def float32(values: Sequence[float] | None) -> list[float] | None:
    """Python numbers as float32 has them."""
    with np.errstate(over="ignore"):
        return None if values is None else np.asarray(values, np.float32).tolist()
