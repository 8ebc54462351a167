"""Frames: how a file or a Kafka value holds several records, each after its length and optional headers.

A frame is headers, uint64 length, payload, all little endian; the payload is the record. With `lagrangex_header` the
only header is a uint64 whose low 32 bits, without the lowest byte, are the record's data source key. Otherwise the
headers are, in this order: with `kafka_dump_prefix` a uint64, the size of the sort id, or two when the first is 0; with
`has_sort_id` the size of the sort id, unless the prefix gave it, and the sort id; with `kafka_dump` a uint64. A
TFRecord has no headers, and a masked CRC-32C follows its length and its payload. A line ends at a line feed.

Whole buffers are scanned in C++ (`ops/cc/records/wire/framing.cc`); streams are cut by `transforms/frames/stream.py`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from millrace.ops import record_library
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.data_source import header_bytes
from millrace.transforms.batch.dead_letter import SCHEMA, Reason, Refusals
from millrace.transforms.batch.provenance import ROWS_PER_RECORD, set_provenance
from millrace.transforms.batch.raw_block import RAW_FIELDS, source_partitions

RECORD_SOURCE_KEY = "data_source_key"
"""Column of a raw block, uint32: the data source key from the LagrangeX header of each record."""

RECORD_ROW = "row"
"""Column of a deframed block, int32: index of the record within the Kafka value that it came in."""

MAX_RECORD_BYTES = 64 << 20
"""Longest record that is read by default, so that damaged lengths cannot make a reader fill the memory."""

_FIRST_CAPACITY = 4096


@dataclass(frozen=True)
class FrameOptions:
    """Which headers a frame has; the defaults are those of Kafka values."""

    lagrangex_header: bool = False
    kafka_dump_prefix: bool = False
    has_sort_id: bool = False
    kafka_dump: bool = False

    def flags(self) -> int:
        """The bits of `ops/cc/records/wire/framing.h`."""
        order = (self.lagrangex_header, self.kafka_dump_prefix, self.has_sort_id, self.kafka_dump)
        return sum(1 << bit for bit, given in enumerate(order) if given)

    def header(self, data_source: str = "") -> bytes:
        """The header bytes that are written before each length: the key of `data_source`, or else zeros.

        UserError for kafka-dump headers that are only read: no writer makes one without a sort id or after a prefix.
        """
        if self.lagrangex_header:
            return header_bytes(data_source)
        if self.kafka_dump and (self.kafka_dump_prefix or not self.has_sort_id):
            problem = "is written with sort-id, and without kafka-dump-prefix"
            raise UserError("frames", "kafka-dump", problem, "give sort-id,kafka-dump or leave kafka-dump out")
        return bytes(16 * self.kafka_dump_prefix + 8 * self.has_sort_id + 8 * self.kafka_dump)


@dataclass(frozen=True)
class TfRecordOptions:
    """Frames of TFRecord files."""

    FLAG: ClassVar[int] = 16

    def flags(self) -> int:
        return self.FLAG

    def header(self, data_source: str = "") -> bytes:
        return b""


@dataclass(frozen=True)
class LineOptions:
    """Lines of text files: a record ends at a line feed, which does not belong to it."""

    FLAG: ClassVar[int] = 32

    def flags(self) -> int:
        return self.FLAG

    def header(self, data_source: str = "") -> bytes:
        return b""


Framing = FrameOptions | TfRecordOptions | LineOptions

KAFKA_FRAMES = FrameOptions()
FILE_FRAMES = FrameOptions(has_sort_id=True)
TF_RECORDS = TfRecordOptions()
LINES = LineOptions()


class Frames(NamedTuple):
    """Where the records of a buffer lie.

    Attributes:
      starts: int64 [n], byte at which each payload begins.
      lengths: int64 [n], bytes of each payload.
      positions: int64 [n], byte at which each frame begins.
      data_source_keys: uint32 [n], 0 without a LagrangeX header.
      end: byte at which the scan stopped: the size of the buffer, or the beginning of the first frame not listed.
      error: what is wrong with that frame; TRUNCATED where the buffer ends within it.
      next: byte at which that frame ends, which may lie beyond the buffer; -1 where it cannot be told.
    """

    starts: np.ndarray
    lengths: np.ndarray
    positions: np.ndarray
    data_source_keys: np.ndarray
    end: int
    error: Reason | None
    next: int


_FULL = 1
_REASONS: dict[int, Reason | None] = {
    0: None,
    1: Reason.OUT_OF_RANGE,
    2: Reason.TRUNCATED,
    3: Reason.MALFORMED_FRAME,
    4: Reason.TOO_LARGE,
    5: Reason.BAD_CHECKSUM,
}


def split_frames(
    data: bytes | memoryview | pa.Buffer,
    options: Framing,
    position: int = 0,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Frames:
    """The frames of `data` from byte `position` on, up to the first that is wrong."""
    buffer = np.frombuffer(data, np.uint8)
    parts: list[tuple[np.ndarray, ...]] = []
    end, count, following = position, np.zeros(1, np.int64), np.zeros(1, np.int64)
    stopped, status = np.zeros(1, np.int64), np.full(1, _FULL, np.int32)
    capacity = _FIRST_CAPACITY
    while status[0] == _FULL:
        found = tuple(np.empty(capacity, kind) for kind in (np.int64, np.int64, np.int64, np.uint32))
        arguments = buffer, len(buffer), end, options.flags(), max_record_bytes, capacity
        record_library.call("millrace_split_frames", *arguments, *found, count, stopped, following, status)
        end = int(stopped[0])
        parts.append(tuple(each[: count[0]] for each in found))
        capacity = min(4 * capacity, 1 << 20)
    starts, lengths, positions, keys = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Frames(starts, lengths, positions, keys, end, _REASONS[int(status[0])], int(following[0]))


def find_frame(
    data: bytes | memoryview,
    options: Framing,
    position: int,
    max_record_bytes: int = MAX_RECORD_BYTES,
    is_last: bool = True,
) -> tuple[int, bool]:
    """The first byte from `position` on at which a frame begins; -1 where none begins or it cannot be told.

    Args:
      is_last: whether the stream ends with `data`.

    Returns: (position, whether it is certain); what is not certain needs more bytes.
    """
    buffer = np.frombuffer(data, np.uint8)
    found, sure = np.zeros(1, np.int64), np.zeros(1, np.int32)
    arguments = buffer, len(buffer), position, options.flags(), max_record_bytes, is_last
    record_library.call("millrace_find_frame", *arguments, found, sure)
    return int(found[0]), bool(sure[0])


def join_frames(values: pa.Array, options: Framing, data_source: str = "") -> pa.Buffer:
    """Writes the bytes of each value as one frame; a null is written as an empty record.

    Args:
      values: binary [n].
      data_source: name of the source whose key a LagrangeX header carries.
    """
    offsets, data = _binary_parts(values)
    header = np.frombuffer(options.header(data_source), np.uint8)
    overhead = {TF_RECORDS: 16, LINES: 1}.get(options, len(header) + 8)
    result = pa.allocate_buffer(int(offsets[-1] - offsets[0]) + len(values) * overhead)
    arguments = data, offsets, len(values), options.flags(), header, len(header)
    record_library.call("millrace_join_frames", *arguments, result.address)
    return result


def payloads(data: bytes | memoryview | pa.Buffer, starts: np.ndarray, lengths: np.ndarray) -> pa.BinaryArray:
    """binary [n]: the bytes of each range of `data`, copied. ValueError beyond 2 GiB, the most that the type holds."""
    total = int(lengths.sum())
    if total >= 1 << 31:
        raise ValueError(f"{total} bytes of records do not fit one block; read smaller ones")
    buffer = np.frombuffer(data, np.uint8)
    starts, lengths = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(lengths, np.int64)
    out = pa.allocate_buffer(total)
    offsets = np.empty(len(starts) + 1, np.int32)
    record_library.call("millrace_copy_ranges", buffer, starts, lengths, len(starts), out.address, offsets)
    return pa.BinaryArray.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), out])


def deframe(
    block: pa.RecordBatch, options: Framing, max_record_bytes: int = MAX_RECORD_BYTES
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The records of a raw block whose values hold frames, one or several each.

    A bad frame is one dead letter, and the frames after it are read; where its end cannot be told, the dead letter has
    the rest of the value. The records of a value from the 65th on (`provenance.ROWS_PER_RECORD`) are one dead
    letter together, and so is a null.

    Returns: (raw block with the column `row`, and with a LagrangeX header `data_source_key`; dead letters).
    """
    offsets, data = _binary_parts(block.column("value"))
    capacity = max(_FIRST_CAPACITY, 2 * block.num_rows)
    while (split := _split_values(offsets, data, options, max_record_bytes, capacity)) is None:
        capacity *= 4
    (starts, lengths, rows, keys), (bad_rows, bad_starts, bad_lengths, status) = split
    source = block.drop_columns(["value"]).take(pa.array(rows))
    index = np.arange(len(rows)) - np.searchsorted(rows, rows)
    columns = [payloads(data, starts, lengths), *source.columns, pa.array(index.astype(np.int32))]
    fields = [block.schema.field("value"), *source.schema, pa.field(RECORD_ROW, pa.int32())]
    if options.flags() & FrameOptions(lagrangex_header=True).flags():
        columns.append(pa.array(keys))
        fields.append(pa.field(RECORD_SOURCE_KEY, pa.uint32()))
    good = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=block.schema.metadata))
    return good, _bad_values(
        block, payloads(data, bad_starts, bad_lengths), bad_rows, bad_starts - offsets[bad_rows], status
    )


def with_source(rows: pa.RecordBatch, records: pa.RecordBatch) -> pa.RecordBatch:
    """`rows` with the provenance of `records`, a raw block, deframed or not, with the record of each row."""
    row = record_batch.column_of(records, RECORD_ROW)
    row = np.zeros(records.num_rows, np.int32) if row is None else row
    return set_provenance(rows, source_partitions(records), records.column("offset"), row)


def _split_values(
    offsets: np.ndarray, data: np.ndarray, options: Framing, max_record_bytes: int, capacity: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] | None:
    """((starts, lengths, rows, keys) of frames, (rows, starts, lengths, status) of bad ones); None beyond capacity."""
    good = tuple(np.empty(capacity, kind) for kind in (np.int64, np.int64, np.int64, np.uint32))
    bad = tuple(np.empty(capacity, kind) for kind in (np.int64, np.int64, np.int64, np.int32))
    count, bad_count = np.zeros(1, np.int64), np.zeros(1, np.int64)
    values = data, offsets, len(offsets) - 1
    limits = options.flags(), max_record_bytes, ROWS_PER_RECORD, capacity
    record_library.call("millrace_split_values", *values, *limits, *good, *bad, count, bad_count)
    if count[0] < 0:
        return None
    return tuple(each[: count[0]] for each in good), tuple(each[: bad_count[0]] for each in bad)


def _bad_values(
    block: pa.RecordBatch, values: pa.Array, rows: np.ndarray, positions: np.ndarray, status: np.ndarray
) -> pa.RecordBatch:
    """Dead letters of the bad parts of values, each at a row of `block` and a byte of its value, and of nulls."""
    nulls = np.flatnonzero(block.column("value").is_null().to_numpy(zero_copy_only=False))
    if not len(rows) and not len(nulls):
        return record_batch.empty(SCHEMA)
    rows = np.concatenate([rows, nulls])
    order = np.argsort(rows, kind="stable")
    values = pa.concat_arrays([values, pa.array([b""] * len(nulls), pa.binary())]).take(pa.array(order))
    raw = block.select([field.name for field in RAW_FIELDS]).take(pa.array(rows[order]))
    refusals = Refusals(record_batch.with_column(raw, RAW_FIELDS[0], values))
    problems = [_problem(code, position) for code, position in zip(status.tolist(), positions.tolist(), strict=True)]
    problems += [(Reason.EMPTY_VALUE.value, "no bytes")] * len(nulls)
    reasons, details = zip(*(problems[index] for index in order.tolist()), strict=True)
    refusals.add_each(np.arange(len(rows)), list(reasons), list(details))
    return refusals.to_batch()


def _problem(status: int, position: int) -> tuple[str, str]:
    """(reason, detail) of a bad frame."""
    reason = _REASONS[status]
    assert reason is not None
    if status == _FULL:
        return reason.value, f"byte {position}: more than {ROWS_PER_RECORD} records in one value"
    return reason.value, f"byte {position}: a frame"


def _binary_parts(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(int32 offsets [n + 1], uint8 bytes that they point into) of a binary array; a null has no bytes."""
    values = values.cast(pa.binary()) if values.type != pa.binary() else values
    if values.null_count:
        values = values.fill_null(b"")
    if not len(values):
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    _, offsets, data = values.buffers()
    content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset), content
