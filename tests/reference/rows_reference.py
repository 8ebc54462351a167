"""Row-wise references of decoding, fids, labels, sampling and shards: one dictionary at a time."""

import json
import math
from typing import Any

from millrace.transforms.feed.config import FidFeature, LabelRule
from tests.reference.siphash_reference import siphash24

_ID = range(1 << 48)
_MASK = (1 << 64) - 1


def is_good_impression(value: bytes | None, context: dict[str, str], newest_ms: int) -> bool:
    event = _load(value)
    if event is None or not _common(event, newest_ms) or not _is_int(event.get("user_id"), _ID):
        return False
    items = event.get("item_ids")
    if not isinstance(items, list) or not 1 <= len(items) <= 64 or not all(_is_int(item, _ID) for item in items):
        return False
    fields = event.get("context")
    if not context or fields is None:
        return True
    return isinstance(fields, dict) and all(_good_context(fields.get(name), dtype) for name, dtype in context.items())


def is_good_action(value: bytes | None, newest_ms: int) -> bool:
    event = _load(value)
    if event is None or not _common(event, newest_ms) or not _is_int(event.get("item_id"), _ID):
        return False
    action, number = event.get("action"), event.get("value")
    if not isinstance(action, str) or not 1 <= len(action.encode()) <= 1024:
        return False
    return number is None or (_is_number(number) and math.isfinite(number))


def fid_of(event: dict[str, Any], feature: FidFeature) -> list[int]:
    value = event.get(feature.column)
    if value is None:
        return []
    if feature.column_dtype == "string":
        value = siphash24(value.encode("utf-8"), b"0123456789123456") % (1 << 48)
    return [(feature.slot << 48) | value]


def label_of(actions: list[tuple[str, float | None]], rule: LabelRule) -> float:
    for name, value in actions:
        if name in rule.actions and (rule.min_value is None or (value is not None and value >= rule.min_value)):
            return 1.0
    return 0.0


def uniform_of(seed: int, transform: str, provenance: tuple[int, int, int]) -> float:
    mixed = siphash24(f"{seed}/{transform}".encode(), b"0123456789123456")
    for part in provenance:
        mixed = _mix64((mixed + part * 0x9E3779B97F4A7C15) & _MASK)
    return (mixed >> 11) * 2.0**-53


def _mix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def shard_of(fid: int, num_shards: int) -> int:
    return fid % num_shards


def _load(value: bytes | None) -> dict[str, Any] | None:
    if not value or len(value) > 1 << 20:
        return None
    try:
        event = json.loads(value.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


_DECODED = {
    "schema_version",
    "request_id",
    "user_id",
    "item_ids",
    "item_id",
    "action",
    "timestamp_ms",
    "value",
    "device",
}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs if name in _DECODED]
    if len(names) != len(set(names)):
        raise ValueError("a name twice")
    return dict(pairs)


def _common(event: dict[str, Any], newest_ms: int) -> bool:
    request = event.get("request_id")
    return (
        _is_int(event.get("schema_version"), range(1, 2))
        and isinstance(request, str)
        and 1 <= len(request.encode()) <= 256
        and _is_int(event.get("timestamp_ms"), range(631_152_000_000, newest_ms + 1))
    )


def _good_context(value: Any, dtype: str) -> bool:
    if value is None:
        return True
    return _is_int(value, _ID) if dtype == "int64" else isinstance(value, str) and len(value.encode()) <= 1024


def _is_int(value: Any, allowed: range) -> bool:
    return type(value) is int and value in allowed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
