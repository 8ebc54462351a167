"""Arrow schemas of impression rows, of actions, and of actions that did not join."""

from collections.abc import Mapping

import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.feed.config import CONTEXT_PREFIX

ARROW_TYPES = {"int64": pa.int64(), "string": pa.string()}

ACTION_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("item_id", pa.int64()),
        pa.field("action", pa.string()),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("value", pa.float64()),
    ]
)

PLACED_ACTION_SCHEMA = pa.schema(
    [
        *ACTION_SCHEMA,
        pa.field(record_batch.SOURCE_PARTITION, pa.int64()),
        pa.field(record_batch.SOURCE_OFFSET, pa.int64()),
    ]
)
"""Actions with the place of their record, which a reader must not commit while an action waits for its impression."""

ROUTED_ACTION_SCHEMA = ACTION_SCHEMA.append(pa.field("reason", pa.string()))
"""Actions that did not join, with the reason, a key of `config.ROUTES`."""


def impression_schema(context_fields: Mapping[str, str]) -> pa.Schema:
    """Schema of the rows of `events.decode_impressions` with these context fields, {name: "int64" or "string"}."""
    return pa.schema(
        [
            pa.field("request_id", pa.string()),
            pa.field("user_id", pa.int64()),
            pa.field("item_id", pa.int64()),
            pa.field("timestamp_ms", pa.int64()),
            *(pa.field(f"{CONTEXT_PREFIX}{name}", ARROW_TYPES[dtype]) for name, dtype in context_fields.items()),
            pa.field(record_batch.SOURCE_PARTITION, pa.int64()),
            pa.field(record_batch.SOURCE_OFFSET, pa.int64()),
            pa.field(record_batch.SOURCE_ROW, pa.int32()),
        ]
    )
