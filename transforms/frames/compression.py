"""Compressed streams, read and written piece by piece with bounded memory; an error names its reason and place.

Snappy files have Hadoop's block framing: each block is its uncompressed length and then chunks, each a length and raw
Snappy data, until that much was produced. Lengths are uint32, big endian. The others are standard streams.
"""

import enum
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import pyarrow as pa
import zstandard

from millrace.runtime.errors import UserError
from millrace.transforms.batch.dead_letter import Reason

MAX_CHUNK_BYTES = 64 << 20
"""Largest Snappy chunk, compressed or not, and largest window of Zstandard; a stream that needs more is refused.

It bounds what a reader holds in memory, and is as much as a record may have (`framing.MAX_RECORD_BYTES`).
"""

_READ_BYTES = 1 << 20
# Zstandard makes at most 128 KiB of 4 bytes of input, so one call on 2 KiB returns at most 64 MiB.
_SLICE_BYTES = 2 << 10
_OUTPUT_BYTES = 256 << 10
_SNAPPY_BLOCK_BYTES = 256 << 10


class Compression(enum.IntEnum):
    """How a file is compressed; the numbers are those of Monolith."""

    UNKNOWN = 0
    NO = 1
    SNAPPY = 2
    ZSTD = 3
    ZLIB = 4
    GZIP = 5


SUFFIXES = {
    ".snappy": Compression.SNAPPY,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".zlib": Compression.ZLIB,
    ".gz": Compression.GZIP,
}


class StreamError(ValueError):
    """A compressed stream that cannot be read any further.

    Args:
      reason: TRUNCATED, TOO_LARGE or MALFORMED_FRAME.
      position: byte of the compressed stream near which it happened.
    """

    def __init__(self, reason: Reason, detail: str, position: int) -> None:
        super().__init__(f"{detail}, near compressed byte {position}")
        self.reason, self.position = reason, position


def compression_named(given: Compression | str, field: str = "compression") -> Compression:
    """The compression of a name, in upper or lower case, as a pipeline in Beam YAML gives it.

    Raises: UserError naming `field` for any other value.
    """
    if isinstance(given, Compression):
        return given
    names = Compression.__members__
    if not isinstance(given, str) or given.upper() not in names:
        raise UserError(field, given, "unknown", f"choose {', '.join(names)}")
    return names[given.upper()]


def compression_of(path: str, given: Compression = Compression.UNKNOWN, use_snappy: bool | None = None) -> Compression:
    """How the file `path` is compressed: as given, else by the suffix of its name, else not at all.

    Args:
      use_snappy: an older setting for SNAPPY.

    Raises: UserError when `use_snappy` contradicts `given`.
    """
    if use_snappy:
        if given not in (Compression.UNKNOWN, Compression.SNAPPY):
            raise UserError("use_snappy", True, f"the compression is {given.name}", "give one of the two")
        return Compression.SNAPPY
    if given != Compression.UNKNOWN:
        return given
    return next((found for suffix, found in SUFFIXES.items() if path.endswith(suffix)), Compression.NO)


def read_chunks(file: BinaryIO, compression: Compression, start: int = 0) -> Iterator[bytes]:
    """The uncompressed stream from byte `start` on, in pieces of at most 64 MiB, mostly far smaller.

    Raises: StreamError, after all that could be decompressed was given.
    """
    if compression in (Compression.NO, Compression.UNKNOWN):
        yield from _plain_chunks(file, start)
        return
    for chunk in _DECODERS[compression](file):
        if start >= len(chunk):
            start -= len(chunk)
        else:
            yield chunk[start:]
            start = 0


def _plain_chunks(file: BinaryIO, start: int) -> Iterator[bytes]:
    if start:
        file.seek(start)
    while chunk := file.read(_READ_BYTES):
        yield chunk


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes


def _zlib_chunks(file: BinaryIO, window_bits: int) -> Iterator[bytes]:
    """The content of concatenated zlib or gzip streams."""
    stream, position, data = zlib.decompressobj(window_bits), 0, b""
    begun = False
    while data or (data := file.read(_READ_BYTES)):
        before = len(data)
        try:
            chunk = stream.decompress(data, _OUTPUT_BYTES)
        except zlib.error as error:
            raise StreamError(Reason.MALFORMED_FRAME, str(error), position) from error
        begun = True
        data = stream.unused_data if stream.eof else stream.unconsumed_tail
        position += before - len(data)
        if chunk:
            yield chunk
        if stream.eof:
            stream, begun = zlib.decompressobj(window_bits), False
    while begun and (chunk := stream.decompress(stream.unconsumed_tail, _OUTPUT_BYTES)):
        yield chunk
    if begun and not stream.eof:
        raise StreamError(Reason.TRUNCATED, "the compressed stream ends early", position)


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    """The content of concatenated Zstandard frames."""
    context = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK_BYTES)
    stream, position, begun = context.decompressobj(), 0, False
    while block := file.read(_READ_BYTES):
        for at in range(0, len(block), _SLICE_BYTES):
            data = block[at : at + _SLICE_BYTES]
            while data:
                begun = True
                try:
                    chunk = stream.decompress(data)
                except zstandard.ZstdError as error:
                    raise StreamError(Reason.MALFORMED_FRAME, str(error), position) from error
                position += len(data)
                data = b""
                if stream.eof:
                    data = stream.unused_data
                    position -= len(data)
                    stream, begun = context.decompressobj(), False
                if chunk:
                    yield chunk
    if begun:
        raise StreamError(Reason.TRUNCATED, "the compressed stream ends early", position)


def _snappy_chunks(file: BinaryIO) -> Iterator[bytes]:
    codec, position = pa.Codec("snappy"), 0

    def read(count: int, at_start: bool = False) -> bytes:
        nonlocal position
        data = file.read(count)
        position += len(data)
        if len(data) == count or (at_start and not data):
            return data
        raise StreamError(Reason.TRUNCATED, "the compressed stream ends early", position)

    while head := read(4, at_start=True):
        left = int.from_bytes(head, "big")
        while left:
            size = int.from_bytes(read(4), "big")
            if size > MAX_CHUNK_BYTES:
                raise StreamError(Reason.TOO_LARGE, f"a Snappy chunk of {size} bytes", position)
            data = read(size)
            length = snappy_length(data)
            if length > min(left, MAX_CHUNK_BYTES) or not length:
                raise StreamError(
                    Reason.MALFORMED_FRAME, f"a Snappy chunk of {length} bytes in a block of {left}", position
                )
            try:
                yield codec.decompress(data, length, asbytes=True)
            except (pa.ArrowException, OSError) as error:
                raise StreamError(Reason.MALFORMED_FRAME, str(error), position) from error
            left -= length


def snappy_length(data: bytes) -> int:
    """The uncompressed length that stands at the beginning of a raw Snappy chunk; 0 when there is none."""
    value = 0
    for index, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value
    return 0


_DECODERS: dict[Compression, Callable[[BinaryIO], Iterator[bytes]]] = {
    Compression.SNAPPY: _snappy_chunks,
    Compression.ZSTD: _zstd_chunks,
    Compression.ZLIB: lambda file: _zlib_chunks(file, zlib.MAX_WBITS),
    Compression.GZIP: lambda file: _zlib_chunks(file, 16 + zlib.MAX_WBITS),
}


def write_chunks(file: BinaryIO, chunks: Iterator[bytes | pa.Buffer], compression: Compression) -> None:
    """Writes the concatenation of `chunks`, compressed; the same chunks always give the same bytes."""
    if compression in (Compression.NO, Compression.UNKNOWN):
        for chunk in chunks:
            file.write(chunk)
    elif compression == Compression.SNAPPY:
        codec = pa.Codec("snappy")
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _SNAPPY_BLOCK_BYTES):
                _write_snappy_block(file, view[start : start + _SNAPPY_BLOCK_BYTES], codec)
    else:
        stream = _COMPRESSORS[compression]()
        for chunk in chunks:
            file.write(stream.compress(chunk))
        file.write(stream.flush())


def _write_snappy_block(file: BinaryIO, data: memoryview, codec: pa.Codec) -> None:
    compressed = codec.compress(data, asbytes=True)
    file.write(len(data).to_bytes(4, "big") + len(compressed).to_bytes(4, "big") + compressed)


class _Compressor(Protocol):
    def compress(self, data: bytes | pa.Buffer) -> bytes: ...

    def flush(self) -> bytes: ...


_COMPRESSORS: dict[Compression, Callable[[], _Compressor]] = {
    Compression.ZSTD: lambda: zstandard.ZstdCompressor(write_checksum=True).compressobj(),
    Compression.ZLIB: zlib.compressobj,
    Compression.GZIP: lambda: zlib.compressobj(wbits=16 + zlib.MAX_WBITS),
}
