"""Ranges of a bounded read, without a broker."""

from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.kafka.ranges import cut_ranges


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_ranges_cover_every_offset_once(first: int, count: int, size: int) -> None:
    ranges = list(cut_ranges({("t", 0): first}, {("t", 0): first + count}, size))
    assert [offset for each in ranges for offset in range(each.start, each.end)] == list(range(first, first + count))
    assert all(each.end - each.start <= size for each in ranges)
