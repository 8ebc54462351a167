"""Rows of a batch by number, as `pa.RecordBatch.take` gives them, but several times as fast where columns hold lists.

C++ copies runs of rows that follow one another as one (`ops/cc/records/rows/take_rows.h`).
"""

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from millrace.ops import record_library
from millrace.ops.record_library import CBatch

_OUT_OF_MEMORY, _UNSUPPORTED, _OUT_OF_RANGE = 1, 2, 3  # millrace::Taken


def take_rows(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """The rows with these numbers, int64 [n], in any order, repeated or not; IndexError when one is out of range."""
    return take_rows_of([batch], rows)


def take_rows_of(batches: Sequence[pa.RecordBatch], rows: np.ndarray) -> pa.RecordBatch:
    """`take_rows` of batches of one schema, one or more, whose rows are numbered through."""
    rows = np.ascontiguousarray(rows, np.int64)
    given, taken = [CBatch.of(batches[0]), *(CBatch() for _ in batches[1:])], CBatch()
    for room, batch in zip(given[1:], batches[1:], strict=True):
        batch._export_to_c(room.array.value)
    arrays = (ctypes.c_void_p * len(given))(*(room.array for room in given))
    status = _function()(given[0].schema, arrays, len(given), rows.ctypes.data, len(rows), taken.array)
    if status == _UNSUPPORTED:
        return pa.concat_batches(batches).take(pa.array(rows))
    if status == _OUT_OF_RANGE:
        number = sum(batch.num_rows for batch in batches)
        raise IndexError(f"row {rows.min()} or {rows.max()} of {number} rows")
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"no room for {len(rows)} rows")
    return pa.RecordBatch._import_from_c(taken.array.value, batches[0].schema)


@functools.cache
def _function() -> Callable[..., int]:
    function = record_library.load().millrace_take_rows
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, pointer, ctypes.c_int64, pointer, ctypes.c_int64, pointer]
    function.restype = ctypes.c_int32
    return function
