"""Arrow tables of any origin to canonical batches.

A column is a feature: integers become `list<int64>`, floats `list<float>`, doubles `list<double>`, strings and bytes
`list<binary>`; a plain value becomes a list of one, and a null stays null. Integers are fids where the field's
metadata or the caller says so. `__LABEL__` becomes `list<float>`, and a column named after a field of the line id, such
as `__REQ_TIME__`, gets the type of that field. Batches that Millrace wrote have a mark, which is removed; their columns
stay as they are.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.list_columns import list_array, row_of_value, splits_of

KINDS = ("int", "fid_v1", "fid_v2", "float", "double", "bytes")
"""The kinds of values that a column can be declared to hold."""

_CODES = {1: "fid_v1", 2: "fid_v2", 3: "float", 4: "double", 5: "int", 6: "bytes"}
_LEAF_TYPES = {
    "int": pa.int64(),
    "fid_v1": pa.int64(),
    "fid_v2": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
}
_METADATA = {"fid_v1": record_batch.FID_V1_METADATA, "fid_v2": record_batch.FID_METADATA}
_FIRST_ID = 10_000
_CANONICAL_KEY, _CANONICAL = b"millrace.batch", b"canonical"
_MAX_META_BYTES = 16 << 20


def mark_canonical(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with the mark that it is canonical, for a file."""
    return batch.replace_schema_metadata((batch.schema.metadata or {}) | {_CANONICAL_KEY: _CANONICAL})


def is_canonical(schema: pa.Schema) -> bool:
    """Whether the batch comes from a file that Millrace wrote."""
    return (schema.metadata or {}).get(_CANONICAL_KEY) == _CANONICAL


def read_kinds(path: Path) -> dict[str, str]:
    """{column: kind} from a JSON file, an object of column names and type codes. UserError for anything else."""
    try:
        if path.stat().st_size > _MAX_META_BYTES:
            raise UserError("column_types", path, f"has more than {_MAX_META_BYTES} bytes", "give the right file")
        codes = json.loads(path.read_bytes())
        return {str(name): _CODES[code] for name, code in codes.items()}
    except OSError as error:
        raise UserError("column_types", path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        choices = ", ".join(f"{code} {kind}" for code, kind in _CODES.items())
        raise UserError("column_types", path, "is not an object of type codes", f"the codes are {choices}") from error


def check_columns(schema: pa.Schema, columns: Sequence[str] | None, kinds: Mapping[str, str]) -> list[str]:
    """The columns to read: `columns`, or all. UserError for one that is unknown, given twice or of a wrong kind."""
    wanted = schema.names if columns is None else list(columns)
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        raise UserError("columns", twice, "is there twice", "name each column once")
    for name in [*wanted, *kinds]:
        if name not in schema.names:
            raise UserError("columns", name, "the file has no such column", f"choose {', '.join(schema.names)}")
    to_canonical(record_batch.empty(pa.schema([schema.field(name) for name in wanted])), kinds)
    return wanted


def to_canonical(batch: pa.RecordBatch, kinds: Mapping[str, str] | None = None) -> pa.RecordBatch:
    """`batch` in the canonical form.

    Args:
      kinds: {column: one of KINDS}, for columns whose type and metadata do not tell.

    Raises: UserError naming a column whose type does not fit.
    """
    fields, columns = [], []
    for index, field in enumerate(batch.schema):
        given = (kinds or {}).get(field.name)
        if given is None and is_canonical(batch.schema):
            made, column = field, batch.column(index)
        elif _known_metadata(field.name) is not None:
            made, column = _metadata_column(field, batch.column(index))
        else:
            made, column = _feature_column(field, batch.column(index), given, index)
        fields.append(made)
        columns.append(column)
    metadata = {key: value for key, value in (batch.schema.metadata or {}).items() if key != _CANONICAL_KEY}
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=metadata or None))


def _known_metadata(name: str) -> pa.DataType | None:
    """The type of the metadata column `name`; None when there is no such metadata."""
    if not re.fullmatch(r"__[A-Z_]+__", name):
        return None
    for field in record_batch.METADATA_FIELDS:
        if field.name == name and name != record_batch.ACTIONS:
            return field.type
    known = line_id.FIELDS.get(name[2:-2].lower())
    return None if known is None else known.type


def _metadata_column(field: pa.Field, column: pa.Array) -> tuple[pa.Field, pa.Array]:
    wanted = _known_metadata(field.name)
    assert wanted is not None
    if field.name == record_batch.LABEL and not _is_list(column.type):
        column = _one_each(column)
    elif field.name == record_batch.ACTIONS and pa.types.is_list(column.type) and _leaf_kind(column.type) == "bytes":
        wanted = pa.list_(pa.string())
    families = {_family(wanted)} | ({"int"} if field.name == record_batch.LABEL else set())
    if _is_list(column.type) != pa.types.is_list(wanted) or _family(column.type) not in families:
        raise _mismatch(field, str(wanted))
    return pa.field(field.name, wanted), _without_null_values(column.cast(wanted, safe=False))


def _feature_column(field: pa.Field, column: pa.Array, given: str | None, index: int) -> tuple[pa.Field, pa.Array]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = given or _kind_of(field)
    if kind not in KINDS:
        raise UserError(f"column {field.name}", kind, "is no kind of column", f"choose {', '.join(KINDS)}")
    found = _leaf_kind(column.type)
    if found is None or _family_of_kind(found) != _family_of_kind(kind):
        raise _mismatch(field, kind)
    if not _is_list(column.type):
        column = _one_each(column)
    column = _without_null_values(column.cast(_with_leaf(column.type, _LEAF_TYPES[kind]), safe=False))
    metadata = {record_batch.ID_KEY: str(_FIRST_ID + index).encode()}
    return pa.field(
        field.name, column.type, metadata=metadata | (field.metadata or {}) | _METADATA.get(kind, {})
    ), column


def _kind_of(field: pa.Field) -> str:
    if record_batch.is_fid_field(field):
        return "fid_v2"
    if record_batch.is_fid_v1_field(field):
        return "fid_v1"
    kind = _leaf_kind(field.type)
    if kind is None:
        raise _mismatch(field, " or ".join(KINDS))
    return kind


def _mismatch(field: pa.Field, wanted: str) -> UserError:
    return UserError(f"column {field.name}", field.type, f"cannot be read as {wanted}", "select other columns or types")


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _leaf_kind(type: pa.DataType) -> str | None:
    """The kind that follows from the type of a column alone; None for a type that no feature has."""
    if _is_list(type):
        return _leaf_kind(type.value_type)
    if pa.types.is_dictionary(type):
        return _leaf_kind(type.value_type)
    if pa.types.is_integer(type):
        return "int"
    if pa.types.is_float64(type):
        return "double"
    if pa.types.is_floating(type):
        return "float"
    if pa.types.is_string(type) or pa.types.is_large_string(type) or _is_bytes(type):
        return "bytes"
    return None


def _is_bytes(type: pa.DataType) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type)


def _family_of_kind(kind: str) -> str:
    return {"fid_v1": "int", "fid_v2": "int", "double": "float"}.get(kind, kind)


def _family(type: pa.DataType) -> str | None:
    """The family of types among which values may be cast and keep their meaning."""
    if pa.types.is_boolean(type):
        return "bool"
    kind = _leaf_kind(type)
    return None if kind is None else _family_of_kind(kind)


def _with_leaf(type: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    return pa.list_(_with_leaf(type.value_type, leaf)) if _is_list(type) else leaf


def _one_each(column: pa.Array) -> pa.Array:
    """A list of one for each value; a null stays null."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return list_array(column.drop_null(), splits_of(valid.astype(np.int64)), nulls=~valid)


def _without_null_values(column: pa.Array) -> pa.Array:
    """A list column without the nulls within its lists, which hold no value."""
    if not pa.types.is_list(column.type) or not column.flatten().null_count or _is_list(column.type.value_type):
        return column
    valid = column.flatten().is_valid().to_numpy(zero_copy_only=False)
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    kept = np.bincount(row_of_value(splits_of(counts))[valid], minlength=len(column))
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    return list_array(column.flatten().drop_null(), splits_of(kept), nulls=nulls)
