"""Rows of a batch by number, as `pa.RecordBatch.take` gives them, but several times as fast where columns hold lists.

C++ copies runs of rows that follow one another as one (`ops/cc/records/rows/take_rows.h`).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from millrace.ops import record_library


def take_rows(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """The rows with these numbers, int64 [n], in any order, repeated or not; IndexError when one is out of range."""
    return take_rows_of([batch], rows)


def take_rows_of(batches: Sequence[pa.RecordBatch], rows: np.ndarray) -> pa.RecordBatch:
    """`take_rows` of batches of one schema, one or more, whose rows are numbered through."""
    rows = np.ascontiguousarray(rows, np.int64)
    taken = record_library.take_rows(batches, rows)
    return pa.concat_batches(batches).take(pa.array(rows)) if taken is None else taken
