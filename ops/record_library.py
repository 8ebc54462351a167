"""Loads the C++ library of records, which needs no TensorFlow; says how to rebuild one that does not fit.

Batches go in and out by Arrow's C data interface, without a copy.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.runtime.memory import keep_freed_memory

LIBRARY = Path(__file__).with_name("_millrace_records.so")
VERSION = 3  # of ops/cc/records/version.cc

_SCHEMA_BYTES, _ARRAY_BYTES = 72, 80  # of the structs of the C data interface
_OUT_OF_MEMORY, _BAD_SCHEMA = 1, 2


class RecordLibraryError(UserError):
    """The library is missing or was built from other sources."""

    def __init__(self, problem: str, remedy: str = "run `make build` in a checkout, or reinstall millrace") -> None:
        super().__init__("record library", LIBRARY.name, problem, remedy)


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library, loaded once a process. RecordLibraryError when it is missing or does not fit."""
    if not LIBRARY.exists():
        raise RecordLibraryError("it is not in this installation")
    library = ctypes.CDLL(str(LIBRARY))
    found = library.millrace_records_version()
    if found != VERSION:
        raise RecordLibraryError(f"it has version {found}, expected {VERSION}")
    library.millrace_records_lacks.restype = ctypes.c_char_p
    lacking = library.millrace_records_lacks()
    if lacking is not None:
        raise RecordLibraryError(
            f"built for another processor: this one has no {lacking.decode()}",
            "run `make build` in a checkout, with -DMILLRACE_ARCH=x86-64-v2 for CMake where it is built elsewhere",
        )
    keep_freed_memory()
    return library


class CBatch:
    """Room for a record batch in C's hands: `schema` and `array` are the addresses of its two structs."""

    def __init__(self) -> None:
        self._schema = ctypes.create_string_buffer(_SCHEMA_BYTES)
        self._array = ctypes.create_string_buffer(_ARRAY_BYTES)
        self.schema, self.array = (ctypes.c_void_p(ctypes.addressof(room)) for room in (self._schema, self._array))

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "CBatch":
        """`batch`, for a function that releases it."""
        room = cls()
        batch._export_to_c(room.array.value, room.schema.value)
        return room

    def take(self) -> pa.RecordBatch:
        """The batch that a function has put here."""
        return pa.RecordBatch._import_from_c(self.array.value, self.schema.value)


class CSchema:
    """A schema in C's hands, at the address `schema`, until it is closed."""

    def __init__(self, schema: pa.Schema) -> None:
        self._room = ctypes.create_string_buffer(_SCHEMA_BYTES)
        self.schema = ctypes.c_void_p(ctypes.addressof(self._room))
        schema._export_to_c(self.schema.value)

    def close(self) -> None:
        """Releases what it holds."""
        pa.Schema._import_from_c(self.schema.value)


def decode_records(
    block: pa.RecordBatch,
    format: int,
    fids_as_is: bool,
    pruning: int,
    line_id_fields: int,
    row_stride: int,
    wanted: pa.Schema | None,
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows, refused) of `millrace_decode_records`: ops/cc/records/decode/decode_api.cc says what the arguments are.

    Args:
      block: the columns that `BlockReader` (ops/cc/records/arrow/arrow_reader.h) reads.

    Raises: ValueError when `wanted` has a type or a name that no feature can have.
    """
    function = _function("millrace_decode_records", "iiiqqpppppp")
    rows, refused, given = CBatch(), CBatch(), CBatch.of(block)
    pa.Schema._import_from_c(given.schema.value)  # the columns are known
    features = CSchema(wanted) if wanted is not None else None
    try:
        status = function(
            format,
            int(fids_as_is),
            pruning,
            line_id_fields,
            row_stride,
            features.schema if features else None,
            given.array,
            rows.schema,
            rows.array,
            refused.schema,
            refused.array,
        )
    finally:
        if features:
            features.close()
    _check(status, wanted)
    return rows.take(), refused.take()


def encode_records(batch: pa.RecordBatch, format: int, rows_per_record: int) -> pa.BinaryArray:
    """The records of `millrace_encode_records` (ops/cc/records/encode/encode_api.cc), which describes the arguments.

    Raises: ValueError when a column has a type that the format has not.
    """
    function = _function("millrace_encode_records", "iqpppp")
    given, records = CBatch.of(batch), CBatch()
    try:
        status = function(format, rows_per_record, given.schema, given.array, records.schema, records.array)
    finally:
        pa.Schema._import_from_c(given.schema.value)
    _check(status, batch.schema)
    return records.take().column(0)


def read_json(values: pa.BinaryArray, schema: pa.Schema, max_bytes: int) -> tuple[pa.RecordBatch, np.ndarray] | None:
    """Rows of the plain JSON objects among `values`, as `JsonReader` (ops/cc/records/json/json_reader.h) reads them.

    Returns: (rows with the columns of `schema`, bool [values]: which became a row), or None when the schema has a type
      that is not read so.
    """
    function = _function("millrace_read_json", "ppqpp")
    given, rows, fields = CBatch(), CBatch(), CSchema(schema)
    values._export_to_c(given.array.value)
    is_plain = np.zeros(len(values), bool)
    try:
        status = function(fields.schema, given.array, max_bytes, is_plain.ctypes.data, rows.array)
    finally:
        fields.close()
    if status == _BAD_SCHEMA:
        return None
    _check(status, schema)
    return pa.RecordBatch._import_from_c(rows.array.value, schema), is_plain


def siphash24(offsets: np.ndarray, data: np.ndarray, key: bytes) -> np.ndarray:
    """uint64 [n] hashes of `millrace_siphash24` (ops/cc/records/rows/siphash.cc).

    Args:
      offsets: int64 [n + 1] into `data`, uint8, both contiguous.
      key: 16 bytes.
    """
    if len(key) != 16:
        raise ValueError(f"key has {len(key)} bytes, expected 16")
    function = load().millrace_siphash24
    function.argtypes, function.restype = [ctypes.c_void_p] * 2 + [ctypes.c_int64] + [ctypes.c_void_p] * 2, None
    hashes = np.empty(len(offsets) - 1, np.uint64)
    function(offsets.ctypes.data, data.ctypes.data, len(hashes), key, hashes.ctypes.data)
    return hashes


@functools.lru_cache(maxsize=8)
def _function(name: str, arguments: str) -> Callable[..., int]:
    """A function of the library that returns a status. `arguments`: i int32, q int64, p pointer."""
    types = {"i": ctypes.c_int32, "q": ctypes.c_int64, "p": ctypes.c_void_p}
    function = getattr(load(), name)
    function.argtypes = [types[argument] for argument in arguments]
    function.restype = ctypes.c_int32
    return function


def _check(status: int, schema: pa.Schema | None) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError("records: out of memory")
    if status == _BAD_SCHEMA:
        raise ValueError(f"records have no such columns: {schema}")
