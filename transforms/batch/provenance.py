"""Provenance: the three columns that say where a row came from. Together they are unique among the rows of a topic.

`__SOURCE_PARTITION__` and `__SOURCE_OFFSET__` name the source record, `__SOURCE_ROW__` the row within the record.
"""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.record_batch import (
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    SOURCE_ROW,
    column_of,
    numpy_column,
    with_column,
)

ROWS_PER_RECORD = 64
"""Largest number of rows of one source record. `__SOURCE_ROW__` = row within the record + 64 x number of the copy."""

MAX_COPIES = 256
"""Largest number of copies of a row, itself included, that a chain of steps may make.

`__SOURCE_ROW__` stays below 64 x 256 = 2^14, so that it fits the 14 bits that an audit fid has for it.
"""

PROVENANCE: dict[str, pa.DataType] = {
    SOURCE_PARTITION: pa.int32(),
    SOURCE_OFFSET: pa.int64(),
    SOURCE_ROW: pa.int32(),
}
"""{column: type}."""


def provenance_of(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(partition, offset, row), int64 [rows] each; ValueError when the rows do not say where they came from."""
    missing = next((name for name in PROVENANCE if column_of(batch, name) is None), None)
    if missing is not None:
        raise ValueError(
            f"the rows have no {missing}: sources give it, and millrace.transforms.batch.provenance.with_provenance "
            "makes it up for rows without a source"
        )
    partition, offset, row = (numpy_column(batch, name).astype(np.int64, copy=False) for name in PROVENANCE)
    return partition, offset, row


def with_provenance(batch: pa.RecordBatch, partition: int = 0, first_offset: int = 0) -> pa.RecordBatch:
    """`batch` as if each row were a source record of its own, for rows that have no source, as in a notebook."""
    offsets = np.arange(first_offset, first_offset + batch.num_rows)
    return set_provenance(batch, np.full(batch.num_rows, partition), offsets, np.zeros(batch.num_rows))


def set_provenance(
    batch: pa.RecordBatch, partition: np.ndarray | pa.Array, offset: np.ndarray | pa.Array, row: np.ndarray | pa.Array
) -> pa.RecordBatch:
    """`batch` with these provenance columns, integers [rows] each, replaced where they stand or appended."""
    for (name, kind), values in zip(PROVENANCE.items(), (partition, offset, row), strict=True):
        column = values if isinstance(values, pa.Array) else pa.array(values.astype(np.int64, copy=False))
        batch = with_column(batch, pa.field(name, kind), column.cast(kind))
    return batch


def ensure_provenance(batch: pa.RecordBatch, partition: int, first_offset: int) -> pa.RecordBatch:
    """`batch` as it is where all three columns are there, else as `with_provenance` makes it."""
    has_all = all(column_of(batch, name) is not None for name in PROVENANCE)
    return batch if has_all else with_provenance(batch, partition, first_offset)


def derived_rows(row: np.ndarray, copy: np.ndarray, fanout: int) -> np.ndarray:
    """int32 [n] `__SOURCE_ROW__` of copies: unique as long as each step that copies knows its largest fan-out.

    Args:
      row: `__SOURCE_ROW__` of the row that is copied, [n].
      copy: number of the copy in [0, fanout), 0 for the row itself.
      fanout: largest number of rows that the step makes of one, the row itself included; the same for every batch.
    """
    before = row // ROWS_PER_RECORD
    return (row + ROWS_PER_RECORD * (before * (fanout - 1) + copy)).astype(np.int32)
