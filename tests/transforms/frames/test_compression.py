"""Compressed streams: round trips, damage, limits."""

import io
import zlib

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from millrace.runtime.errors import UserError
from millrace.transforms.frames import compression
from millrace.transforms.frames.compression import Compression, StreamError, compression_of, read_chunks, write_chunks

KINDS = [Compression.SNAPPY, Compression.ZSTD, Compression.ZLIB, Compression.GZIP]


def compress(data: bytes, kind: Compression) -> bytes:
    file = io.BytesIO()
    write_chunks(file, iter([data]), kind)
    return file.getvalue()


def decompress(data: bytes, kind: Compression, start: int = 0) -> tuple[bytes, StreamError | None]:
    found = b""
    try:
        for chunk in read_chunks(io.BytesIO(data), kind, start):
            found += chunk
    except StreamError as error:
        return found, error
    return found, None


@given(st.binary(max_size=2000), st.sampled_from([Compression.NO, *KINDS]), st.integers(0, 2500))
def test_what_is_compressed_is_read_again_from_any_position(data: bytes, kind: Compression, start: int) -> None:
    assert decompress(compress(data, kind), kind, start) == (data[start:], None)


@pytest.mark.parametrize("kind", KINDS)
def test_several_streams_one_after_the_other_are_one(kind: Compression) -> None:
    parts = [b"one" * 1000, b"", b"two" * 100_000]
    assert decompress(b"".join(compress(part, kind) for part in parts), kind) == (b"".join(parts), None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_ends_early_gives_what_there_was_and_says_so(kind: Compression) -> None:
    data = bytes(range(256)) * 4000
    packed = compress(data, kind)
    found, error = decompress(packed[:-1], kind)
    assert error is not None and error.reason == "truncated"
    assert data.startswith(found) and len(found) > len(data) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_another_kind_are_malformed(kind: Compression) -> None:
    found, error = decompress(b"\x00\x00\x10\x00\x00\x00\x00\x04\xff\xff\xff\xff and more", kind)
    assert found == b"" and error is not None and error.reason == "malformed_frame"


def test_snappy_files_have_hadoop_blocks() -> None:
    chunk = pa.Codec("snappy").compress(b"abc", asbytes=True)
    framed = (3).to_bytes(4, "big") + len(chunk).to_bytes(4, "big") + chunk
    assert compress(b"abc", Compression.SNAPPY) == framed
    two = (6).to_bytes(4, "big") + (len(chunk).to_bytes(4, "big") + chunk) * 2
    assert decompress(two + framed, Compression.SNAPPY) == (b"abcabcabc", None)


def test_a_snappy_chunk_beyond_the_limit_is_refused_before_it_is_read() -> None:
    head = (1 << 31).to_bytes(4, "big") + (1 << 30).to_bytes(4, "big")
    _, error = decompress(head, Compression.SNAPPY)
    assert error is not None and error.reason == "too_large"


def test_a_snappy_chunk_longer_than_its_block_is_malformed() -> None:
    chunk = pa.Codec("snappy").compress(b"abcdef", asbytes=True)
    _, error = decompress((3).to_bytes(4, "big") + len(chunk).to_bytes(4, "big") + chunk, Compression.SNAPPY)
    assert error is not None and error.reason == "malformed_frame"


def test_a_zstandard_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packed.compress(bytes(1 << 20)) + packed.flush()
    _, error = decompress(data, Compression.ZSTD)
    assert error is not None and error.reason == "malformed_frame"


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_comes_in_pieces_of_bounded_size(kind: Compression) -> None:
    packed = compress(bytes(80 << 20), kind)
    sizes = [len(chunk) for chunk in read_chunks(io.BytesIO(packed), kind)]
    assert sum(sizes) == 80 << 20
    assert max(sizes) <= compression.MAX_CHUNK_BYTES


def test_the_kind_is_told_by_the_caller_or_the_name() -> None:
    assert compression_of("a.snappy") == Compression.SNAPPY
    assert compression_of("a.zst") == Compression.ZSTD
    assert compression_of("a.gz") == Compression.GZIP
    assert compression_of("a.gz", Compression.NO) == Compression.NO
    assert compression_of("a") == Compression.NO
    assert compression_of("a", use_snappy=True) == Compression.SNAPPY
    with pytest.raises(UserError, match="GZIP"):
        compression_of("a", Compression.GZIP, use_snappy=True)


def test_zlib_streams_are_those_of_the_standard_library() -> None:
    assert zlib.decompress(compress(b"abc", Compression.ZLIB)) == b"abc"
