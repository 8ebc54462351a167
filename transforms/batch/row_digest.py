"""64-bit digests of values, columns and rows: equal content has equal digests, whatever its layout in memory.

Digests of different content are equal with a probability of 2^-64. Integers of any width are compared as int64, floats
as doubles, strings by their bytes. A null counts like a column that is not there.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.hashes import GOLDEN_RATIO, mix64
from millrace.transforms.batch.list_columns import lengths, row_of_value, splits_of

_ODD = np.uint64(GOLDEN_RATIO)
_NULL = np.uint64(0x6E756C6C)  # "null" in ASCII: any constant would do


def row_digests(batch: pa.RecordBatch, columns: Iterable[str]) -> np.ndarray:
    """uint64 [rows]: digest of each row's values in these columns, whose order does not count; nulls are left out."""
    digests = np.zeros(batch.num_rows, np.uint64)
    for name in columns:
        column = batch.column(batch.schema.get_field_index(name))
        seed = np.uint64(_of_bytes(name.encode("utf-8")))
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        digests += np.where(valid, mix64(value_digests(column) ^ seed), np.uint64(0))
    return digests


def value_digests(column: pa.Array) -> np.ndarray:
    """uint64 [rows]: digest of each value, which may be a list or a struct; all nulls have the same."""
    type = column.type
    if pa.types.is_dictionary(type):
        return value_digests(column.dictionary_decode())
    if pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        column = column.cast(pa.list_(type.value_type))
    if pa.types.is_list(column.type):
        digests = _of_lists(column)
    elif pa.types.is_struct(type):
        digests = row_digests(pa.RecordBatch.from_struct_array(column), [field.name for field in type])
    elif pa.types.is_null(type):
        return np.full(len(column), _NULL)
    else:
        digests = _of_plain(column)
    if not column.null_count:
        return digests
    return np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL, digests)


def _of_lists(column: pa.ListArray) -> np.ndarray:
    counts = lengths(column)
    splits = splits_of(counts)
    inner = value_digests(column.flatten())
    position = np.arange(len(inner)) - splits[row_of_value(splits)]
    sums = np.zeros(len(inner) + 1, np.uint64)
    np.cumsum(mix64(inner + (position + 1).astype(np.uint64) * _ODD), out=sums[1:])
    return mix64(sums[splits[1:]] - sums[splits[:-1]] + counts.astype(np.uint64) * _ODD)


def _of_plain(column: pa.Array) -> np.ndarray:
    type = column.type
    if pa.types.is_integer(type) or pa.types.is_boolean(type):
        wide = pa.int64() if type != pa.uint64() else type
        bits = pc.fill_null(column.cast(wide), 0).to_numpy(zero_copy_only=False)
    elif pa.types.is_floating(type):
        bits = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    else:
        return _of_text(column)
    return mix64(np.ascontiguousarray(bits).view(np.uint64) + _ODD)


def _of_text(column: pa.Array) -> np.ndarray:
    """Each distinct value is hashed once."""
    binary = column.cast(pa.binary()) if _has_bytes(column.type) else column.cast(pa.string()).cast(pa.binary())
    encoded = pc.dictionary_encode(binary)
    digests = np.array([_of_bytes(value) for value in encoded.dictionary.to_pylist()], np.uint64)
    if not len(digests):
        return np.zeros(len(column), np.uint64)
    return digests[pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)]


def _has_bytes(type: pa.DataType) -> bool:
    return any(
        test(type)
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
            pa.types.is_string,
            pa.types.is_large_string,
        )
    )


def _of_bytes(value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
