"""Which rows hold some of a few fids: one pass over the columns in C++ (`ops/cc/records/rows/find_fids.h`)."""

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from millrace.ops import record_library
from millrace.ops.record_library import CBatch

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
    wanted, found = np.ascontiguousarray(wanted, np.int64), np.zeros(batch.num_rows, np.uint8)
    given = CBatch.of(batch)
    pa.Schema._import_from_c(given.schema.value)  # the types are known
    _function()(given.array, wanted.ctypes.data, len(wanted), found.ctypes.data)
    return found


@functools.cache
def _function() -> Callable[..., None]:
    function = record_library.load().millrace_find_fids
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    function.restype = None
    return function
