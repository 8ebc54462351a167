"""Operations on the fids of one row, in Python's integers."""

from collections.abc import Mapping, Sequence

from tests.reference.city_hash import city_hash64

_MASK64 = (1 << 64) - 1


def switch_slot(value: int, slot: int, v1: bool, legacy_mask: bool) -> int:
    bits = 54 if v1 else 48
    return signed(slot << bits | value & ((1 << (bits + legacy_mask)) - 1))


def extract_fid(value: int, slot: int, legacy_mask: bool) -> int:
    return signed(slot << 48 | city_hash64(value) & ((1 << (48 + legacy_mask)) - 1))


def combine(
    first: Sequence[int] | None, second: Sequence[int] | None, slot: int, legacy_product: bool, legacy_mask: bool
) -> list[int] | None:
    if first is None or second is None:
        return None
    return [_combined(a, b, slot, legacy_product, legacy_mask) for a in first for b in second]


def _combined(a: int, b: int, slot: int, legacy_product: bool, legacy_mask: bool) -> int:
    product = (a * b) & ((1 << 128) - 1)
    mixed = product >> 64 ^ product & _MASK64
    if not legacy_product:
        mixed = _mix64(_mix64(a & _MASK64) ^ (b & _MASK64))
    return signed(slot << 48 | mixed & ((1 << (48 + legacy_mask)) - 1))


def map_id(value: int, mapping: Mapping[int, int], default: int) -> int:
    return mapping.get(value, default)


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix64(value: int) -> int:
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
