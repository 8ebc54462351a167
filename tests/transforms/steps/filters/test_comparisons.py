"""Operations on scalars and sets, their operands and operand files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from millrace.protos import record_pb2
from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.steps.filters import comparisons
from millrace.transforms.steps.filters.filters import FilterByValue
from millrace.transforms.steps.step import StepContext
from tests.conformance.covers import covers


def _bytes(*values: str) -> pa.Array:
    return pa.array([value.encode() for value in values], pa.binary())


@covers("data:v11")
@pytest.mark.parametrize(
    ("op", "operands", "kept"),
    [
        ("eq", [2], True),
        ("neq", [2], False),
        ("le", [3], True),
        ("ge", [1], True),
        ("between", [1, 3], True),
        ("in", [1, 2, 3], True),
        ("not-in", [1, 2, 3], False),
        ("gt", [2], False),
        ("lt", [3], True),
        ("between", [1, 2], False),
    ],
)
def test_an_integer_is_compared(op: str, operands: list[int], kept: bool) -> None:
    found = comparisons.compare(op, pa.array([2]), pa.array(operands, pa.int64()))
    assert found.tolist() == [kept]


@covers("data:v11")
def test_between_holds_its_lower_end_and_not_its_upper() -> None:
    assert comparisons.compare("between", pa.array([1]), pa.array([0, 1])).tolist() == [False]
    assert comparisons.compare("between", pa.array([1]), pa.array([1, 2])).tolist() == [True]


@covers("data:v11")
@pytest.mark.parametrize(
    ("op", "operands", "kept"),
    [
        ("any", [1, 2], True),
        ("any", [1, 4], False),
        ("all", [2, 3], True),
        ("all", [2, 3, 4], False),
        ("diff", [1, 4], True),
        ("diff", [1, 2, 4], False),
    ],
)
def test_a_set_is_compared(op: str, operands: list[int], kept: bool) -> None:
    column = pa.array([[2, 3]], pa.list_(pa.int32()))
    assert comparisons.compare_sets(op, column, np.array(operands)).tolist() == [kept]


@covers("data:v11")
@pytest.mark.parametrize(
    ("op", "operands"),
    [
        ("le", ["hello1"]),
        ("ge", ["hell"]),
        ("between", ["hell", "hello1"]),
        ("startswith", ["hell"]),
        ("endswith", ["nothing", "llo"]),
    ],
)
def test_a_string_is_compared(op: str, operands: list[str]) -> None:
    plain = pa.array(["hello"])
    assert comparisons.compare(op, plain, _bytes(*operands)).tolist() == [True]
    assert comparisons.compare(op, plain.dictionary_encode(), _bytes(*operands)).tolist() == [True]


def test_strings_are_ordered_by_their_bytes() -> None:
    values = pa.array(["Z", "a", "é", "\U0001f600"])
    assert comparisons.compare("gt", values, _bytes("z")).tolist() == [False, False, True, True]


def test_operands_of_sets_may_be_unsorted_and_repeated() -> None:
    column = pa.array([[3, 1, 2], [2, 2, 2], [], None, [1, 3, 1]], pa.list_(pa.int64()))
    assert comparisons.compare_sets("all", column, np.array([3, 1, 3, 1])).tolist() == [True, False, False, False, True]
    assert comparisons.compare_sets("any", column, np.array([9, 2, 2])).tolist() == [True, True, False, False, False]
    assert comparisons.compare_sets("diff", column, np.array([9, 2, 2])).tolist() == [False, False, True, True, True]


def test_many_operands_are_found_like_few() -> None:
    column = pa.array([[5], [5, 100], [100, 7, 5000], []], pa.list_(pa.int32()))
    many = np.arange(0, 5001, 5)
    assert comparisons.compare_sets("any", column, many).tolist() == [True, True, True, False]
    assert comparisons.compare_sets("all", column, many).tolist() == [False] * 4
    assert comparisons.compare_sets("any", column, np.array([2**40])).tolist() == [False] * 4


def test_values_of_a_null_row_are_not_seen() -> None:
    mask = pa.array([False, True, False])
    column = pa.ListArray.from_arrays(pa.array([0, 2, 3, 5], pa.int32()), pa.array([1, 2, 3, 4, 5]), mask=mask)
    assert comparisons.compare_sets("any", column, np.array([3])).tolist() == [False] * 3
    assert comparisons.compare_sets("any", column, np.array([4])).tolist() == [False, False, True]


def test_floats_are_equal_as_float32() -> None:
    operands = pa.array([0.1], pa.float32())
    assert comparisons.compare("eq", pa.array([0.1, 0.1 + 1e-10, 0.2]), operands).tolist() == [True, True, False]
    assert comparisons.compare("in", pa.array([0.1, 0.1 + 1e-10, 0.2]), operands).tolist() == [True, True, False]
    assert comparisons.compare(
        "in", pa.array([-0.0, np.nan], pa.float32()), pa.array([0.0], pa.float32())
    ).tolist() == [
        True,
        False,
    ]


def test_unsigned_numbers_are_ordered_as_unsigned() -> None:
    values = pa.array([-1, 5], pa.int64())
    assert comparisons.compare("gt", values, pa.array([2**63], pa.uint64())).tolist() == [True, False]
    assert comparisons.compare("in", values, pa.array([2**64 - 1], pa.uint64())).tolist() == [True, False]


def _comparison(**settings: object) -> comparisons.Comparison:
    config = pb.FilterByValueConfig(**settings)  # type: ignore[arg-type]
    return FilterByValue(config, StepContext(id="f"))._comparison


def _file(folder: Path, **lists: object) -> str:
    path = folder / "operands.pb"
    path.write_bytes(record_pb2.FilterValues(**lists).SerializeToString())  # type: ignore[arg-type]
    return str(path)


def test_operands_come_from_a_file(tmp_path: Path) -> None:
    path = _file(tmp_path, int64_list=record_pb2.Int64List(value=[3, 1, -1]))
    assert _comparison(field_name="chnid", op="in", operand_filepath=path).operands.to_pylist() == [3, 1, -1]
    assert _comparison(field_name="uid", op="not-in", operand_filepath=path).operands.to_pylist() == [3, 1, 2**64 - 1]
    path = _file(tmp_path, float_list=record_pb2.FloatList(value=[0.5]))
    assert _comparison(field_name="q_pred", op="in", operand_filepath=path).operands.to_pylist() == [0.5]
    path = _file(tmp_path, bytes_list=record_pb2.BytesList(value=[b"\xff"]))
    assert _comparison(field_name="did", op="in", operand_filepath=path).operands.to_pylist() == [b"\xff"]


def test_a_wrong_operand_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, int64_list=record_pb2.Int64List(value=[1]))
    with pytest.raises(UserError, match="f.operand_filepath=.*holds int64_list, each value is a string"):
        _comparison(field_name="did", op="in", operand_filepath=path)
    with pytest.raises(UserError, match="gt takes no file"):
        _comparison(field_name="chnid", op="gt", operand_filepath=path)
    with pytest.raises(UserError, match="f.int_operand=.*operand_filepath is there too"):
        _comparison(field_name="chnid", op="in", operand_filepath=path, int_operand=[1])
    with pytest.raises(UserError, match="cannot be read"):
        _comparison(field_name="chnid", op="in", operand_filepath=f"{path}.none")
    monkeypatch.setattr(comparisons, "MAX_OPERAND_FILE_BYTES", 2)
    with pytest.raises(UserError, match="too large"):
        _comparison(field_name="chnid", op="in", operand_filepath=path)
    (tmp_path / "operands.pb").write_bytes(b"\xff")
    with pytest.raises(UserError, match="no FilterValues message"):
        _comparison(field_name="chnid", op="in", operand_filepath=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"op": "over", "int_operand": [1]}, "f.op=over: is no operation on an integer"),
        ({"op": "startswith", "int_operand": [1]}, "f.op=startswith"),
        ({"op": "any", "int_operand": [1]}, "f.op=any"),
        ({"op": "gt"}, "f.int_operand=.*gt needs 1"),
        ({"op": "gt", "int_operand": [1, 2]}, "gt needs 1"),
        ({"op": "between", "int_operand": [1]}, "between needs 2"),
        ({"op": "in"}, "in needs an operand"),
        ({"op": "gt", "float_operand": [1]}, "f.float_operand=.*each value is an integer; give int_operand"),
        ({"op": "gt", "string_operand": ["1"]}, "f.string_operand="),
        ({"field_name": "q_pred", "op": "gt", "float_operand": [float("nan")]}, "f.float_operand=nan"),
        ({"field_name": "actions", "op": "in", "int_operand": [1]}, "f.op=in.*choose any, all, diff"),
        ({"field_name": "nothing", "op": "in", "int_operand": [1]}, "f.field_name=nothing"),
    ],
)
def test_a_wrong_operation_is_refused_by_field(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _comparison(**({"field_name": "chnid"} | settings))
