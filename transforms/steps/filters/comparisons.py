"""Comparisons of the filters: one operation with its operands, applied to a whole column.

`gt`, `ge`, `eq`, `lt`, `le` and `neq` compare a value with one operand. `between` is true where lo <= x < hi. `in` and
`not-in` ask whether the value is one of many operands. `startswith` and `endswith` ask whether the value begins or ends
with one of several. `any`, `all` and `diff` compare the set of a row's values with the operands. Strings are compared
byte by byte. Floats and doubles are compared as float32, because operands are float32; NaN equals nothing.
"""

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from millrace.protos import record_pb2
from millrace.transforms.batch import list_columns
from millrace.transforms.steps.step import Step

ORDER_OPS = ("gt", "ge", "eq", "lt", "le", "neq", "between")
MEMBER_OPS = ("in", "not-in")
TEXT_OPS = ("startswith", "endswith")
SET_OPS = ("any", "all", "diff")

MAX_OPERAND_FILE_BYTES = 64 << 20

MAX_SCANS = 8
"""Up to this many passes over the values are cheaper than one pass with a hash table."""


class Kind(StrEnum):
    """What is compared: signed or unsigned integers, float32 or bytes. The texts are parts of error messages."""

    INT = "an integer"
    UINT = "an unsigned integer"
    FLOAT = "a float"
    BYTES = "a string"

    @property
    def arrow_type(self) -> pa.DataType:
        return _ARROW_TYPES[self]

    @property
    def operand_field(self) -> str:
        """The setting that holds operands of this kind."""
        return {Kind.FLOAT: "float_operand", Kind.BYTES: "string_operand"}.get(self, "int_operand")

    @property
    def scalar_ops(self) -> tuple[str, ...]:
        """Operations on one value of this kind."""
        return (*ORDER_OPS, *MEMBER_OPS, *TEXT_OPS) if self is Kind.BYTES else (*ORDER_OPS, *MEMBER_OPS)


_ARROW_TYPES = {Kind.INT: pa.int64(), Kind.UINT: pa.uint64(), Kind.FLOAT: pa.float32(), Kind.BYTES: pa.binary()}
_FILE_LISTS = {"float_list": (Kind.FLOAT,), "int64_list": (Kind.INT, Kind.UINT), "bytes_list": (Kind.BYTES,)}
_OPERAND_FIELDS = ("float_operand", "int_operand", "string_operand")
_COMPARE: dict[str, Callable[[pa.Array, pa.Scalar], pa.BooleanArray]] = {
    "gt": pc.greater,
    "ge": pc.greater_equal,
    "eq": pc.equal,
    "lt": pc.less,
    "le": pc.less_equal,
    "neq": pc.not_equal,
}


class Comparison(NamedTuple):
    """An operation and its operands: an array of the `arrow_type` of the kind that is compared."""

    op: str
    operands: pa.Array

    def scalars(self, values: pa.Array) -> np.ndarray:
        """bool [n]: for which of `values`, [n] without nulls, the operation is true."""
        return compare(self.op, values, self.operands)

    def sets(self, column: pa.ListArray) -> np.ndarray:
        """bool [rows]: for which rows, as sets of integers, the operation is true; a null is the empty set."""
        return compare_sets(self.op, column, self.operands.to_numpy())


def comparison(step: Step, kind: Kind, ops: Collection[str]) -> Comparison:
    """The comparison that a step's settings `op`, `*_operand` and `operand_filepath` describe.

    An operand of an unsigned field is the int64 with the same bits: -1 is 2^64 - 1.

    Args:
      kind: of the values that the step compares.
      ops: operations that the step allows.

    Raises: UserError naming the wrong setting.
    """
    config = step.config
    if config.op not in ops:
        raise step.wrong("op", config.op, f"is no operation on {kind}", f"choose {', '.join(ops)}")
    for name in _OPERAND_FIELDS:
        if name != kind.operand_field and getattr(config, name):
            raise step.wrong(name, _shown(getattr(config, name)), f"each value is {kind}", f"give {kind.operand_field}")
    given = list(getattr(config, kind.operand_field))
    if getattr(config, "operand_filepath", ""):
        return Comparison(config.op, _operands_of_file(step, kind, given))
    _check_number_of(step, kind, given)
    return Comparison(config.op, _array(step, kind.operand_field, kind, given))


def compare(op: str, values: pa.Array, operands: pa.Array) -> np.ndarray:
    """bool [n]: for which of `values`, [n] without nulls, `op` with `operands` is true.

    Args:
      op: one of `ORDER_OPS` or `MEMBER_OPS`, for bytes also of `TEXT_OPS`.
      values: numbers or strings; may be dictionary-encoded.
      operands: of the `arrow_type` of a kind, to which `values` are cast.
    """
    if pa.types.is_dictionary(values.type):
        if len(values.dictionary) > len(values):
            return compare(op, values.dictionary_decode(), operands)
        return compare(op, values.dictionary, operands)[values.indices.to_numpy(zero_copy_only=False)]
    plain = _as_type(values, operands.type)
    if op in MEMBER_OPS:
        found = pc.is_in(_one_zero(plain), value_set=_one_zero(operands))
        return _numpy(found) if op == "in" else ~_numpy(found)
    if op in TEXT_OPS:
        return _any_affix(op, plain, operands)
    if op == "between":
        low, high = operands
        return _numpy(pc.and_(pc.greater_equal(plain, low), pc.less(plain, high)))
    return _numpy(_COMPARE[op](plain, operands[0]))


def compare_sets(op: str, column: pa.ListArray, operands: np.ndarray) -> np.ndarray:
    """bool [rows]: `any` of the operands is in the row, `all` of them are, or none is (`diff`).

    Args:
      column: lists of integers; a null is the empty set.
      operands: int64, in any order, repeated or not.
    """
    values, splits = list_columns.values_and_splits(column)
    wanted = np.unique(operands)
    positions, codes = find_values(values, wanted)
    rows = rows_of(positions, splits)
    if op == "all":
        return have_all(rows, codes, len(wanted), len(column))
    found = np.zeros(len(column), bool)
    found[rows] = True
    return found if op == "any" else ~found


def find_values(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, codes), int64 [hits] each: `values[positions[i]] == wanted[codes[i]]`, positions in no order.

    Args:
      values: integers, [n].
      wanted: distinct integers, [m].
    """
    if len(wanted) <= MAX_SCANS:
        hits = [np.flatnonzero(values == each) for each in wanted.tolist()]
        return np.concatenate([_NONE, *hits]), np.repeat(np.arange(len(hits)), [len(each) for each in hits])
    codes = pc.index_in(_int64(values), value_set=_int64(wanted))
    found = np.flatnonzero(_numpy(codes.is_valid()))
    return found, codes.take(pa.array(found)).to_numpy().astype(np.int64)


def rows_of(positions: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """int64 [n]: the row that holds each position of the values, by row splits [rows + 1]."""
    return np.searchsorted(splits, positions, side="right") - 1


def have_all(rows: np.ndarray, codes: np.ndarray, number: int, num_rows: int) -> np.ndarray:
    """bool [num_rows]: whether the pairs (row, code) hold every code of [0, number) for a row.

    Args:
      rows, codes: int64 [n] each.
    """
    enough = np.bincount(rows, minlength=num_rows) >= number
    chosen = enough[rows]
    index = np.cumsum(enough) - 1
    seen = np.zeros((int(enough.sum()), number), bool)  # no larger than there are pairs
    seen[index[rows[chosen]], codes[chosen]] = True
    enough[enough] = seen.all(axis=1)
    return enough


_NONE = np.zeros(0, np.int64)


def _as_type(values: pa.Array, type: pa.DataType) -> pa.Array:
    if pa.types.is_uint64(type) and not pa.types.is_unsigned_integer(values.type):
        return values.cast(pa.int64()).view(type)
    return values.cast(type)


def _one_zero(values: pa.Array) -> pa.Array:
    """`values` with 0.0 for -0.0: they are equal, but a hash table takes them for two values."""
    return pc.add(values, pa.scalar(0.0, values.type)) if pa.types.is_floating(values.type) else values


def _any_affix(op: str, values: pa.Array, operands: pa.Array) -> np.ndarray:
    matches = pc.starts_with if op == "startswith" else pc.ends_with
    found = np.zeros(len(values), bool)
    for operand in operands.to_pylist():
        found |= _numpy(matches(values, pattern=operand))
    return found


def _check_number_of(step: Step, kind: Kind, given: Sequence[Any]) -> None:
    op = step.config.op
    wanted = {"between": 2}.get(op, 1)
    if op in (*MEMBER_OPS, *TEXT_OPS, *SET_OPS):
        if not given:
            raise step.wrong(kind.operand_field, "", f"{op} needs an operand", "give one or more")
    elif len(given) != wanted:
        raise step.wrong(kind.operand_field, _shown(given), f"{op} needs {wanted}", f"give {wanted}")


def _operands_of_file(step: Step, kind: Kind, given: Sequence[Any]) -> pa.Array:
    path, op = step.config.operand_filepath, step.config.op
    if given:
        raise step.wrong(kind.operand_field, _shown(given), "operand_filepath is there too", "give one of the two")
    if op not in MEMBER_OPS:
        raise step.wrong("operand_filepath", path, f"{op} takes no file", f"choose {' or '.join(MEMBER_OPS)}")
    values = _read_values(step, path)
    found = values.WhichOneof("type")
    if found is None or kind not in _FILE_LISTS[found]:
        raise step.wrong("operand_filepath", path, f"holds {found or 'no list'}, each value is {kind}", "write a list")
    return _array(step, "operand_filepath", kind, list(getattr(values, found).value))


def _read_values(step: Step, path: str) -> record_pb2.FilterValues:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_OPERAND_FILE_BYTES + 1)
    except OSError as error:
        raise step.wrong("operand_filepath", path, f"cannot be read ({error.strerror})", "check the path") from error
    if len(data) > MAX_OPERAND_FILE_BYTES:
        raise step.wrong("operand_filepath", path, "too large", f"stay within {MAX_OPERAND_FILE_BYTES} bytes")
    try:
        return record_pb2.FilterValues.FromString(data)
    except DecodeError as error:
        raise step.wrong("operand_filepath", path, "holds no FilterValues message", "serialize one into it") from error


def _array(step: Step, name: str, kind: Kind, operands: Sequence[Any]) -> pa.Array:
    if kind is Kind.BYTES:
        return pa.array([each.encode("utf-8") if isinstance(each, str) else each for each in operands], pa.binary())
    if kind is Kind.FLOAT:
        array = np.array(operands, np.float32)
        if np.isnan(array).any():
            raise step.wrong(name, "nan", "is no number, so every comparison with it fails", "give a number")
        return pa.array(array)
    return _as_type(pa.array(operands, pa.int64()), kind.arrow_type)


def _shown(values: Collection[Any]) -> str:
    shown = ", ".join(str(value) for value in list(values)[:8])
    return f"[{shown}, ...]" if len(values) > 8 else f"[{shown}]"


def _int64(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.int64, copy=False))


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
