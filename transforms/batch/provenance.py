"""Provenance: the three columns that say where a row came from. Together they are unique among the rows of a topic.

`__SOURCE_PARTITION__` and `__SOURCE_OFFSET__` name the source record, `__SOURCE_ROW__` the row within the record. A
source partition is the number of a source and a partition of it. A topic that is made anew, another topic and a topic
of another cluster are other sources, so their rows are never taken for each other's. Files are source 0.
"""

import hashlib
from typing import TypeVar

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

PARTITIONS_PER_SOURCE = 1 << 16
"""Source partition = number of the source x 65,536 + partition; brokers have far fewer partitions per topic."""

SOURCE_BITS = 37
"""Bits of the number of a source. Ten sources share one with a probability below 10^-9.

A source partition stays below 2^53, so that a float64 holds it exactly, and times `MAX_COPIES` below 2^61, so that
a row's partition and copy fit an int64 together.
"""

_Numbers = TypeVar("_Numbers", int, np.ndarray)

PROVENANCE: dict[str, pa.DataType] = {
    SOURCE_PARTITION: pa.int64(),
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


def source_number(cluster: str, topic: str) -> int:
    """The number of a source, in [1, 2^37): a hash of the ids of a cluster and of a topic in it."""
    text = f"{len(cluster)}:{cluster}{topic}".encode()
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return 1 + digest % ((1 << SOURCE_BITS) - 1)


def source_partition(source: int, partition: _Numbers) -> _Numbers:
    """The source partition of partition 0..65535 of a source; of integers [n] it makes int64 [n]."""
    if isinstance(partition, np.ndarray):
        return source * PARTITIONS_PER_SOURCE + partition.astype(np.int64, copy=False)
    return source * PARTITIONS_PER_SOURCE + partition


def split_source_partition(number: _Numbers) -> tuple[_Numbers, _Numbers]:
    """(source, partition) of a source partition, or of an int64 array of them."""
    return number // PARTITIONS_PER_SOURCE, number % PARTITIONS_PER_SOURCE


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
    """`batch` with its three columns, of the types of `PROVENANCE`, where all are there; else as `with_provenance`
    makes it."""
    columns = [column for name in PROVENANCE if (column := column_of(batch, name)) is not None]
    if len(columns) < len(PROVENANCE):
        return with_provenance(batch, partition, first_offset)
    if all(column.type == kind for column, kind in zip(columns, PROVENANCE.values(), strict=True)):
        return batch
    return set_provenance(batch, *columns)


def derived_rows(row: np.ndarray, copy: np.ndarray, fanout: int) -> np.ndarray:
    """int32 [n] `__SOURCE_ROW__` of copies: unique as long as each step that copies knows its largest fan-out.

    Args:
      row: `__SOURCE_ROW__` of the row that is copied, [n].
      copy: number of the copy in [0, fanout), 0 for the row itself.
      fanout: largest number of rows that the step makes of one, the row itself included; the same for every batch.
    """
    before = row // ROWS_PER_RECORD
    return (row + ROWS_PER_RECORD * (before * (fanout - 1) + copy)).astype(np.int32)
