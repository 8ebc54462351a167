"""Feature ids (fids) over whole arrays: bit layouts v1 and v2, signatures of strings, audit ids.

A fid is a slot, which tells the feature, and a signature, which tells the value. v1: slot in bits 63..54, signature in
bits 53..0. v2, the canonical form: bit 63 clear, slot in bits 62..48, signature in bits 47..0. Columns hold fids as
int64 with the bits of the unsigned number.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.hashes import HASH_KEY, siphash24

SIGNATURE_BITS_V1 = 54
SIGNATURE_BITS = 48
MAX_SLOT_V1 = (1 << 10) - 1
MAX_SLOT = (1 << 15) - 1
SIGNATURE_MASK_V1 = (1 << SIGNATURE_BITS_V1) - 1
SIGNATURE_MASK = (1 << SIGNATURE_BITS) - 1

AUDIT_SLOT = MAX_SLOT
"""Slot of the audit feature; no user feature may have it."""

_U64 = np.uint64


def fid_v1(slot: int, signature: np.ndarray | int, legacy_mask: bool = False) -> np.ndarray:
    """int64 fids v1. The signature is cut to 54 bits, so whole fids may be given as signatures: they move to `slot`.

    Args:
      slot: ValueError when it is not in [0, 1023].
      legacy_mask: cut to 55 bits instead, as models trained with Monolith need: where `signature` is a whole fid, the
        lowest bit of its old slot remains and is or-ed into the new one.
    """
    _check_slot(slot, MAX_SLOT_V1)
    bits = np.asarray(signature).astype(_U64) & _U64(_legacy(SIGNATURE_MASK_V1, legacy_mask))
    return (bits | (_U64(slot) << _U64(SIGNATURE_BITS_V1))).astype(np.int64)


def fid_v2(slot: int, signature: np.ndarray | int, legacy_mask: bool = False) -> np.ndarray:
    """int64 fids v2. The signature is cut to 48 bits, so whole fids may be given as signatures: they move to `slot`.

    Args:
      slot: ValueError when it is not in [0, 32767].
      legacy_mask: cut to 49 bits instead, see `fid_v1`.
    """
    _check_slot(slot, MAX_SLOT)
    bits = np.asarray(signature).astype(np.int64) & np.int64(_legacy(SIGNATURE_MASK, legacy_mask))
    return bits | np.int64(slot << SIGNATURE_BITS)


def slot_v1(fids: np.ndarray) -> np.ndarray:
    """int64 slots of fids v1."""
    return (np.asarray(fids).astype(_U64) >> _U64(SIGNATURE_BITS_V1)).astype(np.int64)


def slot_v2(fids: np.ndarray) -> np.ndarray:
    """int64 slots of fids v2."""
    return (np.asarray(fids, np.int64) >> SIGNATURE_BITS) & MAX_SLOT


def v1_to_v2(fids: np.ndarray) -> np.ndarray:
    """int64 fids v2. Lossy: the upper 6 bits of the signature are dropped."""
    return (slot_v1(fids) << SIGNATURE_BITS) | (np.asarray(fids).astype(np.int64) & SIGNATURE_MASK)


def from_unsigned(fids: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 fids with the bits of unsigned numbers; OverflowError when one is not in [0, 2^64)."""
    return np.asarray(fids, _U64).view(np.int64)


def check_v2(fids: np.ndarray) -> None:
    """Raises ValueError when bit 63 of a fid is set."""
    array = np.asarray(fids, np.int64)
    if (array < 0).any():
        raise ValueError(f"fid v2 {int(array[array < 0][0])}: bit 63 is reserved and must be clear")


def audit_fid(partition: np.ndarray | int, offset: np.ndarray | int, row: np.ndarray | int) -> np.ndarray:
    """int64 fids that name source rows: slot 32767, signature = partition (6 bits), offset (28 bits), row (14 bits).

    `partition` may be a source partition. There is no room for the number of the source: an audit is about one source,
    and equal rows of two count as one row that was applied twice.
    """
    partitions, offsets, rows = (np.asarray(part).astype(np.int64) for part in (partition, offset, row))
    return fid_v2(AUDIT_SLOT, ((partitions & 0x3F) << 42) | ((offsets & 0xFFFFFFF) << 14) | (rows & 0x3FFF))


def hash_strings(strings: pa.Array, key: bytes = HASH_KEY) -> np.ndarray:
    """Signature of each string, int64 [n]: the lower 48 bits of its SipHash-2-4; 0 for a null.

    Each distinct string is hashed once.
    """
    encoded = strings if pa.types.is_dictionary(strings.type) else pc.dictionary_encode(strings)
    hashes = (siphash24(encoded.dictionary, key) & _U64(SIGNATURE_MASK)).astype(np.int64)
    codes = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    if not len(hashes):
        return np.zeros(len(strings), np.int64)
    return np.where(encoded.indices.is_valid().to_numpy(zero_copy_only=False), hashes[codes], 0)


def _legacy(mask: int, legacy_mask: bool) -> int:
    return mask << 1 | 1 if legacy_mask else mask


def _check_slot(slot: int, largest: int) -> None:
    if not 0 <= slot <= largest:
        raise ValueError(f"slot {slot}: expected 0..{largest}")
