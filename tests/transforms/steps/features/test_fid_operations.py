"""Operations on columns of fids, against Python's integers."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batch import fid
from millrace.transforms.steps.features.fid_operations import (
    MAX_COMBINATIONS,
    combine_features,
    combine_fids,
    convert_fids,
    extract_fids,
    fid_mask,
    high_product,
    map_ids,
    switch_slot,
)
from tests.conformance.covers import covers
from tests.reference import sparse_features as reference

_FIDS = pa.list_(pa.int64())
_number = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-3, 3))
_row = st.one_of(st.none(), st.lists(_number, max_size=4))
_rows = st.lists(_row, max_size=8)
_start = st.integers(0, 3)


@covers("data:v5")
def test_integers_become_fids_of_their_slot() -> None:
    column = pa.array([[185], [0, 1, 2]], _FIDS)
    expected = [[1153447759131936], [1260191747863172, 1382136317434465, 1159178244145801]]
    assert extract_fids(column, 4).to_pylist() == expected
    legacy = extract_fids(column, 4, legacy_mask=True).to_pylist()
    assert legacy[1] == [1541666724573828, 1663611294145121, 1440653220856457]
    assert fid.slot_v2(np.array(legacy[1])).tolist() == [5, 5, 5]


@covers("data:v36")
def test_a_mask_says_which_rows_have_the_fid() -> None:
    assert fid_mask(pa.array([[1, 2, 3], [3], [], [4, 5, 6]], _FIDS), 3).tolist() == [1.0, 1.0, 0.0, 0.0]


@covers("data:v36")
def test_ids_are_looked_up_one_by_one() -> None:
    mapping = {123: 0, 456: 1, 789: 2}
    assert map_ids(pa.array([123, 456, 789, 912]), mapping).to_pylist() == [0, 1, 2, -1]
    assert map_ids(pa.array([123, None, 912], pa.int32()), mapping, 7).to_pylist() == [0, None, 7]


@covers("data:v36")
def test_the_product_of_two_fids_is_that_of_older_models() -> None:
    first, second = (pa.array([fid.fid_v2(slot, np.array([signature]))]) for slot, signature in ((1, 7), (2, 9)))
    fids, _ = combine_features(first, second, 505, legacy_product=True)
    assert fids.to_pylist() == [[142144871828815935]]


@given(_rows, st.integers(0, 32767), st.booleans(), st.booleans(), _start)
def test_switched_slots_equal_the_reference(
    rows: list[Any], slot: int, v1: bool, legacy_mask: bool, start: int
) -> None:
    slot = slot % 1024 if v1 else slot
    expected = [row and [reference.switch_slot(value, slot, v1, legacy_mask) for value in row] for row in rows[start:]]
    assert switch_slot(pa.array(rows, _FIDS).slice(start), slot, v1, legacy_mask).to_pylist() == expected


@given(st.lists(st.one_of(st.none(), st.lists(_row, max_size=3)), max_size=5), _start)
def test_lists_of_lists_keep_their_shape(rows: list[Any], start: int) -> None:
    column = pa.array(rows, pa.list_(_FIDS)).slice(start)
    expected = [
        row and [inner and [reference.switch_slot(value, 7, False, False) for value in inner] for inner in row]
        for row in rows[start:]
    ]
    assert switch_slot(column, 7).to_pylist() == expected


@given(_rows, _start)
def test_converted_fids_equal_the_scalar_rule(rows: list[Any], start: int) -> None:
    expected = [
        row and [((value % (1 << 64)) >> 54) << 48 | value & ((1 << 48) - 1) for value in row] for row in rows[start:]
    ]
    assert convert_fids(pa.array(rows, _FIDS).slice(start)).to_pylist() == expected


@given(_rows, st.booleans(), _start)
def test_extracted_fids_equal_the_reference(rows: list[Any], legacy_mask: bool, start: int) -> None:
    expected = [row and [reference.extract_fid(value, 12, legacy_mask) for value in row] for row in rows[start:]]
    assert extract_fids(pa.array(rows, _FIDS).slice(start), 12, legacy_mask).to_pylist() == expected


@given(st.lists(st.one_of(st.none(), _number), max_size=8), _start)
def test_plain_integers_give_one_fid_a_row(values: list[Any], start: int) -> None:
    expected = [None if value is None else [reference.extract_fid(value, 12, False)] for value in values[start:]]
    assert extract_fids(pa.array(values, pa.int64()).slice(start), 12).to_pylist() == expected


@given(_rows, st.dictionaries(st.integers(-3, 3), _number, min_size=1, max_size=5), _number, _start)
def test_mapped_ids_equal_a_dictionary(rows: list[Any], mapping: dict[int, int], default: int, start: int) -> None:
    expected = [row and [reference.map_id(value, mapping, default) for value in row] for row in rows[start:]]
    assert map_ids(pa.array(rows, _FIDS).slice(start), mapping, default).to_pylist() == expected


@given(_rows, st.integers(0, 3), _start)
def test_masks_equal_membership(rows: list[Any], wanted: int, start: int) -> None:
    expected = [float(wanted in (row or [])) for row in rows[start:]]
    assert fid_mask(pa.array(rows, _FIDS).slice(start), wanted).tolist() == expected


@given(st.lists(st.tuples(_row, _row), max_size=6), st.booleans(), st.booleans(), _start)
def test_combinations_equal_the_reference(rows: list[Any], legacy_product: bool, legacy_mask: bool, start: int) -> None:
    first, second = (pa.array([row[at] for row in rows], _FIDS).slice(start) for at in (0, 1))
    fids, too_many = combine_features(first, second, 9, legacy_product, legacy_mask)
    expected = [reference.combine(a, b, 9, legacy_product, legacy_mask) for a, b in rows[start:]]
    assert fids.to_pylist() == expected
    assert not too_many.any()


@given(st.lists(st.tuples(_number, _number), max_size=20))
def test_the_upper_half_of_a_product_is_exact(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array([pair[at] for pair in pairs], np.int64) for at in (0, 1))
    assert high_product(first, second).view(np.int64).tolist() == [(a * b) >> 64 for a, b in pairs]


def test_combined_fids_spread_and_know_their_order() -> None:
    first, second = np.divmod(np.arange(100_000), 400)
    fids = combine_fids(first, second, 3)
    assert len(np.unique(fids)) == 100_000
    assert np.bincount(fids % 16).max() < 6250 + 4 * 80
    assert combine_fids(np.array([1]), np.array([2]), 3) != combine_fids(np.array([2]), np.array([1]), 3)


def test_rows_of_too_many_pairs_have_no_combination() -> None:
    wide = [list(range(MAX_COMBINATIONS + 1)), [1]]
    fids, too_many = combine_features(pa.array(wide, _FIDS), pa.array([[1], [2]], _FIDS), 3)
    assert fids.is_null().to_pylist() == too_many.tolist() == [True, False]
    assert len(fids[1]) == 1
