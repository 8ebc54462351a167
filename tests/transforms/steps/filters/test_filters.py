"""Filters against their vectors and their row-wise references."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import record_pb2
from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v1, fid_v2
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.recipe.text import parse_integers, parse_recipe
from millrace.transforms.steps.filters import comparisons, filters
from millrace.transforms.steps.filters.comparisons import Kind
from millrace.transforms.steps.step import Counts, Predicate, StepContext
from tests.conformance.covers import covers
from tests.reference import filters_reference as reference
from tests.reference.filter_batches import FIDS_V1, FIDS_V2, FLOATS, INTS, SMALL_INTS, TEXTS, batches

NOW = 1_764_000_000


def _column(
    name: str, values: list[object], type: pa.DataType, kind: dict[bytes, bytes] | None = None
) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, type)], schema=pa.schema([pa.field(name, type, metadata=kind)]))


def _uids(*values: int) -> pa.RecordBatch:
    return _column("__UID__", list(values), pa.int64())


def _by_value(**settings: object) -> filters.FilterByValue:
    return filters.FilterByValue(pb.FilterByValueConfig(**settings))  # type: ignore[arg-type]


def _by_feature(**settings: object) -> filters.FilterByFeatureValue:
    return filters.FilterByFeatureValue(pb.FilterByFeatureValueConfig(**settings))  # type: ignore[arg-type]


@covers("data:v11")
@pytest.mark.parametrize(
    ("op", "operand", "kept"),
    [
        ("eq", [2], True),
        ("neq", [2], False),
        ("le", [3], True),
        ("ge", [1], True),
        ("between", [1, 3], True),
        ("in", [1, 2, 3], True),
        ("not-in", [1, 2, 3], False),
    ],
)
def test_a_field_of_the_line_id_is_compared(op: str, operand: list[int], kept: bool) -> None:
    assert _by_value(field_name="uid", op=op, int_operand=operand).keep(_uids(2)).tolist() == [kept]


_REQ_IDS = ["abckjhfjh", "kjhfjh", "huggfyfixyz", ""]


@covers("data:v12")
def test_strings_that_end_in_one_of_several_are_kept_by_both_filters_whatever_the_order_of_features() -> None:
    columns = {"__REQ_ID__": pa.array(_REQ_IDS), "req_id": pa.array([[text.encode()] for text in _REQ_IDS])}
    columns |= {f"other_{number}": pa.array([[number]] * 4) for number in range(8)}
    by_field = _by_value(field_name="req_id", op="endswith", string_operand=["kjhfjh", "huggfyfi"])
    by_feature = _by_feature(
        feature_name="req_id", field_type="bytes", op="endswith", string_operand=["kjhfjh", "huggfyfi"]
    )
    shuffled = [random.Random(seed).sample(list(columns), len(columns)) for seed in range(20)]
    inputs = [pa.record_batch({name: columns[name] for name in names}) for names in shuffled]
    with ThreadPoolExecutor(4) as pool:
        for kept in [*pool.map(by_field.keep, inputs), *pool.map(by_feature.keep, inputs)]:
            assert kept.tolist() == [True, True, False, False]


@covers("data:v13")
def test_members_come_from_the_settings_or_from_a_file(tmp_path: Path) -> None:
    batch = pa.record_batch(
        {
            "__DID__": ["hello", "world", "excluded", "300", "400"],
            "__CHNID__": [10, 20, 30, 40, 666],
            "chnids": pa.array([[10], [20], [30], [40], [666]]),
        }
    )
    texts, numbers = tmp_path / "texts.pb", tmp_path / "numbers.pb"
    texts.write_bytes(
        record_pb2.FilterValues(
            bytes_list=record_pb2.BytesList(value=[b"hello", b"world", b"excluded"])
        ).SerializeToString()
    )
    numbers.write_bytes(
        record_pb2.FilterValues(int64_list=record_pb2.Int64List(value=[20, 30, 666])).SerializeToString()
    )
    listed = _by_value(field_name="did", op="not-in", string_operand=["hello", "world"])
    in_file = _by_value(field_name="did", op="not-in", operand_filepath=str(texts))
    channel = _by_value(field_name="chnid", op="in", operand_filepath=str(numbers))
    feature = _by_feature(feature_name="chnids", field_type="int64", op="in", operand_filepath=str(numbers))
    dids = batch.column("__DID__")
    assert dids.filter(pa.array(listed.keep(batch))).to_pylist() == ["excluded", "300", "400"]
    assert dids.filter(pa.array(in_file.keep(batch))).to_pylist() == ["300", "400"]
    assert dids.filter(pa.array(channel.keep(batch))).to_pylist() == ["world", "excluded", "400"]
    assert dids.filter(pa.array(feature.keep(batch))).to_pylist() == ["world", "excluded", "400"]


@covers("data:v13")
def test_all_operands_are_in_one_row_only() -> None:
    values = [[10], [20], [20, 30, 666], [40], [666]]
    field = _by_value(field_name="chnids", op="all", int_operand=[20, 30, 666])
    feature = _by_feature(feature_name="chnids", field_type="int64", op="all", int_operand=[20, 30, 666])
    for predicate, name in ((field, "__CHNIDS__"), (feature, "chnids")):
        batch = _column(name, values, pa.list_(pa.int64()))  # type: ignore[arg-type]
        assert np.flatnonzero(predicate.keep(batch)).tolist() == [2]


@covers("data:v13")
def test_floats_above_an_operand_are_kept() -> None:
    predicate = _by_feature(feature_name="price", field_type="float", op="gt", float_operand=[2.5])
    batch = _column("price", [[1.0], [2.0], [3.0], [4.0]], pa.list_(pa.float32()))
    assert np.flatnonzero(predicate.keep(batch)).tolist() == [2, 3]


_FIDS = [6436927642569553426, 6457882839108881377, 6461985998153810495]


@covers("data:v14")
@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"req_time_min": NOW}, True),
        ({"req_time_min": NOW + 1}, False),
        ({"filter_fids": _FIDS[:1]}, False),
        ({"has_fids": _FIDS[:1]}, True),
        ({"select_fids": _FIDS[:2]}, True),
        ({"filter_fids": _FIDS[:1], "has_fids": _FIDS[:1], "select_fids": _FIDS[:2]}, False),
        ({"has_actions": [-1]}, True),
        ({"has_actions": [1, 5]}, True),
        ({"has_actions": [5]}, False),
        ({"filter_fids": [1], "has_fids": [1, _FIDS[2]], "select_fids": _FIDS, "has_actions": [1]}, True),
    ],
)
@pytest.mark.parametrize("kind", [record_batch.FID_METADATA, record_batch.FID_V1_METADATA])
def test_rows_are_kept_by_fids_actions_and_time(
    settings: dict[str, object], kept: bool, kind: dict[bytes, bytes]
) -> None:
    batch = _column("fids", [_FIDS], pa.list_(pa.int64()), kind)
    batch = batch.append_column("__ACTIONS__", pa.array([[-1, 1]], pa.list_(pa.int32())))
    batch = batch.append_column("__REQ_TIME__", pa.array([NOW]))
    config = pb.FilterByFidConfig(**settings)  # type: ignore[arg-type]
    assert filters.FilterByFid(config).keep(batch).tolist() == [kept]


@covers("data:v14")
def test_slots_are_those_of_each_layout() -> None:
    v1 = [int(fid_v1(slot, 9)) for slot in (2, 3)]
    v2 = [int(fid_v2(slot, 9)) for slot in (1024, 4096)]
    batch = _column("old", [v1], pa.list_(pa.int64()), record_batch.FID_V1_METADATA)
    batch = batch.append_column(record_batch.fid_field("new"), pa.array([v2]))
    for slots, kept in (([2, 3, 1024, 4096], True), ([2, 10], False)):
        assert filters.FilterByFid(pb.FilterByFidConfig(select_slots=slots)).keep(batch).tolist() == [kept]


@covers("data:v14")
def test_text_sets_are_read_and_checked() -> None:
    text = "6457882839108881377,6436927642569553426,"
    assert parse_integers(text) == _FIDS[1::-1]
    with pytest.raises(ValueError, match="Invalid integer string: abc"):
        parse_integers("1,abc")
    config = parse_recipe(f'steps: [{{filter_by_fid: {{filter_fids: "{text}"}}}}]').config
    assert config.configs[0].basic_config.filter_by_fid.filter_fids == _FIDS[1::-1]
    with pytest.raises(UserError, match=r"recipe:1: .*filter_fids=1,abc: Invalid integer string: abc"):
        parse_recipe('steps: [{filter_by_fid: {filter_fids: "1,abc"}}]')
    with pytest.raises(UserError, match=r"filter_fids=-1: out of range"):
        parse_recipe('steps: [{filter_by_fid: {filter_fids: "2,-1"}}]')


@covers("data:v18")
@pytest.mark.parametrize(
    ("labels", "kept"), [([-1000, -1], False), ([-1000, 0], True), ([-1, -1], True), ([-1, 1], True), ([5], False)]
)
def test_rows_are_kept_by_labels(labels: list[float], kept: bool) -> None:
    config = pb.FilterByLabelConfig(thresholds=[-100, 0])
    batch = _column("__LABEL__", [labels], pa.list_(pa.float32()))
    assert filters.FilterByLabel(config).keep(batch).tolist() == [kept]


def test_a_label_that_equals_its_threshold_may_not_count() -> None:
    batch = _column("__LABEL__", [[0.0], [0.5]], pa.list_(pa.float32()))
    config = pb.FilterByLabelConfig(thresholds=[0], filter_equal=True)
    assert filters.FilterByLabel(config).keep(batch).tolist() == [False, True]


def test_fids_with_the_upper_bit_are_found_by_their_unsigned_number() -> None:
    raw = (1 << 63) + 5
    batch = _column("old", [[raw - (1 << 64)], [5]], pa.list_(pa.int64()), record_batch.FID_V1_METADATA)
    assert filters.FilterByFid(pb.FilterByFidConfig(has_fids=[raw])).keep(batch).tolist() == [True, False]


def test_many_fids_are_found_like_few() -> None:
    batch = _column("a", [[1], [2, 1000], [], [3]], pa.list_(pa.int64()), record_batch.FID_METADATA)
    many = list(range(2, 500))
    assert filters.FilterByFid(pb.FilterByFidConfig(has_fids=many)).keep(batch).tolist() == [False, True, False, True]
    assert filters.FilterByFid(pb.FilterByFidConfig(filter_fids=many)).keep(batch).tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert not filters.FilterByFid(pb.FilterByFidConfig(select_fids=many)).keep(batch).any()


def test_a_null_within_a_list_is_nothing_to_compare() -> None:
    predicate = _by_feature(feature_name="x", field_type="int64", op="not-in", int_operand=[1], keep_empty=False)
    batch = _column("x", [[None], [2], [1]], pa.list_(pa.int64()))
    assert predicate.keep(batch).tolist() == [False, True, False]


def test_dropped_rows_are_counted_and_the_input_stays() -> None:
    batch, counts = _uids(1, 2, 3), Counts()
    rows = _by_value(field_name="uid", op="gt", int_operand=[1]).process(batch, counts)
    assert rows.column("__UID__").to_pylist() == [2, 3]
    assert batch.num_rows == 3 and counts == {"rows_dropped": 1}


@st.composite
def _fid_configs(draw: st.DrawFn) -> pb.FilterByFidConfig:
    """One condition, or all of them with weak operands."""
    fids = st.lists(st.sampled_from([*FIDS_V1, *FIDS_V2]).map(lambda fid: fid % 2**64), min_size=1, max_size=3)
    conditions: dict[str, st.SearchStrategy[Any]] = {
        "has_fids": fids,
        "filter_fids": fids,
        "select_fids": fids,
        "select_slots": st.lists(st.sampled_from([1, 2, 600]), min_size=1, max_size=2),
        "has_actions": st.lists(st.sampled_from(SMALL_INTS), min_size=1, max_size=2),
        "req_time_min": st.sampled_from([-2, 1, 2]),
    }
    names = draw(st.sampled_from([[name] for name in conditions] + [["has_fids", "filter_fids", "select_slots"]]))
    return pb.FilterByFidConfig(**{name: draw(conditions[name]) for name in names})


def _operands(draw: st.DrawFn, kind: str, op: str) -> dict[str, Any]:
    choices: dict[str, tuple[str, Sequence[Any]]] = {
        "int": ("int_operand", INTS),
        "float": ("float_operand", FLOATS),
        "text": ("string_operand", TEXTS),
        "set": ("int_operand", INTS),
    }
    name, values = choices[kind]
    if op in comparisons.ORDER_OPS:
        number = 2 if op == "between" else 1
        return {name: draw(st.lists(st.sampled_from(values), min_size=number, max_size=number))}
    few = st.lists(st.sampled_from(values), min_size=1, max_size=3)
    return {name: draw(few | st.just([*values, *values]))}


_OPS = {
    "int": Kind.INT.scalar_ops,
    "float": Kind.FLOAT.scalar_ops,
    "text": Kind.BYTES.scalar_ops,
    "set": comparisons.SET_OPS,
}
_FIELDS = {
    "int": ["uid", "item_id", "read_count", "rank", "is_draw"],
    "float": ["video_play_time"],
    "text": ["did", "vid"],
    "set": ["actions", "chnids"],
}
_FIELD_COLUMNS = [f"__{name.upper()}__" for names in _FIELDS.values() for name in names]
_FEATURES = {"int": ["int64"], "set": ["int64"], "float": ["float", "double"], "text": ["bytes"]}
_OWN = {"int64": "ints", "float": "floats", "double": "doubles", "bytes": "texts"}
_KINDS_AND_OPS = [(kind, op) for kind, ops in _OPS.items() for op in ops]


@st.composite
def _value_configs(draw: st.DrawFn, kind: str, op: str) -> pb.FilterByValueConfig:
    return pb.FilterByValueConfig(
        field_name=draw(st.sampled_from(_FIELDS[kind])),
        op=op,
        keep_empty=draw(st.booleans()),
        **_operands(draw, kind, op),
    )


@st.composite
def _feature_configs(draw: st.DrawFn, kind: str, op: str) -> pb.FilterByFeatureValueConfig:
    field_type = draw(st.sampled_from(_FEATURES[kind]))
    others = ["a", "b", "nested", "ints", "floats", "raw", "number", "missing"]
    return pb.FilterByFeatureValueConfig(
        feature_name=draw(st.just(_OWN[field_type]) | st.just(_OWN[field_type]) | st.sampled_from(others)),
        field_type=field_type,
        op=op,
        keep_empty=draw(st.booleans()),
        **_operands(draw, kind, op),
    )


_ACTION_CONFIGS = st.lists(st.sampled_from(SMALL_INTS), min_size=1, max_size=3).map(
    lambda actions: pb.FilterByActionConfig(has_actions=actions)
)
_LABEL_CONFIGS = st.builds(
    pb.FilterByLabelConfig,
    thresholds=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3),
    filter_equal=st.booleans(),
)


@settings(deadline=None, max_examples=150)
@given(batches("a", "b", "nested", "ints", "__ACTIONS__", "__REQ_TIME__"), _fid_configs())
def test_filter_by_fid_equals_its_reference(batch: pa.RecordBatch, config: pb.FilterByFidConfig) -> None:
    _check(batch, filters.FilterByFid(config), pb.BasicTransformConfig(filter_by_fid=config))


@settings(deadline=None, max_examples=60)
@given(batches("__ACTIONS__"), _ACTION_CONFIGS)
def test_filter_by_action_equals_its_reference(batch: pa.RecordBatch, config: pb.FilterByActionConfig) -> None:
    _check(batch, filters.FilterByAction(config), pb.BasicTransformConfig(filter_by_action=config))


@settings(deadline=None, max_examples=60)
@given(batches("__LABEL__"), _LABEL_CONFIGS)
def test_filter_by_label_equals_its_reference(batch: pa.RecordBatch, config: pb.FilterByLabelConfig) -> None:
    _check(batch, filters.FilterByLabel(config), pb.BasicTransformConfig(filter_by_label=config))


@pytest.mark.parametrize(("kind", "op"), _KINDS_AND_OPS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), batch=batches(*_FIELD_COLUMNS))
def test_filter_by_value_equals_its_reference(data: st.DataObject, batch: pa.RecordBatch, kind: str, op: str) -> None:
    config = data.draw(_value_configs(kind, op))
    _check(batch, filters.FilterByValue(config), pb.BasicTransformConfig(filter_by_value=config))


@pytest.mark.parametrize(("kind", "op"), _KINDS_AND_OPS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), batch=batches("a", "b", "nested", "ints", "floats", "doubles", "texts", "raw", "number"))
def test_filter_by_feature_value_equals_its_reference(
    data: st.DataObject, batch: pa.RecordBatch, kind: str, op: str
) -> None:
    config = data.draw(_feature_configs(kind, op))
    _check(batch, filters.FilterByFeatureValue(config), pb.BasicTransformConfig(filter_by_feature_value=config))


def _check(batch: pa.RecordBatch, predicate: Predicate, config: pb.BasicTransformConfig) -> None:
    kept = predicate.keep(batch)
    assert kept.dtype == bool
    assert kept.tolist() == [reference.kept_by(row, batch.schema, config) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: filters.FilterByFid(pb.FilterByFidConfig()), "step.has_fids=.*no condition"),
        (lambda: filters.FilterByFid(pb.FilterByFidConfig(select_slots=[0])), "step.select_slots=0"),
        (lambda: filters.FilterByAction(pb.FilterByActionConfig()), "step.has_actions="),
        (lambda: filters.FilterByLabel(pb.FilterByLabelConfig()), "step.thresholds="),
        (lambda: _by_feature(field_type="float", op="gt", float_operand=[1]), "step.feature_name="),
        (lambda: _by_feature(feature_name="x", field_type="int", op="gt", int_operand=[1]), "step.field_type=int"),
        (lambda: _by_feature(feature_name="x", field_type="bytes", op="any", string_operand=["a"]), "step.op=any"),
    ],
)
def test_a_wrong_setting_is_refused_by_field(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]


Strategy = pb.SpecialStrategyConfig.Strategy


@st.composite
def _strategy_configs(draw: st.DrawFn) -> pb.SpecialStrategyConfig:
    numbers = draw(st.lists(st.sampled_from(SMALL_INTS), min_size=1, max_size=4, unique=True))
    return pb.SpecialStrategyConfig(
        strategies=[
            Strategy(
                strategy=number,
                sample_rate=draw(st.sampled_from([None, 0.0, 0.5, 1.0])),
                label=draw(st.sampled_from([None, 0.0, 2.5])),
            )
            for number in numbers
        ],
        **draw(st.sampled_from([{}, {"keep_empty_strategy": True}, {"keep_empty_strategy": False}])),
    )


@settings(deadline=None, max_examples=150)
@given(batches("__SPECIAL_STRATEGIES__", "__LABEL__"), _strategy_configs())
def test_special_strategy_equals_its_reference(batch: pa.RecordBatch, config: pb.SpecialStrategyConfig) -> None:
    rows, counts = batch.to_pylist(), Counts()
    expected = [reference.special_strategy(row, config, 5, "s") for row in rows]
    result = filters.SpecialStrategy(config, StepContext(5, "s")).process(batch, counts)
    assert len(result) == len(rows) - counts["rows_dropped"]
    labels = result.column("__LABEL__").to_pylist() if "__LABEL__" in result.schema.names else [None] * len(result)
    kept = [row for row in expected if row is not None]
    assert repr([(row["__SOURCE_OFFSET__"], row.get("__LABEL__")) for row in kept]) == repr(
        list(zip(result.column("__SOURCE_OFFSET__").to_pylist(), labels, strict=True))
    )
    assert repr(batch.to_pylist()) == repr(rows)


def test_a_strategy_keeps_its_share_and_the_same_rows_each_time() -> None:
    rows = 20_000
    batch = with_provenance(_column("__SPECIAL_STRATEGIES__", [[7, 2]] * rows, pa.list_(pa.int32())))
    step = filters.SpecialStrategy(pb.SpecialStrategyConfig(strategies=[Strategy(strategy=2, sample_rate=0.25)]))
    kept = step.process(batch, Counts())
    assert abs(kept.num_rows / rows - 0.25) < 0.02
    halves = [step.process(batch.slice(start, rows // 2), Counts()) for start in (0, rows // 2)]
    assert record_batch.concat(halves).equals(kept)


def test_a_strategy_without_a_rate_asks_for_no_provenance() -> None:
    batch = _column("__SPECIAL_STRATEGIES__", [[1], [2]], pa.list_(pa.int32()))
    step = filters.SpecialStrategy(pb.SpecialStrategyConfig(strategies=[Strategy(strategy=2, label=3)]))
    assert step.process(batch, Counts()).to_pylist() == [{"__SPECIAL_STRATEGIES__": [2], "__LABEL__": [3.0]}]


@pytest.mark.parametrize(
    ("strategies", "message"),
    [
        ([], "step.strategies="),
        ([Strategy(strategy=1), Strategy(strategy=1)], r"step.strategies\[1\].strategy=1"),
        ([Strategy(strategy=1, sample_rate=1.5)], r"step.strategies\[0\].sample_rate=1.5"),
        ([Strategy(strategy=1, label=float("nan"))], r"step.strategies\[0\].label=nan"),
    ],
)
def test_wrong_strategies_are_refused(strategies: list[pb.SpecialStrategyConfig.Strategy], message: str) -> None:
    with pytest.raises(UserError, match=message):
        filters.SpecialStrategy(pb.SpecialStrategyConfig(strategies=strategies))
