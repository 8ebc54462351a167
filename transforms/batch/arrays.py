"""Batches to plain numpy arrays: ragged fids, dense columns of fixed width, fields of the line id.

Fids are always v2. Where a row has no value, fids are an empty row, numbers 0, strings empty and labels INVALID_LABEL.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.runtime.errors import UserError
from millrace.transforms.batch import fid, line_id, list_columns, record_batch

LABEL = "label"
"""A dense feature of this name is read from the column `label`, or else from `__LABEL__`."""

INSTANCE_WEIGHT = "instance_weight"
"""A dense feature of this name is read from the column of that name or `__WEIGHT__`; 1.0 where it is not positive."""

Ragged = tuple[np.ndarray, np.ndarray]
"""(int64 values [n], int64 row splits [rows + 1])"""

_DEFAULTS: dict[str, float | int | bytes] = {"float32": 0.0, "int64": 0, "string": b""}
_NUMPY: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "int64": np.dtype(np.int64), "string": np.dtype(object)}
_SLOT = re.compile(r"(fc_)?slot_(\d+)")


@dataclass(frozen=True)
class DenseFeature:
    """A column of fixed width.

    Args:
      shape: number of values per row; longer rows are cut, shorter ones are filled up with `default`.
      dtype: "float32", "int64" or "string".
      default: None for 0, an empty string, or INVALID_LABEL for `label`.
    """

    name: str
    shape: int = 1
    dtype: str = "float32"
    default: float | int | bytes | None = None

    def check(self) -> None:
        """UserError naming what is wrong."""
        _check_shape(f"dense.{self.name}", self.shape)
        if self.dtype not in _DEFAULTS:
            raise UserError(f"dense.{self.name}.dtype", self.dtype, "unknown", f"choose {', '.join(_DEFAULTS)}")
        kind = type(_DEFAULTS[self.dtype])
        if self.default is not None and not isinstance(self.default, (int, float) if kind is float else kind):
            raise UserError(
                f"dense.{self.name}.default", self.default, f"no {self.dtype}", f"give one of type {kind.__name__}"
            )

    @property
    def padding(self) -> float | int | bytes:
        if self.default is not None:
            return self.default
        return record_batch.INVALID_LABEL if self.name == LABEL else _DEFAULTS[self.dtype]


@dataclass(frozen=True)
class LineIdFeature:
    """A field of the line id: the first `shape` values of a repeated one, filled up with 0; integers and booleans come
    as int64, floats as float32, strings as bytes."""

    name: str
    shape: int = 1

    def check(self) -> None:
        """UserError naming what is wrong."""
        _check_shape(f"extra.{self.name}", self.shape)
        field = line_id.check_field(self.name, "extra")
        if not field.repeated and self.shape != 1:
            raise UserError(f"extra.{self.name}.shape", self.shape, "the field has one value", "choose 1")


@dataclass(frozen=True)
class ArraySpec:
    """Which arrays `to_arrays` makes of a batch.

    Args:
      sparse: names of fid features; `slot_3` and `fc_slot_3` name the same one.
      dense: columns of fixed width.
      extra: fields of the line id.
      concat: if not empty, the name under which all sparse features of a batch of one row come as one `Ragged`, which
        has one row per feature.

    Raises: UserError naming the first wrong entry.
    """

    sparse: tuple[str, ...] = ()
    dense: tuple[DenseFeature, ...] = ()
    extra: tuple[LineIdFeature, ...] = ()
    concat: str = ""

    def __post_init__(self) -> None:
        features: list[DenseFeature | LineIdFeature] = [*self.dense, *self.extra]
        for feature in features:
            feature.check()
        sparse = (self.concat,) if self.concat else self.sparse
        names = [*sparse, *(feature.name for feature in features)]
        for where, given in (("sparse", list(self.sparse)), ("names", names)):
            repeated = next((name for name in given if given.count(name) > 1), None)
            if repeated is not None:
                raise UserError(where, repeated, "given twice", "ask for each name once")


def to_arrays(batch: pa.RecordBatch, spec: ArraySpec) -> dict[str, Ragged | np.ndarray]:
    """{name: values} of the rows of a batch.

    Returns: a `Ragged` for a sparse feature, an array [rows, shape] (float32, int64, or bytes objects) for the others.
    Raises: ValueError naming a column that holds something else.
    """
    ragged = {name: _sparse(batch, name) for name in spec.sparse}
    parsed: dict[str, Ragged | np.ndarray] = dict(ragged)
    if spec.concat:
        parsed = {spec.concat: _concat(ragged, batch.num_rows)}
    for feature in spec.dense:
        parsed[feature.name] = _dense(batch, feature)
    for extra in spec.extra:
        parsed[extra.name] = _line_id_field(batch, extra)
    return parsed


def index_of(schema: pa.Schema, name: str) -> int | None:
    """Index of a feature's column; None when there is none, ValueError when there are two."""
    slot = _SLOT.fullmatch(name)
    for alias in (name, f"slot_{slot[2]}", f"fc_slot_{slot[2]}") if slot else (name,):
        found = schema.get_all_field_indices(alias)
        if len(found) > 1:
            raise ValueError(f"column {alias}: there are {len(found)} of this name")
        if found:
            return found[0]
    return None


def fids_of(field: pa.Field, column: pa.Array) -> Ragged:
    """Fids v2 of a column, nested lists flattened.

    Raises: ValueError when the column holds no fids, or a null among them.
    """
    is_v1 = record_batch.is_fid_v1_field(field)
    if not is_v1 and not record_batch.is_fid_field(field):
        raise ValueError(f"column {field.name}: holds {field.type} and no fids")
    values, splits = _flat_lists(field.name, column)
    return (fid.v1_to_v2(values) if is_v1 else values), splits


def no_fids(rows: int) -> Ragged:
    """A ragged of empty rows."""
    return np.zeros(0, np.int64), np.zeros(rows + 1, np.int64)


def _sparse(batch: pa.RecordBatch, name: str) -> Ragged:
    index = index_of(batch.schema, name)
    return no_fids(batch.num_rows) if index is None else fids_of(batch.schema.field(index), batch.column(index))


def _flat_lists(name: str, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(int64 values, row splits) of lists or of lists of lists, without nulls among the values."""
    if pa.types.is_list(column.type) and pa.types.is_list(column.type.value_type):
        values, inner = _flat_lists(name, column.flatten())
        return values, inner[list_columns.splits_of(list_columns.lengths(column))]
    if not pa.types.is_list(column.type) or column.type.value_type != pa.int64():
        raise ValueError(f"column {name}: fids are list<int64>, not {column.type}")
    if column.values.null_count and column.flatten().null_count:
        raise ValueError(f"column {name}: a null among the values of a row")
    return list_columns.values_and_splits(column)


def _concat(ragged: dict[str, Ragged], rows: int) -> Ragged:
    if rows != 1:
        raise ValueError(f"sparse features are concatenated from a batch of one row; this one has {rows}")
    values = [each for each, _ in ragged.values()]
    return np.concatenate([np.zeros(0, np.int64), *values]), list_columns.splits_of(np.array([len(v) for v in values]))


def _dense(batch: pa.RecordBatch, feature: DenseFeature) -> np.ndarray:
    if feature.name == INSTANCE_WEIGHT:
        weights = _padded(_column(batch, INSTANCE_WEIGHT, record_batch.WEIGHT), feature, batch.num_rows)
        return np.where(weights > 0, weights, np.float32(1))
    fallback = record_batch.LABEL if feature.name == LABEL else None
    return _padded(_column(batch, feature.name, fallback), feature, batch.num_rows)


def _line_id_field(batch: pa.RecordBatch, extra: LineIdFeature) -> np.ndarray:
    field = line_id.FIELDS[extra.name]
    value_type = field.type.value_type if field.repeated else field.type
    column = line_id.column(batch, extra.name)
    if column.type != field.type:
        raise ValueError(f"column {field.column}: holds {column.type}, not {field.type}")
    if pa.types.is_boolean(value_type):
        column = column.cast(pa.int64())
    return _padded(column, DenseFeature(extra.name, extra.shape, _dtype_of(value_type)), batch.num_rows)


def _dtype_of(type: pa.DataType) -> str:
    if pa.types.is_floating(type):
        return "float32"
    return "string" if pa.types.is_string(type) else "int64"


def _column(batch: pa.RecordBatch, name: str, fallback: str | None) -> pa.Array | None:
    for each in (name, fallback) if fallback else (name,):
        index = index_of(batch.schema, each)
        if index is not None:
            return batch.column(index)
    return None


def _padded(column: pa.Array | None, feature: DenseFeature, rows: int) -> np.ndarray:
    """The first `shape` values of each row, [rows, shape]."""
    out = np.full((rows, feature.shape), feature.padding, _NUMPY[feature.dtype])
    if column is None:
        return out
    values, splits = _values_and_splits(column, feature)
    counts = np.diff(splits)
    there = np.arange(feature.shape) < counts[:, None]
    out[there] = values[(splits[:-1, None] + np.arange(feature.shape))[there]]
    return out


def _values_and_splits(column: pa.Array, feature: DenseFeature) -> tuple[np.ndarray, np.ndarray]:
    """(values of the feature's dtype, row splits) of a list or plain column; a null is an empty row or the default."""
    if pa.types.is_list(column.type):
        values, splits = column.flatten(), list_columns.splits_of(list_columns.lengths(column))
    else:
        values, splits = column.drop_null(), list_columns.splits_of(column.is_valid().to_numpy(zero_copy_only=False))
    if not _fits(values.type, feature.dtype):
        raise ValueError(f"column {feature.name}: holds {column.type}, not {feature.dtype}")
    if feature.dtype == "string":
        values = values.cast(pa.binary())
    filled = pc.fill_null(values, pa.scalar(feature.padding, values.type)) if values.null_count else values
    return filled.to_numpy(zero_copy_only=False).astype(_NUMPY[feature.dtype], copy=False), splits


def _fits(type: pa.DataType, dtype: str) -> bool:
    if dtype == "float32":
        return pa.types.is_floating(type)
    if dtype == "int64":
        return pa.types.is_integer(type)
    return pa.types.is_binary(type) or pa.types.is_string(type)


def _check_shape(where: str, shape: int) -> None:
    if shape < 1:
        raise UserError(f"{where}.shape", shape, "not positive", "choose 1 or more values per row")
