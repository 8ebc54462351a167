"""Cuts a stream of frames into raw blocks of bounded size, each with the dead letters of the same bytes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import MAX_VALUE_BYTES, SCHEMA, Reason
from millrace.transforms.batch.raw_block import raw_block, raw_schema
from millrace.transforms.frames.compression import Compression, StreamError, compression_of, read_chunks
from millrace.transforms.frames.framing import (
    LINES,
    MAX_RECORD_BYTES,
    RECORD_SOURCE_KEY,
    TF_RECORDS,
    FrameOptions,
    Framing,
    find_frame,
    payloads,
    split_frames,
)

BLOCK_BYTES = 4 << 20
"""Bytes of a raw block: large enough that numpy's cost per block does not count, small enough to hold several."""

_TF_HEADER_BYTES = 12  # uint64 length, uint32 checksum


_KEY_FIELD = pa.field(RECORD_SOURCE_KEY, pa.uint32())


class StreamPosition(NamedTuple):
    """Where reading goes on: byte of the uncompressed stream, and number of the record there."""

    byte: int = 0
    record: int = 0


BEGINNING = StreamPosition()


class FrameStream:
    """Iterates over (raw block, dead letters) of one stream; the offset of a record is its number in the stream.

    Memory is bounded by `block_bytes` and the longest record. A bad frame is one dead letter with its number and byte.
    After a record that is too large, or whose checksum is wrong, reading goes on with the next one; after a TFRecord
    whose length is wrong, with the next one whose length is right. After any other bad header the rest of the stream
    is lost, and the dead letter says how many bytes that is. The last line of a text needs no line feed.

    Args:
      chunks: the uncompressed stream from `start` on (`compression.read_chunks`).
      options: how records are framed.
      topic: topic of the raw blocks.
      partition: partition of the raw blocks, which is the number of the file.
      name: name of the stream, for the dead letters.
      start: where reading begins; `chunks` must begin there too.
      block_bytes: bytes of the stream that make up a block.
      max_record_bytes: longest record that is read.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        options: Framing,
        topic: str,
        partition: int = 0,
        name: str = "",
        start: StreamPosition = BEGINNING,
        block_bytes: int = BLOCK_BYTES,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self._chunks, self._options, self._name = chunks, options, name
        self._topic, self._partition = topic, partition
        self._block_bytes, self._max_record_bytes = block_bytes, max_record_bytes
        self._buffer, self._at, self._base = b"", 0, start.byte
        self._has_keys = isinstance(options, FrameOptions) and options.lagrangex_header
        self._record = start.record
        self._skip = 0
        self._seeking, self._bad = False, start
        self._ended = False
        self._error: StreamError | None = None
        self._dead: list[dict[str, object]] = []

    @property
    def position(self) -> StreamPosition:
        """After the last block that was given; while the end of a bad record is not found yet, before that record."""
        if self._seeking:
            return self._bad
        return StreamPosition(self._base + self._at + self._skip, self._record)

    def __iter__(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        missing = 0
        while True:
            self._fill(max(self._block_bytes, missing))
            if self._at == len(self._buffer):
                break
            block, missing = self._scan()
            if block.num_rows or self._dead:
                yield block, self._take_dead()
        if self._error is not None:
            self._add_dead_letter(self._error.reason, str(self._error), 0)
            yield record_batch.empty(self._schema()), self._take_dead()

    def _fill(self, wanted: int) -> None:
        """Reads until the buffer holds `wanted` bytes or the stream ends."""
        parts = [self._buffer[self._at :]]
        self._base, self._at, size = self._base + self._at, 0, len(parts[0])
        while size < wanted and not self._ended:
            chunk = self._next_chunk()
            if not chunk:
                break
            if self._skip:
                dropped = min(self._skip, len(chunk))
                self._skip, self._base, chunk = self._skip - dropped, self._base + dropped, chunk[dropped:]
            parts.append(chunk)
            size += len(chunk)
        self._buffer = b"".join(parts)
        if self._ended and self._options == LINES and self._buffer and not self._buffer.endswith(b"\n"):
            self._buffer += b"\n"

    def _next_chunk(self) -> bytes:
        try:
            chunk = next(self._chunks, None)
        except StreamError as error:
            self._error, chunk = error, None
        self._ended = chunk is None
        return chunk or b""

    def _scan(self) -> tuple[pa.RecordBatch, int]:
        """(the records of the buffer, number of bytes that the record after them needs)."""
        starts, lengths, keys, numbers = [], [], [], []
        missing = 0
        while self._at < len(self._buffer):
            if self._seeking and not self._seek(self._at):
                missing = len(self._buffer) - self._at + 1
                break
            frames = split_frames(self._buffer, self._options, self._at, self._max_record_bytes)
            starts.append(frames.starts)
            lengths.append(frames.lengths)
            keys.append(frames.data_source_keys)
            numbers.append(np.arange(self._record, self._record + len(frames.starts)))
            self._record += len(frames.starts)
            self._at = frames.end
            if frames.error is Reason.TRUNCATED and not self._ended:
                missing = max(frames.next - frames.end, len(self._buffer) - frames.end + 1)
                break
            if frames.error is not None:
                self._refuse(frames.error, frames.next)
        return self._block(starts, lengths, keys, numbers), missing

    def _refuse(self, reason: Reason, following: int) -> None:
        """Makes the frame here a dead letter and goes on at `following`, or as the format allows when that is -1."""
        if reason is Reason.TRUNCATED:
            error, self._error = self._error, None
            detail = "the stream ends within this record" if error is None else str(error)
            self._add_dead_letter(reason if error is None else error.reason, detail, len(self._buffer) - self._at)
            self._at = len(self._buffer)
        elif following >= 0:
            self._add_dead_letter(reason, "a record", following - self._at)
            self._skip = max(0, following - len(self._buffer))
            self._at = min(following, len(self._buffer))
        elif self._options in (TF_RECORDS, LINES):
            begin, self._bad = self._at, self.position
            self._seek(begin + 1)
            self._add_dead_letter(reason, "no record begins here", self._at - begin, begin)
        else:
            rest = len(self._buffer) - self._at + self._drain()
            self._add_dead_letter(reason, "no header of this format; the rest of the stream is lost", rest)
            self._at = len(self._buffer)
        self._record += 1

    def _seek(self, begin: int) -> bool:
        """Moves to the next record from `begin` on; False when finding it needs more bytes."""
        at, sure = find_frame(self._buffer, self._options, begin, self._max_record_bytes, self._ended)
        self._seeking = at < 0 or not sure
        kept = 0 if self._ended or self._options == LINES else _TF_HEADER_BYTES - 1
        self._at = at if at >= 0 else max(begin, len(self._buffer) - kept)
        return not self._seeking

    def _drain(self) -> int:
        """Reads and drops the rest of the stream; returns its length in bytes."""
        size = 0
        while not self._ended:
            size += len(self._next_chunk())
        return size

    def _add_dead_letter(self, reason: Reason, detail: str, size: int, begin: int | None = None) -> None:
        begin = self._at if begin is None else begin
        value = self._buffer[begin : begin + min(size, MAX_VALUE_BYTES)]
        self._dead.append(
            {
                "value": value,
                "topic": self._topic,
                "partition": self._partition,
                "offset": self._record,
                "reason": reason.value,
                "detail": f"{self._name} byte {self._base + begin}: {detail}".lstrip(),
                "truncated_from": size if size > len(value) else None,
            }
        )

    def _take_dead(self) -> pa.RecordBatch:
        dead, self._dead = pa.RecordBatch.from_pylist(self._dead, schema=SCHEMA), []
        return dead

    def _schema(self) -> pa.Schema:
        schema = raw_schema(self._topic)
        return schema.append(_KEY_FIELD) if self._has_keys else schema

    def _block(
        self, starts: list[np.ndarray], lengths: list[np.ndarray], keys: list[np.ndarray], numbers: list[np.ndarray]
    ) -> pa.RecordBatch:
        if not starts:
            return record_batch.empty(self._schema())
        values = payloads(self._buffer, np.concatenate(starts), np.concatenate(lengths))
        block = raw_block(self._topic, values, self._partition, np.concatenate(numbers))
        if not self._has_keys:
            return block
        return block.append_column(_KEY_FIELD, pa.array(np.concatenate(keys)))


def read_file(
    path: str, position: tuple[int, ...], options: Framing, topic: str, compression: Compression = Compression.UNKNOWN
) -> Iterator[tuple[tuple[pa.RecordBatch, pa.RecordBatch], StreamPosition]]:
    """((raw block, dead letters), position after them) of a local file, for `runtime.work_queue.WorkReader`.

    Args:
      position: where an earlier reader stopped; empty for the beginning.
    """
    start = StreamPosition(*position)
    with open(path, "rb") as file:
        chunks = read_chunks(file, compression_of(path, compression), start.byte)
        stream = FrameStream(chunks, options, topic, name=path, start=start)
        for blocks in stream:
            yield blocks, stream.position
