"""Loads the C++ library of records, which needs no TensorFlow, and calls its C functions.

`SIGNATURES` is the one place where Python spells the types of their arguments: those of `ops/cc/records/c_api.h`, which
a test holds against it. Batches go in and out by Arrow's C data interface, without a copy.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.runtime.memory import keep_freed_memory

LIBRARY = Path(__file__).with_name("_millrace_records.so")
VERSION = 4  # of ops/cc/records/version.cc

SIGNATURES = {
    "millrace_records_version": "",
    "millrace_records_lacks": "",
    "millrace_split_frames": "pqqiqqpppppppp",
    "millrace_split_values": "ppqiqqqpppppppppp",
    "millrace_copy_ranges": "pppqpp",
    "millrace_find_frame": "pqqiqipp",
    "millrace_join_frames": "ppqipqp",
    "millrace_decode_records": "iiiqqpppppp",
    "millrace_encode_records": "iqpppp",
    "millrace_read_json": "ppqpp",
    "millrace_take_rows": "ppqpqp",
    "millrace_find_fids": "ppip",
    "millrace_number_fids": "ppiqipp",
    "millrace_place_fids": "ppiqppppp",
    "millrace_siphash24": "ppqpp",
    "millrace_item_pool_new": "qqqp",
    "millrace_item_pool_delete": "p",
    "millrace_item_pool_size": "pp",
    "millrace_item_pool_process": "pqpppppqdippppppp",
    "millrace_item_pool_add": "pqppppp",
    "millrace_item_pool_export": "pppppp",
    "millrace_item_pool_renumber": "p",
}
"""The arguments of each function: i int32, q int64, d double, p pointer. Results are int32, of `_lacks` a text."""

DONE, OUT_OF_MEMORY, UNSUPPORTED, OUT_OF_RANGE = 0, 1, 2, 3  # CallStatus of ops/cc/records/c_api.h

_TYPES: dict[str, Any] = {"i": ctypes.c_int32, "q": ctypes.c_int64, "d": ctypes.c_double, "p": ctypes.c_void_p}
_SCHEMA_BYTES, _ARRAY_BYTES = 72, 80  # of the structs of the C data interface


class RecordLibraryError(UserError):
    """The library is missing or was built from other sources."""

    def __init__(self, problem: str, remedy: str = "run `make build` in a checkout, or reinstall millrace") -> None:
        super().__init__("record library", LIBRARY.name, problem, remedy)


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library, loaded once per process. RecordLibraryError when it is missing or does not fit."""
    if not LIBRARY.exists():
        raise RecordLibraryError("it is not in this installation")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise RecordLibraryError(f"it does not load: {error}") from error
    found = library.millrace_records_version()
    if found != VERSION:
        raise RecordLibraryError(f"it has version {found}, expected {VERSION}")
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[argument] for argument in arguments], ctypes.c_int32
    library.millrace_records_lacks.restype = ctypes.c_char_p
    lacking = library.millrace_records_lacks()
    if lacking is not None:
        raise RecordLibraryError(
            f"built for another processor: this one has no {lacking.decode()}",
            "run `make build` in a checkout, without -DMILLRACE_ARCH, whose default fits every machine",
        )
    keep_freed_memory()
    return library


def call(name: str, *arguments: Any) -> int:
    """Calls a function of the library; returns its status: DONE, UNSUPPORTED or OUT_OF_RANGE.

    Args:
      arguments: numbers, addresses, and contiguous arrays of the type that `ops/cc/records/c_api.h` says, whose
        address is given.

    Raises:
      MemoryError: there was no room for the result.
      RuntimeError: the function failed in another way, which is a bug of the library.
    """
    given = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments]
    status: int = getattr(load(), name)(*given)
    if status == OUT_OF_MEMORY:
        raise MemoryError(f"{name}: out of memory")
    if status > OUT_OF_RANGE:
        raise RuntimeError(f"{name} failed: a bug of {LIBRARY.name}")
    return status


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


def decode_protos(
    block: pa.RecordBatch,
    format: int,
    fids_as_is: bool,
    pruning: int,
    line_id_fields: int,
    row_stride: int,
    wanted: pa.Schema | None,
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows, refused) of `millrace_decode_records`, which describes the arguments (`ops/cc/records/c_api.h`).

    Args:
      block: the columns that `BlockReader` (ops/cc/records/arrow/arrow_reader.h) reads.

    Raises: ValueError when `wanted` has a type or a name that no feature can have.
    """
    rows, refused, given = CBatch(), CBatch(), CBatch.of(block)
    pa.Schema._import_from_c(given.schema.value)  # the columns are known
    features = CSchema(wanted) if wanted is not None else None
    try:
        status = call(
            "millrace_decode_records",
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


def encode_protos(batch: pa.RecordBatch, format: int, rows_per_record: int) -> pa.BinaryArray:
    """The records of `millrace_encode_records`, which describes the arguments (`ops/cc/records/c_api.h`).

    Raises: ValueError when a column has a type that the format has not.
    """
    given, records = CBatch.of(batch), CBatch()
    try:
        status = call(
            "millrace_encode_records",
            format,
            rows_per_record,
            given.schema,
            given.array,
            records.schema,
            records.array,
        )
    finally:
        pa.Schema._import_from_c(given.schema.value)
    _check(status, batch.schema)
    return records.take().column(0)


def read_json(values: pa.BinaryArray, schema: pa.Schema, max_bytes: int) -> tuple[pa.RecordBatch, np.ndarray] | None:
    """Rows of the plain JSON objects among `values`, as `JsonReader` (ops/cc/records/json/json_reader.h) reads them.

    Returns: (rows with the columns of `schema`, bool [values]: which became a row), or None when the schema has a type
      that is not read so.
    """
    given, rows, fields = CBatch(), CBatch(), CSchema(schema)
    values._export_to_c(given.array.value)
    is_plain = np.zeros(len(values), bool)
    try:
        status = call("millrace_read_json", fields.schema, given.array, max_bytes, is_plain, rows.array)
    finally:
        fields.close()
    if status == UNSUPPORTED:
        return None
    return pa.RecordBatch._import_from_c(rows.array.value, schema), is_plain


def siphash24(offsets: np.ndarray, data: np.ndarray, key: bytes) -> np.ndarray:
    """uint64 [n] hashes of `millrace_siphash24` (ops/cc/records/rows/siphash.cc).

    Args:
      offsets: int64 [n + 1] into `data`, uint8, both contiguous.
      key: 16 bytes.
    """
    if len(key) != 16:
        raise ValueError(f"key has {len(key)} bytes, expected 16")
    hashes = np.empty(len(offsets) - 1, np.uint64)
    call("millrace_siphash24", offsets, data, len(hashes), key, hashes)
    return hashes


def take_rows(batches: Sequence[pa.RecordBatch], rows: np.ndarray) -> pa.RecordBatch | None:
    """Rows of batches of one schema, one or more, numbered through; None when a column has a type not taken here.

    Args:
      rows: int64 [n], contiguous.

    Raises: IndexError when a row is out of range.
    """
    given, taken = [CBatch.of(batches[0]), *(CBatch() for _ in batches[1:])], CBatch()
    for room, batch in zip(given[1:], batches[1:], strict=True):
        batch._export_to_c(room.array.value)
    arrays = (ctypes.c_void_p * len(given))(*(room.array for room in given))
    status = call("millrace_take_rows", given[0].schema, arrays, len(given), rows, len(rows), taken.array)
    if status == UNSUPPORTED:
        return None
    if status == OUT_OF_RANGE:
        number = sum(batch.num_rows for batch in batches)
        raise IndexError(f"row {rows.min()} or {rows.max()} of {number} rows")
    return pa.RecordBatch._import_from_c(taken.array.value, batches[0].schema)


def find_fids(batch: pa.RecordBatch, wanted: np.ndarray) -> np.ndarray:
    """uint8 [rows]: bit k is set where a column has `wanted[k]` in the row.

    Args:
      batch: columns of list<int64>.
      wanted: int64, contiguous, at most 8, the bits of the result.
    """
    found = np.zeros(batch.num_rows, np.uint8)
    given = CBatch.of(batch)
    pa.Schema._import_from_c(given.schema.value)  # the types are known
    call("millrace_find_fids", given.array, wanted, len(wanted), found)
    return found


class ItemPoolBooks:
    """The keys, order and counters of item pools in C++: `ItemPool` of `ops/cc/records/rows/item_pool.h`.

    Every method passes its arguments on to the function `millrace_item_pool_<method>` of `ops/cc/records/c_api.h`.
    """

    def __init__(self, start_num: int, max_items: int, max_channels: int) -> None:
        self._pool, self._delete = ctypes.c_void_p(), load().millrace_item_pool_delete
        call("millrace_item_pool_new", start_num, max_items, max_channels, ctypes.byref(self._pool))

    def __del__(self) -> None:
        if hasattr(self, "_delete"):
            self._delete(self._pool)  # this object has it: at the end of a process the module may be gone first

    def __len__(self) -> int:
        size = np.zeros(1, np.int64)
        call("millrace_item_pool_size", self._pool, size)
        return int(size[0])

    def process(self, *arguments: Any) -> int:
        """The number of draws."""
        draws = np.zeros(1, np.int64)
        call("millrace_item_pool_process", self._pool, *arguments, draws)
        return int(draws[0])

    def add(self, *arguments: Any) -> None:
        call("millrace_item_pool_add", self._pool, *arguments)

    def export(self, *arguments: Any) -> None:
        call("millrace_item_pool_export", self._pool, *arguments)

    def renumber(self) -> None:
        call("millrace_item_pool_renumber", self._pool)


def _check(status: int, schema: pa.Schema | None) -> None:
    if status == UNSUPPORTED:
        raise ValueError(f"records have no such columns: {schema}")
    if status == OUT_OF_RANGE:
        raise ValueError("records have no such format")
