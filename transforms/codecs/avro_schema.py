"""Avro schemas to Arrow schemas and back, by the same rules for files and Kafka values.

A field's property `millrace.kind` says which integers are fids (`fid_v1`, `fid_v2`). Its property `millrace.name` holds
the column's name where that is no Avro name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import fastavro
import pyarrow as pa
from fastavro.schema import SchemaParseException

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.codecs.tables import is_canonical

KIND_PROPERTY = "millrace.kind"
NAME_PROPERTY = "millrace.name"

MAX_SCHEMA_BYTES = 1 << 20
"""Longest schema that is parsed: it may come from a file or a registry that others write."""

_MAX_DEPTH = 32  # of nested types, far below Python's limit of recursion
_CANONICAL_KEY = b"millrace.batch"
_ARROW_TYPES = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "fixed": pa.binary(),
    "enum": pa.string(),
}

Schema = dict[str, Any]
"""A record schema as fastavro parses it."""


def parse_schema(schema: str | Mapping[str, Any], field: str = "schema") -> Schema:
    """Parses and checks a record schema: JSON text, or dictionaries. Logical types count as the types beneath them.

    Raises: UserError naming `field` for anything but a record, for recursive types and for records of no bytes.
    """
    try:
        if isinstance(schema, str) and len(schema) > MAX_SCHEMA_BYTES:
            raise ValueError(f"it has more than {MAX_SCHEMA_BYTES} bytes")
        plain = _without_logical_types(json.loads(schema) if isinstance(schema, str) else schema, 0)
        parsed = fastavro.parse_schema(plain)
        if not isinstance(parsed, dict) or parsed.get("type") != "record" or not parsed["fields"]:
            raise ValueError("it is not a record with fields")
        if not _check_bounded(parsed, {}, 0):
            raise ValueError("its records take no bytes")
    except (ValueError, TypeError, KeyError, RecursionError, SchemaParseException) as error:
        raise UserError(field, _name_of(schema), f"is no schema that can be used ({error})", "correct it") from error
    return parsed


def _name_of(schema: str | Mapping[str, Any]) -> str:
    return schema[:40] if isinstance(schema, str) else str(schema.get("name", schema))[:40]


def _without_logical_types(schema: Any, depth: int) -> Any:
    if depth > 4 * _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(schema, dict):
        items = ((key, value) for key, value in schema.items() if key != "logicalType")
        return {
            key: value if key == "default" or key.startswith("__") else _without_logical_types(value, depth + 1)
            for key, value in items
        }
    return [_without_logical_types(each, depth + 1) for each in schema] if isinstance(schema, list) else schema


def _check_bounded(schema: Any, open_names: dict[str, bool], depth: int) -> bool:
    """Whether a value takes at least one byte. ValueError for recursion and for lists of values that take none.

    With either, a few bytes of input could make a decoder work or allocate without end.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(schema, list):
        for each in schema:
            _check_bounded(each, open_names, depth + 1)
        return True
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, dict | list):
        return _check_bounded(kind, open_names, depth + 1)
    if kind in ("record", "error"):
        if open_names.get(schema["name"]) is False:
            raise ValueError(f"{schema['name']} holds itself")
        open_names[schema["name"]] = False
        sizes = [_check_bounded(each["type"], open_names, depth + 1) for each in schema["fields"]]
        open_names[schema["name"]] = True
        return any(sizes)
    if kind in ("array", "map"):
        takes_bytes = _check_bounded(schema["items" if kind == "array" else "values"], open_names, depth + 1)
        if kind == "array" and not takes_bytes:
            raise ValueError("a list of values that take no bytes")
        return True
    if kind in open_names:
        if not open_names[kind]:
            raise ValueError(f"{kind} holds itself")
        return True
    if kind == "fixed":
        return bool(schema["size"] > 0)
    return kind != "null"


def arrow_schema(schema: Schema, field: str = "schema") -> pa.Schema:
    """The Arrow schema of a record's values. UserError for a field that is no column: a map, a record, a wide union."""
    fields = []
    for each in schema["fields"]:
        kind = _arrow_type(each["type"])
        if kind is None:
            problem = "is neither a value, nor a list of values, nor null"
            raise UserError(field, each["name"], problem, "leave it out of the reader's schema")
        metadata = {record_batch.KIND_KEY: str(each[KIND_PROPERTY]).encode()} if KIND_PROPERTY in each else None
        if metadata == {record_batch.KIND_KEY: b"fid_v2"}:
            metadata = record_batch.FID_METADATA
        fields.append(pa.field(each["name"], kind, metadata=metadata))
    mark = schema.get(_CANONICAL_KEY.decode())
    return pa.schema(fields, metadata={_CANONICAL_KEY: str(mark).encode()} if mark else None)


def column_names(schema: Schema) -> list[str]:
    """The column of each field."""
    return [each.get(NAME_PROPERTY, each["name"]) for each in schema["fields"]]


def _arrow_type(schema: Any) -> pa.DataType | None:
    if isinstance(schema, list):
        rest = [each for each in schema if each != "null"]
        return _arrow_type(rest[0]) if len(rest) == 1 else None
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, dict | list):
        return _arrow_type(kind)
    if kind == "array":
        items = _arrow_type(schema["items"])
        return None if items is None else pa.list_(items)
    return _ARROW_TYPES.get(kind)


def avro_schema(schema: pa.Schema, name: str = "Row") -> Schema:
    """The record schema of a batch; every field may be null. UserError for a type that Avro does not have."""
    fields = [_avro_field(field) for field in schema]
    names = [field["name"] for field in fields]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise UserError("column", twice, "two columns have this name in Avro", "rename one of them")
    mark = {_CANONICAL_KEY.decode(): "canonical"} if is_canonical(schema) else {}
    parsed = fastavro.parse_schema({"type": "record", "name": name, "fields": fields, **mark})
    assert isinstance(parsed, dict)
    return parsed


def _avro_field(field: pa.Field) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": re.sub(r"^(?=\d)|\W", "_", field.name, flags=re.ASCII) or "_",
        "type": ["null", _avro_type(field.type, field.name)],
        "default": None,
    }
    if made["name"] != field.name:
        made[NAME_PROPERTY] = field.name
    kind = (field.metadata or {}).get(record_batch.KIND_KEY)
    if kind is not None:
        made[KIND_PROPERTY] = "fid_v2" if kind == b"fid" else kind.decode()
    return made


def _avro_type(type: pa.DataType, column: str) -> Any:
    if pa.types.is_list(type):
        return {"type": "array", "items": _avro_type(type.value_type, column)}
    for avro, arrow in _ARROW_TYPES.items():
        if type == arrow:
            return avro
    if pa.types.is_integer(type):
        return "long"
    raise UserError("column", column, f"{type} has no counterpart in Avro", "cast it or leave it out")
