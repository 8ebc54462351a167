"""qtz8mm embeddings, written and read."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from millrace.transforms.steps.features.embedding_compression import compress_qtz8mm, decompress_qtz8mm
from tests.conformance.covers import covers
from tests.reference import embedding_compression as reference

_VECTOR = [1.1, 0.1, 3.1, 5.1, 2.2, 3.3, 4.3]
_matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 9)),
    elements=st.one_of(st.floats(-10, 10, width=32), st.sampled_from([0.0, 65504.0, -1e30, float("inf")])),
).map(lambda matrix: matrix + 0.0)  # one kind of zero


@covers("data:v36")
def test_numbers_take_one_byte_each() -> None:
    value = compress_qtz8mm(np.array([_VECTOR], np.float32))[0].as_py()
    assert value[:6] == b"UE_QTZ"
    assert list(value[10:]) == [51, 0, 153, 255, 107, 163, 214]
    decoded, good = decompress_qtz8mm(pa.array([value]), 7)
    assert good.all()
    assert decoded[0] == pytest.approx(_VECTOR, abs=1e-2)


@given(_matrices)
def test_bytes_equal_the_reference(matrix: np.ndarray) -> None:
    assert compress_qtz8mm(matrix).to_pylist() == [reference.compress(row) for row in matrix.tolist()]


@given(_matrices, st.integers(0, 2))
def test_what_was_written_is_read_within_a_step(matrix: np.ndarray, start: int) -> None:
    decoded, good = decompress_qtz8mm(compress_qtz8mm(matrix).slice(start), matrix.shape[1])
    assert good.all()
    wanted = np.clip(matrix[start:], -65504, 65504)
    steps = (wanted.max(axis=1) - wanted.min(axis=1)) / 255 if len(wanted) else np.zeros(0)
    slack = steps + 2e-3 * np.abs(wanted).max(axis=1, initial=0) + 1e-6
    assert (np.abs(decoded - wanted) <= slack[:, None]).all()


_values = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.binary(min_size=12, max_size=12).map(lambda body: b"UE_QTZ" + body),
    st.binary(min_size=8, max_size=8).map(lambda body: b"UE_QTZ" + body),
    st.lists(st.floats(-5, 5, width=16), min_size=8, max_size=8).map(reference.compress),
)


@given(st.lists(_values, max_size=8), st.sampled_from([4, 8]), st.integers(0, 3))
def test_any_bytes_are_read_as_the_reference_reads_them(values: list[bytes | None], dim: int, start: int) -> None:
    decoded, good = decompress_qtz8mm(pa.array(values, pa.binary()).slice(start), dim)
    expected = [reference.decompress(value, dim) for value in values[start:]]
    assert good.tolist() == [row is not None for row in expected]
    for row, wanted in zip(decoded.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted or [0.0] * dim, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 16])
def test_equal_numbers_come_back(dim: int) -> None:
    decoded, good = decompress_qtz8mm(compress_qtz8mm(np.full((2, dim), 0.5, np.float32)), dim)
    assert good.all()
    assert (decoded == 0.5).all()


def test_bytes_that_name_no_range_are_wrong() -> None:
    for low, high in ((float("nan"), 1.0), (1.0, float("nan")), (2.0, 1.0)):
        value = b"UE_QTZ" + struct.pack("<2e", low, high) + bytes(5)
        assert decompress_qtz8mm(pa.array([value]), 5)[1].tolist() == [False]


def test_infinite_ends_are_read_as_the_largest_number() -> None:
    value = b"UE_QTZ" + struct.pack("<2e", float("-inf"), float("inf")) + bytes([0, 255, 0, 255, 0])
    decoded, _ = decompress_qtz8mm(pa.array([value]), 5)
    assert decoded.tolist() == [[-65504.0, 65504.0, -65504.0, 65504.0, -65504.0]]


def test_nan_is_not_compressed() -> None:
    with pytest.raises(ValueError, match="NaN"):
        compress_qtz8mm(np.array([[np.nan]], np.float32))
