"""Hash functions over whole arrays: SipHash-2-4 of strings, CityHash64 and SplitMix64 of numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.ops import record_library

HASH_KEY = b"0123456789123456"
"""Key of the string hash; TensorFlow's strong hash with the same key gives the same fid inside a SavedModel."""

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: multiples of it spread over all numbers of 64 bits, as SplitMix64 uses it."""

_U64 = np.uint64
_K2 = _U64(0x9AE16A3B2F90404F)


def siphash24(strings: pa.Array, key: bytes = HASH_KEY) -> np.ndarray:
    """SipHash-2-4 of the bytes of each string or binary value, uint64 [n]; a null is hashed as an empty one.

    Standard SipHash (Aumasson and Bernstein, 2012), equal to `tf.strings.to_hash_bucket_strong` before its modulus.
    """
    offsets, data = bytes_of(strings)
    return record_library.siphash24(offsets, data, key)


def bytes_of(strings: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(int64 offsets [n + 1] into the bytes, uint8 bytes) of a string or binary array; a null is empty."""
    plain = pc.fill_null(strings.cast(pa.large_binary()), b"")
    _, offset_buffer, data_buffer = plain.buffers()
    if not len(plain) or offset_buffer is None:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int64, len(plain) + 1, plain.offset * 8)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return offsets, data


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) of each number, uint64 [n].

    A bijection of uint64 in which every input bit changes about half of the output bits.
    """
    mixed = values.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


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
