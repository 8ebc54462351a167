"""Flows: rows of several data sources in one stream, told apart by `__DATA_SOURCE_KEY__`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import transform_config_pb2 as pb
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.data_source import check_names, data_source_key
from millrace.transforms.steps.step import Predicate, StepContext

_ALONE = StepContext()
DATA_SOURCE_KEY = "__DATA_SOURCE_KEY__"
"""Column: 32-bit key of the row's data source; 0 or null where it has none."""


class SelectFlows(Predicate):
    """Keeps the rows of the data sources with these names, by `__DATA_SOURCE_KEY__`."""

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
    """The rows of each flow, and those of no flow.

    Args:
      batch: rows with `__DATA_SOURCE_KEY__`.
      names: of the flows.

    Returns: ({name: its rows in order}, rows whose key no name has).
    Raises: UserError when two names cannot be told apart.
    """
    rows = source_keys(batch)
    keys = flow_keys(names)
    flows = {name: batch.filter(pa.array(rows == key)) for name, key in zip(names, keys, strict=True)}
    return flows, batch.filter(pa.array(np.isin(rows, keys, invert=True)))


def merge_flows(flows: Mapping[str, pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of all flows, one flow after the other, each row with the name of its flow.

    Raises: ValueError when there is no flow, or a column has two types.
    """
    return record_batch.concat([named_flow(rows, name) for name, rows in flows.items()])


def named_flow(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """`batch` with `name` as `__DATA_SOURCE_NAME__` of every row."""
    return line_id.set_column(batch, "data_source_name", pa.repeat(pa.scalar(name), batch.num_rows))


def flow_keys(names: Sequence[str]) -> np.ndarray:
    """int64 keys of the flows `names`; UserError when two of them have one key."""
    check_names(tuple(names), "flows")
    return np.array([data_source_key(name) for name in names], np.int64)


def source_keys(batch: pa.RecordBatch) -> np.ndarray:
    """int64 [rows]: the key of each row's data source, 0 where it has none."""
    column = record_batch.column_of(batch, DATA_SOURCE_KEY)
    if column is None:
        return np.zeros(batch.num_rows, np.int64)
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64) & 0xFFFFFFFF
