"""The check of every message of the train topic, before anything else uses it."""

import struct
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from millrace.training.stream.layout import TrainLayout
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import MAX_VALUE_BYTES
from millrace.transforms.batch.floors import BlockFloors, FloorsError, floors_of
from millrace.transforms.batch.train_check import DETAILS, bad_rows

MAX_BYTES = 8_000_000
"""Largest message that is looked at: what our producers send at most, and eight times what a feed writes."""

_MOST_DETAIL = 500  # characters: names of columns may be as long as the message, and go into logs

# Places in the tables of Arrow's flatbuffers (format/Message.fbs): fields are counted from 4 on, in steps of 2.
_HEADER_OF_MESSAGE, _COMPRESSION_OF_BATCH = 8, 10


class BadBlock(StrEnum):
    """Why a whole block cannot be used; the value is the Kafka header `reason` of its dead letter."""

    TOO_LARGE = "too_large"
    NOT_ARROW = "not_arrow"
    COMPRESSED = "compressed"
    WRONG_COLUMNS = "wrong_columns"
    BAD_FLOORS = "bad_floors"


@dataclass(frozen=True)
class Refused:
    """A block, or rows of one, that cannot be trained.

    Attributes:
      reason: a BadBlock or BadRow.
      detail: what is wrong, for people.
      rows: how many; 0 for a block as a whole.
      values: the block's bytes, or Arrow IPC streams with the rows.
    """

    reason: str
    detail: str
    rows: int
    values: tuple[bytes, ...]


@dataclass(frozen=True)
class Checked:
    """What `Gate.check` let through.

    Attributes:
      rows: those that can be trained; None for a block that is refused as a whole.
      floors: of the block.
      refused: the others.
    """

    rows: pa.RecordBatch | None
    floors: BlockFloors | None
    refused: tuple[Refused, ...] = ()


class _BadBlockError(ValueError):
    def __init__(self, reason: BadBlock, detail: str) -> None:
        super().__init__(detail[:_MOST_DETAIL])
        self.reason = reason


class Gate:
    """Decides which rows of a message may be trained; never raises for what a message holds.

    A block whose bytes, columns or floors are wrong is refused as a whole. Of others the rows are refused that are not
    finite, out of range or null. Memory is taken for the message's own bytes alone: nothing in it is decompressed.
    """

    def __init__(self, layout: TrainLayout) -> None:
        self._layout = layout
        self._known = pa.schema([])  # of the newest block whose columns were right, and which of them are plain
        self._plain: list[int] = []

    def check(self, value: bytes | None) -> Checked:
        """What can be trained of the value of one message, and what not."""
        value = value or b""
        try:
            block = _decode(value)
            floors = _floors(block)
            block = self._plain_columns(block)
        except _BadBlockError as error:
            return Checked(None, None, (Refused(error.reason, str(error), 0, (value,)),))
        if not block.num_rows:  # Arrow does not look at the buffers of no rows: they may hold anything
            return Checked(record_batch.empty(self._layout.schema), floors)
        bad = bad_rows(block, self._layout.fid_columns, self._layout.heads, floors)
        if not bad:
            return Checked(block, floors)
        refused = [
            Refused(reason, DETAILS[reason], int(rows.sum()), _messages(block.filter(pa.array(rows))))
            for reason, rows in bad
        ]
        good = ~np.logical_or.reduce([rows for _, rows in bad])
        return Checked(block.filter(pa.array(good)), floors, tuple(refused))

    def _plain_columns(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of plain types, which the layout's columns are, with valid buffers."""
        if not block.schema.equals(self._known):
            try:
                self._layout.check_columns(block)
            except ValueError as error:
                raise _BadBlockError(BadBlock.WRONG_COLUMNS, str(error)) from error
            self._known = block.schema
            self._plain = [index for index, field in enumerate(block.schema) if _is_plain(field.type)]
        plain = block if len(self._plain) == block.num_columns else block.select(self._plain)
        try:
            plain.validate(full=True)
        except pa.ArrowException as error:
            raise _BadBlockError(BadBlock.NOT_ARROW, f"a buffer is wrong: {error}") from error
        return plain


def _decode(value: bytes) -> pa.RecordBatch:
    """The one batch of an Arrow IPC stream whose buffers lie in `value`; they are not looked at."""
    if len(value) > MAX_BYTES:
        raise _BadBlockError(BadBlock.TOO_LARGE, f"{len(value)} bytes, at most {MAX_BYTES} are read")
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(value))
        schema = pa.ipc.read_schema(_next(messages, "schema"))
        message = _next(messages, "record batch")
        if _is_compressed(message.metadata.to_pybytes()):
            raise _BadBlockError(
                BadBlock.COMPRESSED, "compressed buffers, which may be of any size; compress Kafka's messages instead"
            )
        batch = pa.ipc.read_record_batch(message, schema)
        if _has_more(messages):
            raise _BadBlockError(BadBlock.NOT_ARROW, "more than one batch")
    except (pa.ArrowException, OSError, StopIteration, EOFError, struct.error) as error:
        raise _BadBlockError(BadBlock.NOT_ARROW, f"not an Arrow IPC stream of {len(value)} bytes: {error}") from error
    return batch


def _next(messages: pa.ipc.MessageReader, kind: str) -> pa.ipc.Message:
    """The next message, which must be of this kind: Arrow crashes when it reads one as another."""
    message = messages.read_next_message()
    if message.type != kind:
        raise _BadBlockError(BadBlock.NOT_ARROW, f"a message of kind {message.type} in place of a {kind}")
    return message


def _has_more(messages: pa.ipc.MessageReader) -> bool:
    try:
        messages.read_next_message()
    except StopIteration:
        return False
    return True


def _is_compressed(metadata: bytes) -> bool:
    """Whether the metadata of an IPC message with a batch, which Arrow has verified, name a codec."""
    (root,) = struct.unpack_from("<I", metadata)
    place = _field(metadata, root, _HEADER_OF_MESSAGE)
    (offset,) = struct.unpack_from("<I", metadata, place)
    return _field(metadata, place + offset, _COMPRESSION_OF_BATCH) != 0


def _field(metadata: bytes, table: int, field: int) -> int:
    """Where a field of the flatbuffer table at `table` lies; 0 when it has none."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    (offset,) = struct.unpack_from("<H", metadata, table - back + field) if field < size else (0,)
    return table + offset if offset else 0


def _floors(block: pa.RecordBatch) -> BlockFloors | None:
    try:
        return floors_of(block)
    except (FloorsError, RecursionError) as error:
        raise _BadBlockError(BadBlock.BAD_FLOORS, str(error)) from error


def _is_plain(kind: pa.DataType) -> bool:
    """Numbers, texts, bytes and lists of these: what takes no more memory when some of its rows are copied."""
    if pt.is_list(kind):
        kind = kind.value_type
    return bool(pt.is_primitive(kind) or pt.is_string(kind) or pt.is_binary(kind))


def _messages(rows: pa.RecordBatch) -> tuple[bytes, ...]:
    """Arrow IPC streams with `rows`, without the block's metadata; with a row that fills none, one longer stream."""
    rows = rows.replace_schema_metadata(None)
    try:
        return tuple(data for _, data in record_batch.split_to_bytes(rows, MAX_VALUE_BYTES))
    except ValueError:
        return (record_batch.to_bytes(rows),)
