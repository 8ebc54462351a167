"""CityHash64 of numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch.hashes import city_hash64
from tests.reference import city_hash as reference


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=20))
def test_hashes_equal_the_reference(values: list[int]) -> None:
    hashes = city_hash64(np.array(values, np.int64))
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [reference.city_hash64(value) for value in values]


def test_signed_and_unsigned_numbers_with_the_same_bits_hash_alike() -> None:
    values = np.array([-1, 5], np.int64)
    assert city_hash64(values).tolist() == city_hash64(values.view(np.uint64)).tolist()
