"""Which rows have some, all or none of given fids, in all of their sparse features together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.ops import record_library
from millrace.transforms.batch import fid, list_columns, record_batch
from millrace.transforms.steps.filters.comparisons import MAX_SCANS, find_values, have_all, rows_of

MAX_BITS = 8
"""Fids that `fid_bits` looks for in one pass: one bit of a byte each."""

_FIDS = pa.list_(pa.int64())
_NONE = np.zeros(0, np.int64)


class FidColumn(NamedTuple):
    """A column of fids, in layout v1 or v2. Of a nested column, the lists of a row count as one joined list."""

    column: pa.ListArray
    v1: bool

    def fids(self) -> np.ndarray:
        """int64 [n]: the fids of all rows, one row after the other."""
        values = self.column.flatten()
        return (values.flatten() if self._nested else values).to_numpy(zero_copy_only=False)

    def splits(self) -> np.ndarray:
        """int64 row splits [rows + 1] of the fids."""
        splits = list_columns.splits_of(list_columns.lengths(self.column))
        if not self._nested:
            return splits
        return list_columns.splits_of(list_columns.lengths(self.column.flatten()))[splits]

    def slots(self) -> np.ndarray:
        """uint16 [n]: the slots of the fids."""
        upper = _upper_bits(self.fids())
        return upper >> (fid.SIGNATURE_BITS_V1 - fid.SIGNATURE_BITS) if self.v1 else upper & fid.MAX_SLOT

    @property
    def _nested(self) -> bool:
        return pa.types.is_list(self.column.type.value_type)


def keep_by_fids(batch: pa.RecordBatch, has: np.ndarray, none_of: np.ndarray, all_of: np.ndarray) -> np.ndarray:
    """bool [rows]: the row has one of the fids `has` if any are given, none of `none_of`, and all of `all_of`.

    Args:
      has, none_of, all_of: raw fids, int64.
    """
    wanted = np.unique(np.concatenate([has, none_of, all_of]))
    if not len(wanted):
        return np.ones(batch.num_rows, bool)
    features = batch.select([index for index, field in enumerate(batch.schema) if _holds_fids(field)])
    if len(wanted) <= MAX_BITS and all(type == _FIDS for type in features.schema.types):
        found = fid_bits(features, wanted)
        has_bits, none_bits, all_bits = (_bits_of(wanted, each) for each in (has, none_of, all_of))
        kept = (found & none_bits == 0) & (found & all_bits == all_bits)
        return kept & (found & has_bits != 0) if len(has) else kept
    kept = np.ones(batch.num_rows, bool)
    pairs = [(feature, *_find_fids(feature.fids(), wanted)) for feature in sparse_features(batch)]
    rows, codes = _joined(pairs)
    if len(has):
        kept &= _marked(rows[np.isin(wanted, has)[codes]], batch.num_rows)
    if len(none_of):
        kept &= ~_marked(rows[np.isin(wanted, none_of)[codes]], batch.num_rows)
    if len(all_of):
        needed = np.isin(wanted, all_of)
        numbers = np.cumsum(needed) - 1
        chosen = needed[codes]
        kept &= have_all(rows[chosen], numbers[codes[chosen]], int(needed.sum()), batch.num_rows)
    return kept


def keep_by_slots(batch: pa.RecordBatch, slots: Sequence[int]) -> np.ndarray:
    """bool [rows]: the row has a fid of every slot in `slots`; the slot of a fid is read in the fid's own layout."""
    wanted = np.unique(np.asarray(slots, np.int64))
    rows, codes = _joined([(feature, *find_values(feature.slots(), wanted)) for feature in sparse_features(batch)])
    return have_all(rows, codes, len(wanted), batch.num_rows)


def fid_bits(batch: pa.RecordBatch, wanted: np.ndarray) -> np.ndarray:
    """uint8 [rows]: bit k is set where some column has `wanted[k]` in the row. What a null row hides does not count.

    One pass over the columns in C++ (`ops/cc/records/rows/find_fids.h`).

    Args:
      batch: columns of list<int64>.
      wanted: int64 [n], at most `MAX_BITS`.
    """
    if len(wanted) > MAX_BITS or any(type != _FIDS for type in batch.schema.types):
        raise ValueError(f"{len(wanted)} fids in columns of {batch.schema.types}")
    return record_library.find_fids(batch, np.ascontiguousarray(wanted, np.int64))


def sparse_features(batch: pa.RecordBatch) -> Iterator[FidColumn]:
    """The columns of fids v2 and of fids v1."""
    for index, field in enumerate(batch.schema):
        if _holds_fids(field):
            yield FidColumn(batch.column(index), record_batch.is_fid_v1_field(field))


def _holds_fids(field: pa.Field) -> bool:
    return (field.metadata or {}).get(record_batch.KIND_KEY) in (b"fid", b"fid_v1")


def _bits_of(wanted: np.ndarray, chosen: np.ndarray) -> np.uint8:
    """The bits that `fid_bits` sets for those fids of `wanted` that are in `chosen`."""
    return np.uint8(sum(1 << k for k, each in enumerate(wanted.tolist()) if each in chosen))


def _find_fids(fids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`find_values(fids, wanted)`, in two steps where that is faster.

    Many wanted fids are of few slots. The first step picks the fids whose upper 16 bits, which hold the slot in both
    layouts, some wanted fid has; the hash table is then asked about those alone.
    """
    if len(wanted) <= MAX_SCANS:
        return find_values(fids, wanted)
    prefixes = np.unique(_upper_bits(wanted))
    if len(prefixes) > MAX_SCANS:
        return find_values(fids, wanted)
    candidates, _ = find_values(_upper_bits(fids), prefixes)
    positions, codes = find_values(fids[candidates], wanted)
    return candidates[positions], codes


def _upper_bits(fids: np.ndarray) -> np.ndarray:
    """uint16 [n]: bits 63..48 of the fids; a view."""
    return fids.view("<u2")[3::4]


def _joined(
    hits: Sequence[tuple[FidColumn, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, codes), int64 [n] each, of all `hits`.

    Args:
      hits: (feature, positions among its fids, codes of the wanted fids that are there) of each feature.
    """
    rows = [rows_of(positions, feature.splits()) for feature, positions, _ in hits if len(positions)]
    codes = [codes for _, positions, codes in hits if len(positions)]
    return np.concatenate([_NONE, *rows]), np.concatenate([_NONE, *codes])


def _marked(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """bool [num_rows]: true in `rows`."""
    marked = np.zeros(num_rows, bool)
    marked[rows] = True
    return marked
