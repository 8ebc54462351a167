"""Frames in buffers and Kafka values: every header, the bytes of the vectors, damage of each kind."""

import itertools

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.runtime.errors import UserError
from millrace.transforms.batch.data_source import (
    check_names,
    data_source_key,
    header_bytes,
    java_hash,
)
from millrace.transforms.batch.dead_letter import Reason
from millrace.transforms.batch.provenance import ROWS_PER_RECORD
from millrace.transforms.batch.raw_block import raw_topic
from millrace.transforms.frames.framing import (
    KAFKA_FRAMES,
    LINES,
    TF_RECORDS,
    FrameOptions,
    deframe,
    find_frame,
    join_frames,
    payloads,
    split_frames,
)
from tests.conformance.covers import covers
from tests.reference.file_batches import events_block
from tests.reference.framing import read_frames, write_frame

ALL_OPTIONS = [FrameOptions(*flags) for flags in itertools.product((False, True), repeat=4)]
WRITTEN = [
    options
    for options in ALL_OPTIONS
    if options.lagrangex_header or not options.kafka_dump or (options.has_sort_id and not options.kafka_dump_prefix)
]
U1 = bytes.fromhex("02000000000000007531")
ABC = bytes.fromhex("0300000000000000616263")


def read(data: bytes, options: FrameOptions) -> list[bytes]:
    frames = split_frames(data, options)
    assert frames.error is None and frames.end == len(data)
    return payloads(data, frames.starts, frames.lengths).to_pylist()


@covers("data:v6")
@pytest.mark.parametrize(
    ("name", "hashed", "key", "header"),
    [
        ("datasource_inst", -1487072768, 1561460736, "0000125d00000000"),
        ("pc", 3571, 914176, "00f30d0000000000"),
        ("mobile", -1068855134, 1250992640, "00a2904a00000000"),
        ("cloud", 94756405, 2782803200, "0035dea500000000"),
        ("", 0, 0, "0000000000000000"),
    ],
)
def test_a_data_source_is_known_by_its_hash(name: str, hashed: int, key: int, header: str) -> None:
    assert java_hash(name) == hashed
    assert data_source_key(name) == key
    assert header_bytes(name).hex() == header
    frame = join_frames(pa.array([b"abc"], pa.binary()), FrameOptions(lagrangex_header=True), name).to_pybytes()
    assert split_frames(frame, FrameOptions(lagrangex_header=True)).data_source_keys.tolist() == [key]


def test_two_names_of_one_key_are_refused() -> None:
    with pytest.raises(UserError, match="same key as 'Aa'"):
        check_names(("Aa", "BB"))


@covers("data:v7")
@pytest.mark.parametrize(
    ("data", "options"),
    [
        (ABC, FrameOptions()),
        (U1 + ABC, FrameOptions(has_sort_id=True)),
        (bytes(16) + ABC, FrameOptions(has_sort_id=True, kafka_dump=True)),
        (bytes(24) + ABC, FrameOptions(has_sort_id=True, kafka_dump_prefix=True)),
        (U1 + ABC, FrameOptions(has_sort_id=True, kafka_dump_prefix=True)),
    ],
)
def test_the_bytes_of_a_frame_are_read(data: bytes, options: FrameOptions) -> None:
    assert read(data, options) == [b"abc"]
    assert read(data * 3, options) == [b"abc"] * 3


@covers("data:v7")
def test_a_kafka_value_of_two_frames_gives_two_rows_of_one_record() -> None:
    rows, dead = deframe(events_block([ABC * 2], first_offset=9), KAFKA_FRAMES)
    assert [(row["value"], row["offset"], row["row"]) for row in rows.to_pylist()] == [(b"abc", 9, 0), (b"abc", 9, 1)]
    assert dead.num_rows == 0


@covers("task:v38")
@pytest.mark.parametrize(
    ("sort_id", "kafka_dump", "prefix", "size"),
    [(True, False, False, 8), (True, True, False, 16), (True, False, True, 24), (False, False, False, 0)],
)
def test_headers_are_written_as_zeros(sort_id: bool, kafka_dump: bool, prefix: bool, size: int) -> None:
    options = FrameOptions(has_sort_id=sort_id, kafka_dump=kafka_dump, kafka_dump_prefix=prefix)
    assert options.header() == bytes(size)


@covers("task:v38")
@pytest.mark.parametrize(("sort_id", "prefix"), [(True, True), (False, False)])
def test_kafka_dumps_that_no_writer_makes_are_refused(sort_id: bool, prefix: bool) -> None:
    options = FrameOptions(has_sort_id=sort_id, kafka_dump=True, kafka_dump_prefix=prefix)
    with pytest.raises(UserError, match=r"frames=kafka-dump: .*give sort-id,kafka-dump"):
        join_frames(pa.array([b"abc"], pa.binary()), options)


@covers("data:v7")
@pytest.mark.parametrize("options", WRITTEN, ids=lambda options: f"flags{options.flags()}")
def test_what_is_written_is_read_again(options: FrameOptions) -> None:
    values = [bytes(range(65, 65 + length)) for length in range(16)]
    data = join_frames(pa.array(values, pa.binary()), options).to_pybytes()
    assert data == b"".join(write_frame(value, options) for value in values)
    assert read(data, options) == values


@given(st.lists(st.binary(max_size=20), max_size=8), st.sampled_from([TF_RECORDS, *WRITTEN]))
def test_slices_are_written_as_they_are(values: list[bytes], options: FrameOptions) -> None:
    array = pa.array([b"before", *values, b"after"], pa.binary()).slice(1, len(values))
    assert read(join_frames(array, options).to_pybytes(), options) == values


_WORDS = st.sampled_from([0, 1, 2, 3, 5, 8, 0xFEFEFEFE, 40, 2**62, 2**64 - 1]).map(lambda n: n.to_bytes(8, "little"))
_STREAMS = st.lists(st.one_of(_WORDS, st.binary(max_size=9)), max_size=12).map(b"".join)


@given(_STREAMS, st.sampled_from(ALL_OPTIONS))
def test_any_bytes_are_read_as_the_reference_reads_them(data: bytes, options: FrameOptions) -> None:
    found, position, error = [], 0, None
    while position < len(data):
        frames = split_frames(data, options, position, max_record_bytes=16)
        found += payloads(data, frames.starts, frames.lengths).to_pylist()
        if frames.error is Reason.TOO_LARGE:
            position = frames.next
            continue
        error = frames.error
        break
    assert (found, error) == read_frames(data, options, 16)


@given(st.lists(_STREAMS, max_size=6), st.sampled_from(ALL_OPTIONS))
def test_kafka_values_are_read_as_the_reference_reads_them(values: list[bytes], options: FrameOptions) -> None:
    block = events_block([b"before", *values, b"after"]).slice(1, len(values))
    rows, dead = deframe(block, options, max_record_bytes=16)
    expected = [(row, value) for row, data in enumerate(values) for value in read_frames(data, options, 16)[0]]
    assert [(row["offset"] - 1, row["value"]) for row in rows.to_pylist()] == expected
    fatal = [row for row, data in enumerate(values) if read_frames(data, options, 16)[1] is not None]
    passed_over = dead.filter(pa.compute.not_equal(dead.column("reason"), "too_large"))
    assert [offset - 1 for offset in passed_over.column("offset").to_pylist()] == fatal


def test_a_tf_record_is_written_with_masked_checksums() -> None:
    data = join_frames(pa.array([b"abc"], pa.binary()), TF_RECORDS).to_pybytes()
    assert data.hex() == "0300000000000000" + _masked(bytes.fromhex("0300000000000000")) + "616263" + _masked(b"abc")


def _masked(data: bytes) -> str:
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little").hex()


def test_damage_of_a_tf_record_is_told_apart() -> None:
    values = pa.array([b"one", b"two", b"three"], pa.binary())
    data = join_frames(values, TF_RECORDS).to_pybytes()
    second = 19
    for at, error, following in (
        (second, Reason.MALFORMED_FRAME, -1),
        (second + 9, Reason.MALFORMED_FRAME, -1),
        (second + 12, Reason.BAD_CHECKSUM, 38),
        (second + 16, Reason.BAD_CHECKSUM, 38),
    ):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        frames = split_frames(bytes(damaged), TF_RECORDS)
        assert (frames.lengths.tolist(), frames.end, frames.error, frames.next) == ([3], second, error, following)
        assert find_frame(bytes(damaged), TF_RECORDS, second + 1) == (38, True)
    assert split_frames(data[:-1], TF_RECORDS).error is Reason.TRUNCATED
    assert split_frames(data, TF_RECORDS, max_record_bytes=2).error is Reason.TOO_LARGE


def test_a_payload_of_eight_bytes_is_not_taken_for_the_next_header() -> None:
    data = bytearray(join_frames(pa.array([bytes([5] + 7 * [0]), b"next", b"last"], pa.binary()), TF_RECORDS))
    data[0] ^= 1
    assert find_frame(bytes(data), TF_RECORDS, 1) == (24, True)


def test_lines_end_at_line_feeds() -> None:
    data = b"a\n\nbc\n"
    frames = split_frames(data, LINES)
    assert payloads(data, frames.starts, frames.lengths).to_pylist() == [b"a", b"", b"bc"]
    assert join_frames(pa.array([b"a", b"", b"bc"], pa.binary()), LINES).to_pybytes() == data
    assert split_frames(b"ab", LINES).error is Reason.TRUNCATED


def test_a_bad_frame_in_a_value_is_one_dead_letter_and_the_others_stay() -> None:
    large = (50).to_bytes(8, "little") + b"x" * 50
    values = [ABC + large + ABC, ABC[:-1], b"", None, ABC + (0xFEFEFEFE).to_bytes(8, "little") + ABC]
    rows, dead = deframe(events_block(values), KAFKA_FRAMES, max_record_bytes=40)
    assert [(row["offset"], row["row"]) for row in rows.to_pylist()] == [(0, 0), (0, 1), (4, 0)]
    letters = dead.to_pylist()
    assert [(row["offset"], row["reason"], row["detail"]) for row in letters] == [
        (0, "too_large", "byte 11: a frame"),
        (1, "truncated", "byte 0: a frame"),
        (3, "empty_value", "no bytes"),
        (4, "malformed_frame", "byte 11: a frame"),
    ]
    assert [row["value"] for row in letters] == [large, ABC[:-1], b"", values[4][11:]]  # type: ignore[index]


def test_records_beyond_the_64th_of_a_value_are_refused_together() -> None:
    rows, dead = deframe(events_block([ABC * 100, ABC]), KAFKA_FRAMES)
    assert rows.num_rows == ROWS_PER_RECORD + 1
    assert [(row["offset"], row["reason"], len(row["value"])) for row in dead.to_pylist()] == [
        (0, "out_of_range", 36 * len(ABC))
    ]


def test_a_lagrangex_value_keeps_the_key_of_each_record() -> None:
    frames = FrameOptions(lagrangex_header=True)
    value = header_bytes("pc") + ABC + header_bytes("mobile") + ABC
    rows, _ = deframe(events_block([value]), frames)
    assert rows.column("data_source_key").to_pylist() == [data_source_key("pc"), data_source_key("mobile")]


def test_more_frames_than_first_thought_are_all_found() -> None:
    data = (bytes(8)) * 50_000
    frames = split_frames(data, KAFKA_FRAMES)
    assert len(frames.starts) == 50_000 and frames.error is None
    rows, dead = deframe(events_block([bytes(8) * 60] * 1000), KAFKA_FRAMES)
    assert (rows.num_rows, dead.num_rows) == (60_000, 0)


def test_a_block_without_rows_has_no_records() -> None:
    rows, dead = deframe(events_block([]), KAFKA_FRAMES)
    assert rows.num_rows == dead.num_rows == 0
    assert raw_topic(rows) == "events"
