"""Functions of columns of fids and other integers: slots, combinations, masks, look-ups, hashes.

Fids are v2 in `list<int64>` unless an argument says v1. A null row stays null.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import fid
from millrace.transforms.batch.hashes import city_hash64, mix64
from millrace.transforms.batch.list_columns import (
    any_in,
    lengths,
    list_array,
    splits_of,
    values_and_splits,
)

MAX_COMBINATIONS = 1 << 14
"""Most fids that the combination of two features may give a row: 128 fids of each feature."""

_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def switch_slot(column: pa.ListArray, slot: int, v1: bool = False, legacy_mask: bool = False) -> pa.ListArray:
    """The fids, in lists nested to any depth, with their slots replaced by `slot`. `legacy_mask`: see `fid.fid_v2`."""
    make = fid.fid_v1 if v1 else fid.fid_v2
    return map_values(column, lambda fids: make(slot, fids, legacy_mask))


def convert_fids(column: pa.ListArray) -> pa.ListArray:
    """Fids v1, in lists nested to any depth, as fids v2. Lossy: 6 bits of the signature are dropped."""
    return map_values(column, fid.v1_to_v2)


def extract_fids(column: pa.Array, slot: int, legacy_mask: bool = False) -> pa.ListArray:
    """Fids v2 of the CityHash64 of integers, int64 [rows] or lists of them."""
    lists = column if pa.types.is_list(column.type) else _as_lists(column)
    return map_values(lists, lambda values: fid.fid_v2(slot, city_hash64(values), legacy_mask))


def map_ids(column: pa.Array, mapping: Mapping[int, int], default: int = -1) -> pa.Array:
    """Integers, plain or in lists nested to any depth, looked up in `mapping`; `default` for those without an entry."""
    keys = np.array(sorted(mapping), np.int64)
    mapped = np.array([mapping[key] for key in keys.tolist()], np.int64)
    return map_values(column, lambda values: _look_up(values.astype(np.int64), keys, mapped, default))


def fid_mask(column: pa.ListArray, wanted: int) -> np.ndarray:
    """float32 [rows]: 1 where the row holds the fid `wanted`, given as an unsigned number, else 0."""
    return any_in(column, pa.array(fid.from_unsigned([wanted]))).astype(np.float32)


def combine_fids(
    first: np.ndarray, second: np.ndarray, slot: int, legacy_product: bool = False, legacy_mask: bool = False
) -> np.ndarray:
    """int64 [n] fids v2 of pairs of int64 fids [n].

    Args:
      legacy_product: the signature is the upper half of the signed 128-bit product xor its lower half. Otherwise it is
        a hash that every bit of both fids changes, and that differs for (a, b) and (b, a).
      legacy_mask: see `fid.fid_v2`.
    """
    if legacy_product:
        mixed = high_product(first, second) ^ (first.astype(np.uint64) * second.astype(np.uint64))
    else:
        mixed = mix64(mix64(first) ^ second.astype(np.uint64))
    return fid.fid_v2(slot, mixed, legacy_mask)


def high_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """uint64 [n]: the upper 64 bits of the signed 128-bit products of int64 [n] and int64 [n]."""
    left, right = first.astype(np.uint64), second.astype(np.uint64)
    low = (left & _LOW_HALF) * (right & _LOW_HALF)
    cross = (left >> _HALF) * (right & _LOW_HALF) + (low >> _HALF)
    carry = (left & _LOW_HALF) * (right >> _HALF) + (cross & _LOW_HALF)
    unsigned = (left >> _HALF) * (right >> _HALF) + (cross >> _HALF) + (carry >> _HALF)
    return unsigned - np.where(first < 0, right, 0) - np.where(second < 0, left, 0)


def combine_features(
    first: pa.ListArray, second: pa.ListArray, slot: int, legacy_product: bool = False, legacy_mask: bool = False
) -> tuple[pa.ListArray, np.ndarray]:
    """One fid for every pair of a fid of `first` and a fid of `second` in the same row; see `combine_fids`.

    The pairs of a row are in the order of `first`, then of `second`.

    Returns: (list<int64> [rows], null where a feature is null or the row has more than MAX_COMBINATIONS pairs;
      bool [rows], true where the row has too many pairs).
    """
    pairs = lengths(first) * lengths(second)
    too_many = pairs > MAX_COMBINATIONS
    pairs[too_many] = 0
    left, right = _pairs(first, second, pairs)
    fids = combine_fids(left, right, slot, legacy_product, legacy_mask)
    nulls = _is_null(first) | _is_null(second) | too_many
    return list_array(fids, splits_of(pairs), pa.int64(), nulls), too_many


def map_values(column: pa.Array, function: Callable[[np.ndarray], np.ndarray]) -> pa.Array:
    """`column` with `function`, which maps [n] to [n], applied to the values within all lists; nulls stay."""
    if not pa.types.is_list(column.type):
        valid = ~_is_null(column)
        values = function(column.drop_null().to_numpy(zero_copy_only=False))
        return pa.array(values) if valid.all() else _spread(pa.array(values), valid)
    return list_array(map_values(column.flatten(), function), splits_of(lengths(column)), nulls=_is_null(column))


def _spread(values: pa.Array, rows: np.ndarray) -> pa.Array:
    """The `values`, one after the other, in the rows where `rows`, bool [rows], is true; null in the others."""
    return values.take(pa.array(np.cumsum(rows) - 1, mask=~rows))


def _pairs(first: pa.ListArray, second: pa.ListArray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `counts[row]` pairs of each row: (values of `first`, values of `second`), [pairs] each."""
    left, left_splits = values_and_splits(first)
    right, right_splits = values_and_splits(second)
    row = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(row)) - splits_of(counts)[row]
    outer, inner = np.divmod(number, np.diff(right_splits)[row])
    return left[left_splits[row] + outer], right[right_splits[row] + inner]


def _look_up(values: np.ndarray, keys: np.ndarray, mapped: np.ndarray, default: int) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[at] == values, mapped[at], default)


def _as_lists(column: pa.Array) -> pa.ListArray:
    valid = ~_is_null(column)
    return list_array(column.drop_null(), splits_of(valid), pa.int64(), ~valid)


def _is_null(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)
