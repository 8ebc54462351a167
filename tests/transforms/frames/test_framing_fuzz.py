"""A slice of what `tests/fuzz/fuzz_framing.py` runs at length."""

import pyarrow as pa

from millrace.transforms.frames.framing import TF_RECORDS, join_frames, split_frames
from tests.fuzz.fuzz_framing import fuzz, is_size_behind_cut


def test_damaged_streams_lose_no_more_than_their_damaged_records() -> None:
    runs = 3000
    assert runs // 4 < fuzz(runs, seed=1) < runs


def test_a_cut_behind_the_header_of_eight_bytes_makes_a_record_of_the_next_size() -> None:
    """Its checksums fit, so no reader can tell; that was seed 965112."""
    values, size = [b"12345678", b"x"], (1).to_bytes(8, "little")
    whole = join_frames(pa.array(values, pa.binary()), TF_RECORDS).to_pybytes()
    cut = whole[:12] + whole[24:]
    frames = split_frames(cut, TF_RECORDS)
    assert [cut[start : start + 8] for start in frames.starts] == [size]
    assert is_size_behind_cut(size, values, cut)
    assert not is_size_behind_cut(size, values, whole), "the damage does not make it"
    assert not is_size_behind_cut(b"87654321", values, cut), "no size"
    assert fuzz(1, seed=965112) == 1
