"""Bit layouts and the string hash."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.siphash_reference import siphash24
from transforms import fid

_KEY = fid.HASH_KEY


def test_the_reference_agrees_with_the_vector_of_the_paper() -> None:
    assert siphash24(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(("text", "signature"), [("phone", 217698066003495), ("", 44388162315296)])
def test_strings_hash_as_tensorflow_hashes_them(text: str, signature: int) -> None:
    assert fid.hash_strings(pa.array([text])).tolist() == [signature]


@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=30), st.integers(0, 5))
def test_hashes_equal_the_reference(texts: list[str | None], start: int) -> None:
    strings = pa.array(texts, pa.string()).slice(start)
    expected = [siphash24((text or "").encode(), _KEY) for text in texts[start:]]
    assert fid.siphash24(strings).tolist() == expected
    signatures = [0 if text is None else value % (1 << 48) for text, value in zip(texts[start:], expected, strict=True)]
    assert fid.hash_strings(strings).tolist() == signatures
    assert fid.hash_strings(strings.dictionary_encode()).tolist() == signatures


@given(st.integers(0, 32767), st.integers(0, (1 << 63) - 1))
def test_v2_keeps_slot_and_48_bits(slot: int, signature: int) -> None:
    made = fid.fid_v2(slot, np.array([signature]))
    assert made.tolist() == [(slot << 48) | (signature & ((1 << 48) - 1))]
    assert fid.slot_v2(made).tolist() == [slot]
    fid.check_v2(made)


@given(st.integers(0, 1023), st.integers(0, (1 << 63) - 1))
def test_v1_converts_to_v2_by_dropping_six_bits(slot: int, signature: int) -> None:
    made = fid.fid_v1(slot, np.array([signature]))
    assert int(made[0]) & ((1 << 64) - 1) == (slot << 54) | (signature & ((1 << 54) - 1))
    assert fid.slot_v1(made).tolist() == [slot]
    assert fid.v1_to_v2(made).tolist() == [(slot << 48) | (signature & ((1 << 48) - 1))]


def test_wrong_slots_and_reserved_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="slot 1024"):
        fid.fid_v1(1024, 1)
    with pytest.raises(ValueError, match="slot 32768"):
        fid.fid_v2(32768, 1)
    with pytest.raises(ValueError, match="bit 63"):
        fid.check_v2(np.array([1, -1]))


def test_audit_fids_are_unique_a_row() -> None:
    partition, offset, row = (part.ravel() for part in np.mgrid[0:4, 0:50, 0:64])
    fids = fid.audit_fid(partition, offset, row)
    assert len(np.unique(fids)) == len(fids)
    assert set(fid.slot_v2(fids).tolist()) == {fid.AUDIT_SLOT}
    assert fid.audit_fid(3, 5, 7).tolist() == (32767 << 48) | (3 << 40) | (5 << 6) | 7
