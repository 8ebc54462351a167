"""Column types that Example, ExampleBatch and Instance can hold.

`wanted_features` checks which features are to be decoded, `encodable` prepares a batch for encoding.
"""

from collections.abc import Sequence

import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.transforms.batch import line_id, record_batch
from millrace.transforms.batch.data_source import DATA_SOURCE_KEY
from millrace.transforms.batch.provenance import PROVENANCE

_METADATA: dict[str, pa.DataType] = {
    record_batch.LABEL: pa.list_(pa.float32()),
    record_batch.WEIGHT: pa.float32(),
    DATA_SOURCE_KEY: pa.int64(),
    **{field.column: field.type for field in line_id.FIELDS.values()},
}
# Names of features that the decoder turns into metadata columns (`record_codec`), so that no column may have them.
_RESERVED = {"__LINE_ID__", "instance_weight"}
_LEAVES = {pa.int64(), pa.float32(), pa.float64(), pa.binary()}
_MAX_DEPTH = 2  # lists within each other: `float_lists`, the deepest type of a feature, holds lists of lists
_ACTIONS = (line_id.FIELDS["actions"].column, line_id.FIELDS["pre_actions"].column)
_NUMBER_ACTIONS = "give a recipe with action_ids: {click: 1} to `millrace records convert`, which numbers the names"
_CHOICES = "choose int64, float, double or binary, a list of one of them, or a list of such lists"


def wanted_features(features: Sequence[str] | pa.Schema | None) -> pa.Schema | None:
    """The schema that tells the decoder which features to decode, and of which type each must be.

    Args:
      features: names, whose features may have any type; or a schema, in which type null means any type. Metadata and
        provenance columns among them are left out of the result. None: all features.

    Returns: one field per feature, of type null where any type will do; None for all features.
    Raises: UserError for a name that is reserved or given twice, or a type that no feature can have.
    """
    if features is None:
        return None
    if isinstance(features, pa.Schema):
        schema = features
    else:
        schema = pa.schema([pa.field(name, pa.null()) for name in features])
    fields = [field for field in schema if field.name not in _METADATA and field.name not in PROVENANCE]
    for field in fields:
        setting = f"features.{field.name}"
        if _is_reserved(field.name):
            raise UserError(setting, field.type, "a reserved name", "leave it out: it becomes metadata columns")
        if not pa.types.is_null(field.type) and _stored_type(field.type) != field.type:
            raise UserError(setting, field.type, "records have no such type", _CHOICES)
    if len({field.name for field in fields}) < len(fields):
        raise UserError("features", ", ".join(field.name for field in fields), "a name is given twice", "give it once")
    return pa.schema(fields)


def encodable(batch: pa.RecordBatch, is_instance: bool = False) -> pa.RecordBatch:
    """`batch` with each column cast to the type in which a record holds it.

    Provenance and columns of type null are left out. If nothing is left, the result is a column of null weights, which
    keeps the number of rows. Integers and booleans become int64 (a uint64 keeps its bits), float16 becomes float,
    strings become binary, dictionaries their values, also within one or two lists; float and double stay.

    Args:
      is_instance: for Instances, which hold fewer types: no double, no raw feature, no list of lists of fids v1.

    Raises: UserError naming a column whose name, type, kind or values a record cannot hold, such as a null in a list.
    """
    fields, columns = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if field.name in PROVENANCE or pa.types.is_null(field.type):
            continue
        wanted = _METADATA.get(field.name) or _feature_type(field, is_instance)
        column = _cast(field.name, column, wanted)
        _refuse_null_values(field.name, column)
        fields.append(pa.field(field.name, wanted, metadata=field.metadata))
        columns.append(column)
    if not columns:  # a batch of no columns would have no rows either
        fields, columns = [pa.field(record_batch.WEIGHT, pa.float32())], [pa.nulls(batch.num_rows, pa.float32())]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or "\0" in name  # Arrow's C data interface ends a name at its first NUL


def _feature_type(field: pa.Field, is_instance: bool) -> pa.DataType:
    name = f"column {field.name}"
    stored = _stored_type(field.type)
    if _is_reserved(field.name):
        raise UserError(name, field.type, "a reserved name in records", "rename the column")
    if stored is None:
        raise UserError(name, field.type, "records have no such type", _CHOICES)
    kind = (field.metadata or {}).get(record_batch.KIND_KEY)
    leaf, depth = _leaf(stored)
    if (kind == b"raw" and stored != pa.list_(pa.binary())) or (
        kind in (b"fid", b"fid_v1") and not (depth and leaf == pa.int64())
    ):
        raise UserError(name, field.type, f"the kind is {kind.decode()}", "change the kind in the field's metadata")
    if is_instance and (leaf == pa.float64() or kind == b"raw" or (kind == b"fid_v1" and depth == _MAX_DEPTH)):
        raise UserError(name, field.type, "an Instance cannot hold it", "cast the column, or project it away")
    return stored


def _stored_type(type: pa.DataType) -> pa.DataType | None:
    """The type that records have for values of `type`; None when they have none."""
    leaf, depth = _leaf(type)
    if pa.types.is_dictionary(leaf):
        leaf = leaf.value_type
    if pa.types.is_integer(leaf) or pa.types.is_boolean(leaf):
        stored = pa.int64()
    elif pa.types.is_float16(leaf):
        stored = pa.float32()
    elif pa.types.is_string(leaf) or pa.types.is_large_string(leaf) or pa.types.is_large_binary(leaf):
        stored = pa.binary()
    else:
        stored = leaf
    if stored not in _LEAVES or depth > _MAX_DEPTH:
        return None
    for _ in range(depth):
        stored = pa.list_(stored)
    return stored


def _leaf(type: pa.DataType) -> tuple[pa.DataType, int]:
    """(type of the innermost values, number of lists around them)."""
    depth = 0
    while pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        type, depth = type.value_type, depth + 1
    return type, depth


def _cast(name: str, column: pa.Array, wanted: pa.DataType) -> pa.Array:
    if column.type == wanted:
        return column
    try:
        return column.cast(wanted, safe=_leaf(column.type)[0] != pa.uint64())  # a uint64 above 2^63 keeps its bits
    except pa.ArrowException as error:
        remedy = _NUMBER_ACTIONS if name in _ACTIONS else "cast or map the column"
        raise UserError(f"column {name}", column.type, f"does not fit {wanted}", remedy) from error


def _refuse_null_values(name: str, column: pa.Array) -> None:
    while pa.types.is_list(column.type):
        column = column.flatten()
        if column.null_count:
            raise UserError(f"column {name}", column.type, "null inside a list", "drop the nulls")
