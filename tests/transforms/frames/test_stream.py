"""Streams cut into blocks: the same records whatever the pieces, damage, and reading on from a position."""

import functools
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.runtime.work_queue import WorkQueue, WorkReader
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.frames.compression import Compression, StreamError, write_chunks
from millrace.transforms.frames.framing import FILE_FRAMES, LINES, TF_RECORDS, Framing, join_frames
from millrace.transforms.frames.stream import FrameStream, StreamPosition, read_file
from tests.conformance.covers import covers

VALUES = [f"value {number}".encode() * (number % 4) for number in range(50)]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def read(
    data: bytes, options: Framing, size: int = 7, **settings: int
) -> tuple[list[tuple[int, bytes]], list[tuple[int, str]]]:
    """([(number, record)], [(number, reason)])."""
    rows, dead = [], []
    for block, letters in FrameStream(iter(pieces(data, size)), options, "t", **settings):
        rows += list(zip(block.column("offset").to_pylist(), block.column("value").to_pylist(), strict=True))
        dead += list(zip(letters.column("offset").to_pylist(), letters.column("reason").to_pylist(), strict=True))
    return rows, dead


@given(
    st.lists(st.binary(max_size=30).filter(lambda value: b"\n" not in value), max_size=20),
    st.sampled_from([FILE_FRAMES, TF_RECORDS, LINES]),
    st.integers(1, 50),
    st.integers(1, 200),
)
@settings(deadline=None)
def test_records_do_not_depend_on_how_the_stream_is_cut(
    values: list[bytes], options: Framing, size: int, block_bytes: int
) -> None:
    data = join_frames(pa.array(values, pa.binary()), options).to_pybytes()
    assert read(data, options, size, block_bytes=block_bytes) == (list(enumerate(values)), [])


@pytest.mark.parametrize("options", [FILE_FRAMES, TF_RECORDS, LINES])
def test_a_stream_goes_on_from_a_saved_position(options: Framing) -> None:
    data = join_frames(pa.array(VALUES, pa.binary()), options).to_pybytes()
    stream = FrameStream(iter(pieces(data, 10)), options, "t", block_bytes=60)
    blocks = iter(stream)
    first, _ = next(blocks)
    position = stream.position
    assert position.record == first.num_rows
    rest = FrameStream(iter([data[position.byte :]]), options, "t", start=position)
    found = [row for block, _ in rest for row in block.to_pylist()]
    assert [row["offset"] for row in found] == list(range(first.num_rows, 50))
    assert [row["value"] for row in found] == VALUES[first.num_rows :]


def test_the_position_behind_a_skipped_record_lies_behind_it() -> None:
    data = join_frames(pa.array([b"a", b"x" * 1000, b"b"], pa.binary()), FILE_FRAMES).to_pybytes()
    stream = FrameStream(iter(pieces(data, 50)), FILE_FRAMES, "t", block_bytes=50, max_record_bytes=100)
    next(iter(stream))
    assert stream.position == StreamPosition(17 + 1016, 2)


@pytest.mark.parametrize("options", [TF_RECORDS, LINES])
def test_a_position_within_a_bad_record_is_that_of_its_beginning(options: Framing) -> None:
    data = bytearray(join_frames(pa.array([b"a", b"x" * 1000, b"b"], pa.binary()), options))
    second = len(join_frames(pa.array([b"a"], pa.binary()), options))
    data[second] ^= 1
    settings = {"block_bytes": 50, "max_record_bytes": 1000 if options == TF_RECORDS else 100}
    stream = FrameStream(iter(pieces(bytes(data), 50)), options, "t", **settings)
    next(iter(stream))
    assert stream.position == StreamPosition(second, 1)
    rest = FrameStream(iter([bytes(data[second:])]), options, "t", start=stream.position, **settings)
    assert [row["value"] for block, _ in rest for row in block.to_pylist()] == [b"b"]


@pytest.mark.parametrize("options", [FILE_FRAMES, TF_RECORDS, LINES])
def test_a_record_that_is_too_large_is_passed_over_in_bounded_memory(options: Framing) -> None:
    values = [b"a", b"x" * 100_000, b"b"]
    data = join_frames(pa.array(values, pa.binary()), options).to_pybytes()
    settings = {"block_bytes": 100, "max_record_bytes": 1000}
    assert read(data, options, 64, **settings) == ([(0, b"a"), (2, b"b")], [(1, "too_large")])


def test_behind_a_bad_header_the_rest_is_lost_and_counted() -> None:
    data = join_frames(pa.array([b"a"], pa.binary()), FILE_FRAMES).to_pybytes()
    bad = bytes(8) + (0xFEFEFEFE).to_bytes(8, "little") + bytes(1_000_000)
    rows, dead = [], []
    for block, letters in FrameStream(iter(pieces(data + bad, 1000)), FILE_FRAMES, "t", block_bytes=100):
        rows += block.to_pylist()
        dead += letters.to_pylist()
    assert len(rows) == 1
    (letter,) = dead
    assert (letter["offset"], letter["reason"], letter["truncated_from"]) == (1, "malformed_frame", len(bad))


def test_a_stream_that_breaks_says_why_once() -> None:
    data = join_frames(pa.array([b"a", b"b"], pa.binary()), FILE_FRAMES).to_pybytes()

    def broken(count: int) -> object:
        yield data[:count]
        raise StreamError(Reason.MALFORMED_FRAME, "the disk is gone", 5)

    for count, rows in ((len(data), 2), (len(data) - 1, 1), (3, 0)):
        found = list(FrameStream(broken(count), FILE_FRAMES, "t", name="file"))  # type: ignore[arg-type]
        assert sum(block.num_rows for block, _ in found) == rows
        (letter,) = [row for _, dead in found for row in dead.to_pylist()]
        assert (letter["reason"], letter["offset"]) == ("malformed_frame", rows)
        assert "the disk is gone" in letter["detail"]


@pytest.mark.parametrize("seed", range(20))
def test_damage_of_tf_records_costs_no_more_than_the_damaged_ones(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.randbytes(draw.randrange(40)) for _ in range(60)]
    ends = []
    data = bytearray()
    for value in values:
        data += join_frames(pa.array([value], pa.binary()), TF_RECORDS).to_pybytes()
        ends.append(len(data))
    hit = sorted(draw.sample(range(1, 59, 2), 6))
    for number in hit:
        data[draw.randrange(ends[number - 1], ends[number])] ^= 1 << draw.randrange(8)
    rows, dead = read(bytes(data), TF_RECORDS, draw.randrange(1, 100), block_bytes=draw.randrange(1, 300))
    assert [value for _, value in rows] == [value for number, value in enumerate(values) if number not in hit]
    assert [number for number, _ in rows] == [number for number in range(60) if number not in hit]
    assert [number for number, _ in dead] == hit


@covers("data:v10")
def test_files_of_a_work_queue_are_read_on_in_mid_file(tmp_path: Path) -> None:
    values = [f"{number:06d}".encode() * 1000 for number in range(2000)]
    for name, part in (("a.zst", values[:1200]), ("b.zst", values[1200:])):
        with open(tmp_path / name, "wb") as file:
            write_chunks(file, iter([join_frames(pa.array(part, pa.binary()), TF_RECORDS)]), Compression.ZSTD)
    read = functools.partial(read_file, options=TF_RECORDS, topic="t")
    queue = WorkQueue([f"{tmp_path}/*"])
    (first, _) = next(iter(WorkReader(queue, read)))
    assert 0 < first.num_rows < 1200
    other = WorkQueue([])
    other.restore(queue.save())
    rest = [block for block, _ in WorkReader(other, read)]
    assert rest[0].column("offset")[0].as_py() == first.num_rows
    found = [value for block in (first, *rest) for value in block.column("value").to_pylist()]
    assert found == values


def test_an_empty_stream_gives_nothing() -> None:
    assert read(b"", FILE_FRAMES) == read(b"", TF_RECORDS) == read(b"", LINES) == ([], [])
