"""Events of the tests of the join, in milliseconds since `NOW`."""

from typing import Any

import pyarrow as pa

from millrace.transforms.feed.config import FeedConfig, FidFeature, LabelRule
from millrace.transforms.feed.event_schemas import PLACED_ACTION_SCHEMA, impression_schema
from millrace.transforms.feed.join import JoinIndex

NOW = 1_764_000_000_000
SKEW_MS = 300
ACTIONS_PARTITION = 1 << 16
"""Source partition of the actions; that of impressions is 0."""


def config(**settings: Any) -> FeedConfig:
    """A feed with a window of five seconds in which clicks and likes count."""
    return FeedConfig(
        "m",
        (FidFeature("user", 1, "user_id"), FidFeature("device", 2, "context.device")),
        (LabelRule("click", ("click",)), LabelRule("like", ("like",))),
        **{"window_seconds": 5.0} | settings,
    )


def impressions(*rows: tuple[str, int, int], first_offset: int = 0) -> pa.RecordBatch:
    """Rows of (request id, item, time), each a record of its own."""
    records = [
        {
            "request_id": request,
            "user_id": 7,
            "item_id": item,
            "timestamp_ms": NOW + at,
            "context.device": "phone",
            "__SOURCE_PARTITION__": 0,
            "__SOURCE_OFFSET__": first_offset + index,
            "__SOURCE_ROW__": item % 2,
        }
        for index, (request, item, at) in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(records, schema=impression_schema({"device": "string"}))


def actions(*rows: tuple[str, int, str, int], value: float | None = None, first_offset: int = 0) -> pa.RecordBatch:
    """Rows of (request id, item, action, time)."""
    records = [
        {
            "request_id": request,
            "item_id": item,
            "action": action,
            "timestamp_ms": NOW + at,
            "value": value,
            "__SOURCE_PARTITION__": ACTIONS_PARTITION,
            "__SOURCE_OFFSET__": first_offset + index,
        }
        for index, (request, item, action, at) in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(records, schema=PLACED_ACTION_SCHEMA)


def waiting_actions(index: JoinIndex) -> int:
    """How many actions wait for their impression."""
    return len(index._early.keys)
