"""Records that a feed must refuse: one builder per kind, for demonstrations and tests."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from millrace.transforms.batch.dead_letter import Reason

# Too large for a feed, but not for the producer's topics (`producer._MAX_MESSAGE_BYTES`).
_HUGE_BYTES = 5_000_000


Build = Callable[[int], bytes | None]


def _impression(now_ms: int, **changes: Any) -> bytes:
    event = {"schema_version": 1, "request_id": "r-bad", "user_id": 1, "item_ids": [1], "timestamp_ms": now_ms}
    return _json(event | changes)


def _action(now_ms: int, **changes: Any) -> bytes:
    event = {"schema_version": 1, "request_id": "r-bad", "item_id": 1, "action": "click", "timestamp_ms": now_ms}
    return _json(event | changes)


def _json(event: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


IMPRESSIONS: Mapping[str, tuple[Reason, Build]] = {
    "no value": (Reason.EMPTY_VALUE, lambda now: None),
    "empty value": (Reason.EMPTY_VALUE, lambda now: b""),
    "5 MB": (Reason.TOO_LARGE, lambda now: _impression(now, padding="x" * _HUGE_BYTES)),
    "not UTF-8": (Reason.NOT_UTF8, lambda now: _impression(now)[:-1] + b',"name":"\xff\xfe"}'),
    "cut off": (Reason.MALFORMED_JSON, lambda now: _impression(now)[:-7]),
    "not JSON": (Reason.MALFORMED_JSON, lambda now: b"hello, world"),
    "two objects": (Reason.MALFORMED_JSON, lambda now: _impression(now) + _impression(now)),
    "a list": (Reason.WRONG_TYPE, lambda now: b"[" + _impression(now) + b"]"),
    "no user": (Reason.MISSING_FIELD, lambda now: _impression(now, user_id=None)),
    "user as text": (Reason.WRONG_TYPE, lambda now: _impression(now, user_id="17")),
    "user with a fraction": (Reason.WRONG_TYPE, lambda now: _impression(now, user_id=17.5)),
    "user beyond 48 bits": (Reason.OUT_OF_RANGE, lambda now: _impression(now, user_id=1 << 50)),
    "no items": (Reason.OUT_OF_RANGE, lambda now: _impression(now, item_ids=[])),
    "65 items": (Reason.OUT_OF_RANGE, lambda now: _impression(now, item_ids=list(range(65)))),
    "schema version 99": (Reason.UNKNOWN_SCHEMA_VERSION, lambda now: _impression(now, schema_version=99)),
    "negative time": (Reason.BAD_TIMESTAMP, lambda now: _impression(now, timestamp_ms=-1)),
    "time in seconds": (Reason.BAD_TIMESTAMP, lambda now: _impression(now, timestamp_ms=now // 1000)),
    "time in the far future": (Reason.BAD_TIMESTAMP, lambda now: _impression(now, timestamp_ms=now * 2)),
}
"""{kind: (reason that a feed must give, builder of the value from the present time in milliseconds)}, impressions."""

ACTIONS: Mapping[str, tuple[Reason, Build]] = {
    "cut off": (Reason.MALFORMED_JSON, lambda now: _action(now)[:-7]),
    "no item": (Reason.MISSING_FIELD, lambda now: _action(now, item_id=None)),
    "value as text": (Reason.WRONG_TYPE, lambda now: _action(now, value="4.5")),
    "empty action": (Reason.OUT_OF_RANGE, lambda now: _action(now, action="")),
    "schema version 99": (Reason.UNKNOWN_SCHEMA_VERSION, lambda now: _action(now, schema_version=99)),
    "negative time": (Reason.BAD_TIMESTAMP, lambda now: _action(now, timestamp_ms=-1)),
}
"""The same, actions."""
