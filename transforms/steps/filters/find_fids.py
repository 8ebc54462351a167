"""Which rows hold some of a few fids: one pass over the columns in C++ (`ops/cc/records/rows/find_fids.h`)."""

import numpy as np
import pyarrow as pa

from millrace.ops import record_library

MOST = 8
"""Fids at most."""

FIDS = pa.list_(pa.int64())
"""Type of the columns."""


def find_fids(batch: pa.RecordBatch, wanted: np.ndarray) -> np.ndarray:
    """uint8 [rows]: bit k is set where a column has `wanted[k]` in the row; what a null row hides does not count.

    Args:
      batch: columns of list<int64>.
      wanted: int64, `MOST` at most.
    """
    if len(wanted) > MOST or any(type != FIDS for type in batch.schema.types):
        raise ValueError(f"{len(wanted)} fids in columns of {batch.schema.types}")
    return record_library.find_fids(batch, np.ascontiguousarray(wanted, np.int64))
