"""Why a JSON record cannot be parsed: reason and detail of its dead letter, found one record at a time."""

import json
from typing import Any

import pyarrow as pa

from millrace.transforms.batch.dead_letter import Reason

_MAX_DETAIL = 200
_INT64 = range(-(1 << 63), 1 << 63)


def not_an_object(stripped: bytes) -> tuple[Reason, str]:
    """(reason, detail) for a UTF-8 value without surrounding white space that is not `{...}`."""
    if stripped.startswith(b"\xef\xbb\xbf"):
        return Reason.MALFORMED_JSON, "begins with a byte order mark"
    if b"\0" in stripped:
        return Reason.MALFORMED_JSON, "holds a NUL byte"
    try:
        json.loads(stripped)
    except (ValueError, RecursionError) as error:
        return Reason.MALFORMED_JSON, _cut(str(error))
    return Reason.WRONG_TYPE, "not a JSON object"


def diagnose(value: bytes, schema: pa.Schema, problem: str, version: int | None = None) -> tuple[Reason, str]:
    """(reason, detail) for a value `{...}` that the parser refused with `problem`."""
    return find_fault(value, schema, version) or (Reason.MALFORMED_JSON, _cut(problem))


def find_fault(value: bytes, schema: pa.Schema, version: int | None = None) -> tuple[Reason, str] | None:
    """(reason, detail) for a value `{...}`; None where Python's parser finds nothing wrong with it."""
    try:
        event = json.loads(value)
    except RecursionError:
        return None
    except ValueError as error:
        return Reason.MALFORMED_JSON, _cut(str(error))
    found = event.get("schema_version")
    if version is not None and type(found) is int and found != version:
        return Reason.UNKNOWN_SCHEMA_VERSION, f"schema_version: expected {version}"
    for field in schema:
        wrong = _mismatch(event.get(field.name), field.type, field.name)
        if wrong:
            return wrong
    return None


def _mismatch(value: Any, wanted: pa.DataType, name: str) -> tuple[Reason, str] | None:
    if value is None:
        return None
    if pa.types.is_struct(wanted):
        if not isinstance(value, dict):
            return Reason.WRONG_TYPE, f"{name}: expected object, found {_kind(value)}"
        inner = (_mismatch(value.get(field.name), field.type, f"{name}.{field.name}") for field in wanted)
        return next((wrong for wrong in inner if wrong), None)
    if pa.types.is_list(wanted):
        if not isinstance(value, list):
            return Reason.WRONG_TYPE, f"{name}: expected list, found {_kind(value)}"
        inner = (_mismatch(item, wanted.value_type, name) for item in value)
        return next((wrong for wrong in inner if wrong), None)
    if pa.types.is_string(wanted) or pa.types.is_binary(wanted):
        return None if isinstance(value, str) else (Reason.WRONG_TYPE, f"{name}: expected string, found {_kind(value)}")
    if pa.types.is_boolean(wanted):
        same = isinstance(value, bool)
        return None if same else (Reason.WRONG_TYPE, f"{name}: expected boolean, found {_kind(value)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_floating(wanted):
        return None if number else (Reason.WRONG_TYPE, f"{name}: expected number, found {_kind(value)}")
    if not number or isinstance(value, float):
        return Reason.WRONG_TYPE, f"{name}: expected integer, found {_kind(value)}"
    return None if value in _INT64 else (Reason.OUT_OF_RANGE, f"{name}: outside 64 bits")


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number with a fraction", str: "string", list: "list"}
    return names.get(type(value), "object")


def _cut(text: str) -> str:
    return text[:_MAX_DETAIL]
