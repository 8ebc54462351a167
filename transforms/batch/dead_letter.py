"""Dead letters: why a record was refused, as a batch of its own and as Kafka headers."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.raw_block import raw_topic

MAX_VALUE_BYTES = 900_000
"""Largest number of bytes kept of a refused record, so that they and the headers fit a Kafka message of 1 MB."""


class Reason(StrEnum):
    """Why a record was refused; the value is the Kafka header `reason` and part of a counter's name."""

    EMPTY_VALUE = "empty_value"
    TOO_LARGE = "too_large"
    NOT_UTF8 = "not_utf8"
    MALFORMED_JSON = "malformed_json"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_SCHEMA_VERSION = "unknown_schema_version"
    OUT_OF_RANGE = "out_of_range"
    BAD_TIMESTAMP = "bad_timestamp"
    MALFORMED_FRAME = "malformed_frame"
    TRUNCATED = "truncated"
    BAD_CHECKSUM = "bad_checksum"
    UNKNOWN_DATA_SOURCE = "unknown_data_source"
    MALFORMED_AVRO = "malformed_avro"
    UNKNOWN_SCHEMA = "unknown_schema"
    MALFORMED_PROTO = "malformed_proto"
    MALFORMED_LINE_ID = "malformed_line_id"
    MALFORMED_ARROW = "malformed_arrow"
    BATCH_SIZE_MISMATCH = "batch_size_mismatch"
    TOO_MANY_ROWS = "too_many_rows"
    TOO_MANY_FEATURES = "too_many_features"
    DUPLICATE_FEATURE = "duplicate_feature"
    RESERVED_NAME = "reserved_name"


SCHEMA = pa.schema(
    [
        pa.field("value", pa.binary()),
        pa.field("topic", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("truncated_from", pa.int64()),
    ]
)
"""Schema of dead letters, one row per refused record.

`truncated_from` is the record's length in bytes where `value` holds only its beginning, else null.
"""

_NONE = record_batch.empty(SCHEMA)


class Refusals:
    """Collects the refused records of one raw block. Where a record is refused twice, the first reason stays."""

    def __init__(self, block: pa.RecordBatch) -> None:
        self._block = block
        self._refused = np.zeros(block.num_rows, bool)
        self._rows: list[int] = []
        self._reasons: list[str] = []
        self._details: list[str] = []

    def add(self, rows: np.ndarray, reason: Reason, detail: str) -> None:
        """Refuses the records at `rows`, int64 positions in the block, all for one reason."""
        new = rows[~self._refused[rows]]
        self._refused[new] = True
        self._rows.extend(new.tolist())
        self._reasons.extend([reason.value] * len(new))
        self._details.extend([detail] * len(new))

    def add_each(self, rows: np.ndarray, reasons: list[str], details: list[str]) -> None:
        """Refuses the records at `rows`, int64 positions not refused before, each for its own reason."""
        self._refused[rows] = True
        self._rows.extend(rows.tolist())
        self._reasons.extend(reasons)
        self._details.extend(details)

    def accepted(self) -> np.ndarray:
        """int64 positions of the records not refused so far, ascending."""
        return np.flatnonzero(~self._refused)

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """bool [len(rows)]: which of `rows` are not refused so far."""
        return ~self._refused[rows]

    def to_batch(self) -> pa.RecordBatch:
        """The dead letters (`SCHEMA`), in the order of the block."""
        if not self._rows:
            return _NONE
        order = np.argsort(self._rows)
        rows = pa.array(np.asarray(self._rows, np.int64)[order])
        source = self._block.take(rows)
        values = pc.fill_null(source.column("value"), b"")
        lengths = pc.binary_length(values).cast(pa.int64())
        return pa.RecordBatch.from_arrays(
            [
                pc.binary_slice(values, 0, MAX_VALUE_BYTES),
                pa.repeat(pa.scalar(raw_topic(self._block)), len(rows)),
                source.column("partition"),
                source.column("offset"),
                pa.array(self._reasons, pa.string()).take(pa.array(order)),
                pa.array(self._details, pa.string()).take(pa.array(order)),
                pc.if_else(pc.greater(lengths, MAX_VALUE_BYTES), lengths, pa.scalar(None, pa.int64())),
            ],
            schema=SCHEMA,
        )


def count_by_reason(dead_letters: pa.RecordBatch) -> dict[str, int]:
    """{reason: number of dead letters}."""
    counts = dead_letters.column("reason").value_counts()
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def kafka_headers(dead_letters: pa.RecordBatch) -> list[list[tuple[str, bytes]]]:
    """The Kafka headers, (name, value), of the message that each dead letter becomes."""
    return [_headers_of(row) for row in dead_letters.drop_columns(["value"]).to_pylist()]


def _headers_of(row: dict[str, object]) -> list[tuple[str, bytes]]:
    names: Sequence[tuple[str, str]] = (
        ("reason", "reason"),
        ("detail", "detail"),
        ("source-topic", "topic"),
        ("source-partition", "partition"),
        ("source-offset", "offset"),
        ("truncated-from", "truncated_from"),
    )
    return [(header, str(row[name]).encode("utf-8")) for header, name in names if row[name] is not None]
