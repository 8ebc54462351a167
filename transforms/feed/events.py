"""JSON events to rows, and dead letters for records that cannot be read or break a rule.

`codecs/json_parser.py` parses whole blocks, and the checks here run over the parsed columns. `docs/events.md` has the
rules of events, `transforms/README.md` describes the rows.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.fid import SIGNATURE_MASK
from millrace.transforms.batch.provenance import ROWS_PER_RECORD
from millrace.transforms.batch.raw_block import source_partitions
from millrace.transforms.codecs.json_parser import parse_objects
from millrace.transforms.feed.config import CONTEXT_PREFIX
from millrace.transforms.feed.event_schemas import ACTION_SCHEMA, ARROW_TYPES, PLACED_ACTION_SCHEMA, impression_schema

SCHEMA_VERSION = 1
MAX_ITEMS = ROWS_PER_RECORD
"""Each item of an impression becomes a row, and provenance tells so many rows of a record apart."""

MAX_REQUEST_ID_BYTES = 256
"""Bounds the cost per record of hashing request ids, and the memory of actions that wait in the join."""

MAX_TEXT_BYTES = 1024
"""Likewise for context strings and names of actions."""

MIN_TIMESTAMP_MS = 631_152_000_000
"""1990-01-01: earlier times are mistakes of a clock, or seconds instead of milliseconds."""

DAY_MS = 86_400_000
"""How far ahead of now an event may be by default: clocks of producers may be wrong by a time zone."""


def decode_impressions(
    block: pa.RecordBatch, context_fields: Mapping[str, str], now_ms: int, max_future_ms: int = DAY_MS
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Makes one row per item of each impression record.

    Args:
      block: raw block (`raw_block.raw_schema`).
      context_fields: {context field: "int64" or "string"} to decode; all others are ignored.
      now_ms: current time, Unix milliseconds; an event more than `max_future_ms` ahead of it is refused.

    Returns: (rows of `impression_schema(context_fields)`, dead letters of `dead_letter.SCHEMA`); each record is in
      exactly one of them.
    """
    refusals = Refusals(block)
    context = pa.struct([pa.field(name, ARROW_TYPES[dtype]) for name, dtype in context_fields.items()])
    schema = _IMPRESSION_JSON if not context_fields else _IMPRESSION_JSON.append(pa.field("context", context))
    parsed, rows = parse_objects(block, schema, refusals, SCHEMA_VERSION)
    _refuse_common(parsed, rows, refusals, now_ms + max_future_ms)
    _refuse_ids(parsed.column("user_id"), "user_id", rows, refusals)
    _refuse_items(parsed.column("item_ids"), rows, refusals)
    contexts = dict(zip(context_fields, parsed.column("context").flatten(), strict=True)) if context_fields else {}
    for name, column in contexts.items():
        _refuse_context(column, f"{CONTEXT_PREFIX}{name}", rows, refusals)
    good = np.flatnonzero(refusals.keep(rows))
    chosen = pa.array(good)
    items = parsed.column("item_ids").take(chosen)
    counts = pc.list_value_length(items).to_numpy(zero_copy_only=False)
    record = np.repeat(good, counts)
    index = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
    of_record, of_block = pa.array(record), pa.array(rows[record])
    columns = [
        parsed.column("request_id").take(of_record),
        parsed.column("user_id").take(of_record),
        items.flatten(),
        parsed.column("timestamp_ms").take(of_record),
        *(column.take(of_record) for column in contexts.values()),
        source_partitions(block).take(of_block),
        block.column("offset").take(of_block),
        pa.array(index, pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=impression_schema(context_fields)), refusals.to_batch()


def decode_actions(
    block: pa.RecordBatch, now_ms: int, max_future_ms: int = DAY_MS
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows of `PLACED_ACTION_SCHEMA`, dead letters) of action records; arguments as those of `decode_impressions`."""
    refusals = Refusals(block)
    parsed, rows = parse_objects(block, _ACTION_JSON, refusals, SCHEMA_VERSION)
    _refuse_common(parsed, rows, refusals, now_ms + max_future_ms)
    _refuse_ids(parsed.column("item_id"), "item_id", rows, refusals)
    action, value = parsed.column("action"), parsed.column("value")
    _refuse(pc.is_null(action), rows, refusals, Reason.MISSING_FIELD, "action: missing or null")
    _refuse_length(action, "action", MAX_TEXT_BYTES, rows, refusals)
    finite = pc.fill_null(pc.is_finite(value), True)
    _refuse(pc.invert(finite), rows, refusals, Reason.OUT_OF_RANGE, "value: not a finite number")
    good = np.flatnonzero(refusals.keep(rows))
    actions = parsed.take(pa.array(good)).select(ACTION_SCHEMA.names).cast(ACTION_SCHEMA)
    of_block = pa.array(rows[good])
    columns = [*actions.columns, source_partitions(block).take(of_block), block.column("offset").take(of_block)]
    return pa.RecordBatch.from_arrays(columns, schema=PLACED_ACTION_SCHEMA), refusals.to_batch()


_COMMON_JSON = [
    pa.field("schema_version", pa.int64()),
    pa.field("request_id", pa.string()),
    pa.field("timestamp_ms", pa.int64()),
]
_IMPRESSION_JSON = pa.schema(
    [*_COMMON_JSON, pa.field("user_id", pa.int64()), pa.field("item_ids", pa.list_(pa.int64()))]
)
_ACTION_JSON = pa.schema(
    [*_COMMON_JSON, pa.field("item_id", pa.int64()), pa.field("action", pa.string()), pa.field("value", pa.float64())]
)


# Checks of parsed columns. `rows` holds the position in the block of each parsed record.


def _refuse(condition: pa.BooleanArray, rows: np.ndarray, refusals: Refusals, reason: Reason, detail: str) -> None:
    chosen = pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    if chosen.any():
        refusals.add(rows[chosen], reason, detail)


def _refuse_common(parsed: pa.RecordBatch, rows: np.ndarray, refusals: Refusals, newest_ms: int) -> None:
    version, request_id, timestamp = (parsed.column(field.name) for field in _COMMON_JSON)
    _refuse(pc.is_null(version), rows, refusals, Reason.MISSING_FIELD, "schema_version: missing or null")
    unknown = pc.not_equal(version, SCHEMA_VERSION)
    _refuse(unknown, rows, refusals, Reason.UNKNOWN_SCHEMA_VERSION, f"schema_version: expected {SCHEMA_VERSION}")
    _refuse(pc.is_null(request_id), rows, refusals, Reason.MISSING_FIELD, "request_id: missing or null")
    _refuse_length(request_id, "request_id", MAX_REQUEST_ID_BYTES, rows, refusals)
    _refuse(pc.is_null(timestamp), rows, refusals, Reason.MISSING_FIELD, "timestamp_ms: missing or null")
    old = pc.less(timestamp, MIN_TIMESTAMP_MS)
    _refuse(old, rows, refusals, Reason.BAD_TIMESTAMP, "timestamp_ms: before 1990-01-01 (milliseconds are expected)")
    _refuse(pc.greater(timestamp, newest_ms), rows, refusals, Reason.BAD_TIMESTAMP, "timestamp_ms: in the future")


def _refuse_ids(column: pa.Array, name: str, rows: np.ndarray, refusals: Refusals) -> None:
    _refuse(pc.is_null(column), rows, refusals, Reason.MISSING_FIELD, f"{name}: missing or null")
    _refuse(_outside(column), rows, refusals, Reason.OUT_OF_RANGE, f"{name}: outside [0, 2^48)")


def _refuse_items(items: pa.ListArray, rows: np.ndarray, refusals: Refusals) -> None:
    _refuse(pc.is_null(items), rows, refusals, Reason.MISSING_FIELD, "item_ids: missing or null")
    length = pc.list_value_length(items)
    wrong = pc.or_(pc.less(length, 1), pc.greater(length, MAX_ITEMS))
    _refuse(wrong, rows, refusals, Reason.OUT_OF_RANGE, f"item_ids: expected 1 to {MAX_ITEMS} items")
    flat, parents = items.flatten(), pc.list_parent_indices(items).to_numpy(zero_copy_only=False)
    nulls = pc.is_null(flat).to_numpy(zero_copy_only=False)
    outside = pc.fill_null(_outside(flat), False).to_numpy(zero_copy_only=False)
    if nulls.any():
        refusals.add(rows[np.unique(parents[nulls])], Reason.WRONG_TYPE, "item_ids: holds null")
    if outside.any():
        refusals.add(rows[np.unique(parents[outside])], Reason.OUT_OF_RANGE, "item_ids: outside [0, 2^48)")


def _refuse_context(column: pa.Array, name: str, rows: np.ndarray, refusals: Refusals) -> None:
    if pa.types.is_integer(column.type):
        _refuse(_outside(column), rows, refusals, Reason.OUT_OF_RANGE, f"{name}: outside [0, 2^48)")
    else:
        long = pc.greater(pc.binary_length(column), MAX_TEXT_BYTES)
        _refuse(long, rows, refusals, Reason.OUT_OF_RANGE, f"{name}: longer than {MAX_TEXT_BYTES} bytes")


def _refuse_length(column: pa.Array, name: str, largest: int, rows: np.ndarray, refusals: Refusals) -> None:
    length = pc.binary_length(column)
    wrong = pc.or_(pc.less(length, 1), pc.greater(length, largest))
    _refuse(wrong, rows, refusals, Reason.OUT_OF_RANGE, f"{name}: expected 1 to {largest} bytes")


def _outside(column: pa.Array) -> pa.BooleanArray:
    return pc.or_(pc.less(column, 0), pc.greater(column, SIGNATURE_MASK))
