"""Flows: the rows of several data sources in one stream, told apart by `__DATA_SOURCE_KEY__`.

A flow is named after its data source. `run_flows` of a recipe and the transforms of `transforms/beam/flows.py` split
rows into flows and merge them again.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.data_source import DATA_SOURCE_KEY, check_names, data_source_key
from millrace.transforms.steps.step import Predicate, StepContext

_ALONE = StepContext()
"""Name of the column with the 32-bit key of the row's data source, 0 or null in a row without one."""


class SelectFlows(Predicate):
    """Keeps the rows of some data sources, by their `__DATA_SOURCE_KEY__`."""

    example = "select_flows:\n  data_sources: [mobile, pc]"

    def __init__(self, config: pb.SelectFlowsConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        if not config.data_sources:
            raise self.wrong("data_sources", "", "empty", "name one data source or more")
        check_names(tuple(config.data_sources), self.field("data_sources"))
        self._keys = flow_keys(config.data_sources)

    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.isin(source_keys(batch), self._keys)


def split_flows(batch: pa.RecordBatch, names: Sequence[str]) -> tuple[dict[str, pa.RecordBatch], pa.RecordBatch]:
    """The rows of each flow, and the rows that belong to none.

    Args:
      batch: rows with `__DATA_SOURCE_KEY__`.
      names: names of the flows.

    Returns: ({name: rows of the flow, in order}, rows whose key belongs to none of the names).
    Raises: UserError when two names have the same key.
    """
    rows = source_keys(batch)
    keys = flow_keys(names)
    flows = {name: batch.filter(pa.array(rows == key)) for name, key in zip(names, keys, strict=True)}
    return flows, batch.filter(pa.array(np.isin(rows, keys, invert=True)))


def named_flow(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """`batch` with `name` as `__DATA_SOURCE_NAME__` of every row."""
    return line_id.set_column(batch, "data_source_name", pa.repeat(pa.scalar(name), batch.num_rows))


def flow_keys(names: Sequence[str]) -> np.ndarray:
    """int64 [n]: the keys of the flows `names`; UserError when two of them have the same key."""
    check_names(tuple(names), "flows")
    return np.array([data_source_key(name) for name in names], np.int64)


def source_keys(batch: pa.RecordBatch) -> np.ndarray:
    """int64 [rows]: the key of each row's data source, 0 in a row without one."""
    column = record_batch.column_of(batch, DATA_SOURCE_KEY)
    if column is None:
        return np.zeros(batch.num_rows, np.int64)
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64) & 0xFFFFFFFF
