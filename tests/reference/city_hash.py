"""CityHash64 1.1 of one number's 8 bytes, in Python's integers."""

_MASK = (1 << 64) - 1
_K2 = 0x9AE16A3B2F90404F


def city_hash64(value: int) -> int:
    word = value & _MASK
    multiplier = _K2 + 2 * 8
    a = (word + _K2) & _MASK
    c = (_rotate(word, 37) * multiplier + a) & _MASK
    d = ((_rotate(a, 25) + word) * multiplier) & _MASK
    first = ((c ^ d) * multiplier) & _MASK
    first ^= first >> 47
    second = ((d ^ first) * multiplier) & _MASK
    second ^= second >> 47
    return (second * multiplier) & _MASK


def _rotate(value: int, bits: int) -> int:
    return (value >> bits | value << (64 - bits)) & _MASK
