"""CityHash64 of numbers, vectorised."""

import numpy as np

_U64 = np.uint64
_K2 = _U64(0x9AE16A3B2F90404F)


def city_hash64(values: np.ndarray) -> np.ndarray:
    """CityHash64 of the 8 little-endian bytes of each value, uint64 [n].

    The case of 8 bytes of CityHash 1.1 (Pike and Alakuijala, 2011; github.com/google/cityhash, HashLen0to16).

    Args:
      values: int64 or uint64 [n].
    """
    word = np.asarray(values).astype(_U64)
    multiplier = _K2 + _U64(16)
    shifted = word + _K2
    low = _rotate_right(word, 37) * multiplier + shifted
    high = (_rotate_right(shifted, 25) + word) * multiplier
    mixed = (low ^ high) * multiplier
    mixed ^= mixed >> _U64(47)
    mixed = (high ^ mixed) * multiplier
    mixed ^= mixed >> _U64(47)
    return mixed * multiplier


def _rotate_right(value: np.ndarray, bits: int) -> np.ndarray:
    return (value >> _U64(bits)) | (value << _U64(64 - bits))
