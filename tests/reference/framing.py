"""Frames read and written one by one, as the specification tells it."""

import io

from millrace.transforms.frames.framing import FrameOptions


class BadFrameError(ValueError):
    """Args: name of the reason."""


def write_frame(payload: bytes, options: FrameOptions) -> bytes:
    """One frame as the writer makes it."""
    out = b""
    if options.lagrangex_header:
        out += bytes(8)
    else:
        out += bytes(16) if options.kafka_dump_prefix else b""
        out += bytes(8) if options.has_sort_id else b""
        out += bytes(8) if options.kafka_dump else b""
    return out + len(payload).to_bytes(8, "little") + payload


def read_frames(data: bytes, options: FrameOptions, max_bytes: int) -> tuple[list[bytes], str | None]:
    """(payloads up to the first bad frame that cannot be passed, its reason); too large ones are left out."""
    stream, payloads = io.BytesIO(data), []
    while stream.tell() < len(data):
        try:
            size = _read_header(stream, options, max_bytes)
            if size == 0xFEFEFEFE or size >= 1 << 62:
                return payloads, "malformed_frame"
            if size > max_bytes:
                stream.seek(size, io.SEEK_CUR)
                continue
            payload = stream.read(size)
            if len(payload) < size:
                return payloads, "truncated"
            payloads.append(payload)
        except BadFrameError as error:
            return payloads, str(error)
    return payloads, None


def _read_header(stream: io.BytesIO, options: FrameOptions, max_bytes: int) -> int:
    if options.lagrangex_header:
        _word(stream)
        return _word(stream)
    aggregate = 0
    if options.kafka_dump_prefix:
        aggregate = _word(stream)
        if aggregate == 0:
            _word(stream)
    if options.has_sort_id:
        length = aggregate or _word(stream)
        if length > max_bytes:
            raise BadFrameError("malformed_frame")
        if len(stream.read(length)) < length:
            raise BadFrameError("truncated")
    if options.kafka_dump:
        _word(stream)
    return _word(stream)


def _word(stream: io.BytesIO) -> int:
    data = stream.read(8)
    if len(data) < 8:
        raise BadFrameError("truncated")
    return int.from_bytes(data, "little")
