"""Bit layouts and the string hash."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch import fid
from millrace.transforms.batch.hashes import HASH_KEY, siphash24
from tests.conformance.covers import covers
from tests.reference import siphash_reference

_KEY = HASH_KEY


def test_the_reference_agrees_with_the_vector_of_the_paper() -> None:
    assert siphash_reference.siphash24(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(("text", "signature"), [("phone", 217698066003495), ("", 44388162315296)])
def test_strings_hash_as_tensorflow_hashes_them(text: str, signature: int) -> None:
    assert fid.hash_strings(pa.array([text])).tolist() == [signature]


@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=30), st.integers(0, 5))
def test_hashes_equal_the_reference(texts: list[str | None], start: int) -> None:
    strings = pa.array(texts, pa.string()).slice(start)
    expected = [siphash_reference.siphash24((text or "").encode(), _KEY) for text in texts[start:]]
    assert siphash24(strings).tolist() == expected
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


@covers("data:v1")
def test_fids_have_the_bits_of_both_layouts() -> None:
    assert fid.fid_v1(1, 100).tolist() == 18014398509482084
    assert fid.fid_v2(1, 100).tolist() == fid.v1_to_v2(fid.fid_v1(1, 100)).tolist() == 281474976710756


@covers("data:v2")
def test_signatures_are_cut_to_their_bits() -> None:
    cut = fid.fid_v1(1023, 1 << 54)
    assert (fid.slot_v1(cut).tolist(), int(cut) & fid.SIGNATURE_MASK_V1) == (1023, 0)
    assert fid.v1_to_v2(cut).tolist() == fid.fid_v2(1023, 0).tolist()
    assert fid.fid_v2(32767, 1 << 48).tolist() == 32767 << 48


@covers("data:v3")
def test_a_known_fid_comes_apart_and_converts() -> None:
    known = np.array([290956192322012601])
    assert (fid.slot_v1(known).tolist(), int(known[0]) & fid.SIGNATURE_MASK_V1) == ([16], 2725816170300857)
    assert fid.v1_to_v2(known).tolist() == [4696141007275449]


@covers("data:v4")
def test_conversion_loses_six_bits() -> None:
    rich = fid.fid_v1(5, (3 << 50) | 7)
    assert rich.tolist() == 93449692267937799
    assert fid.v1_to_v2(rich).tolist() == fid.fid_v2(5, 7).tolist() == 1407374883553287


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=10))
def test_unsigned_numbers_travel_as_signed_ones_with_their_bits(numbers: list[int]) -> None:
    fids = fid.from_unsigned(numbers)
    assert fids.tolist() == [number - (1 << 64) if number >> 63 else number for number in numbers]
    assert fids.view(np.uint64).tolist() == numbers


def test_numbers_of_more_than_64_bits_are_no_fids() -> None:
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            fid.from_unsigned([number])


def test_the_legacy_mask_lets_an_odd_slot_through() -> None:
    assert fid.slot_v2(fid.fid_v2(306, fid.fid_v2(305, 9), legacy_mask=True)).tolist() == 307
    assert fid.slot_v1(fid.fid_v1(306, fid.fid_v1(305, 9), legacy_mask=True)).tolist() == 307
    assert fid.fid_v2(306, fid.fid_v2(305, 9)).tolist() == fid.fid_v2(306, 9).tolist()


@covers("data:v2")
def test_wrong_slots_and_reserved_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="slot 1024"):
        fid.fid_v1(1024, 1)
    with pytest.raises(ValueError, match="slot 32768"):
        fid.fid_v2(32768, 1)
    with pytest.raises(ValueError, match="bit 63"):
        fid.check_v2(np.array([1, -1]))


def test_audit_fids_are_unique_a_row() -> None:
    partition, offset, row = (part.ravel() for part in np.mgrid[0:4, 0:50, 0:16384:41])
    fids = fid.audit_fid(partition, offset, row)
    assert len(np.unique(fids)) == len(fids)
    assert set(fid.slot_v2(fids).tolist()) == {fid.AUDIT_SLOT}
    assert fid.audit_fid(3, 5, 7).tolist() == (32767 << 48) | (3 << 42) | (5 << 14) | 7
