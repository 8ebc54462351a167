"""Trees of filters, and a chain of them with an or."""

import pyarrow as pa
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.batch.record_batch import FID_METADATA, FID_V1_METADATA
from millrace.transforms.steps.filters import filters, predicates
from millrace.transforms.steps.step import Counts, StepContext
from tests.conformance.covers import covers
from tests.reference import filters_reference as reference
from tests.reference.filter_batches import FIDS_V2, SMALL_INTS, batches

Basic = pb.BasicTransformConfig

_FID = 290956192322012601
_HAS_FID = Basic(filter_by_fid=pb.FilterByFidConfig(has_fids=[FIDS_V2[0]]))


def _or_rows(kind: dict[bytes, bytes]) -> pa.RecordBatch:
    fid_field = pa.field("fids", pa.list_(pa.int64()), metadata=kind)
    arrays = [
        pa.array([[_FID] if row >= 10 else [] for row in range(40)], fid_field.type),
        pa.array([0 if row >= 20 else 5 for row in range(40)]),
        pa.array([0.0 if 20 <= row < 30 else 5.0 for row in range(40)], pa.float32()),
        pa.array([[2] if 30 <= row < 35 else [1] for row in range(40)], pa.list_(pa.int32())),
    ]
    names = ["__READ_COUNT__", "__VIDEO_PLAY_TIME__", "__ACTIONS__"]
    fields = [fid_field, *(pa.field(name, array.type) for name, array in zip(names, arrays[1:], strict=True))]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


@covers("data:v16")
@pytest.mark.parametrize("kind", [FID_METADATA, FID_V1_METADATA])
def test_a_chain_of_two_filters_and_an_or_keeps_fifteen_rows(kind: dict[bytes, bytes]) -> None:
    """For rows that were examples (fids v2) and instances (fids v1)."""
    either = pb.LogicalOrConfig(
        x=Basic(filter_by_value=pb.FilterByValueConfig(field_name="video_play_time", op="eq", float_operand=[0])),
        y=Basic(filter_by_action=pb.FilterByActionConfig(has_actions=[2])),
    )
    chain = [
        filters.FilterByFid(pb.FilterByFidConfig(select_fids=[_FID])),
        filters.FilterByValue(pb.FilterByValueConfig(field_name="read_count", op="in", int_operand=[0])),
        predicates.LogicalOr(either),
    ]
    rows = _or_rows(kind)
    for step in chain:
        rows = step.process(rows, Counts())
    assert rows.num_rows == 15
    assert rows.equals(_or_rows(kind).slice(20, 15))


def _leaves() -> st.SearchStrategy[Basic]:
    actions = st.sampled_from(SMALL_INTS).map(
        lambda action: Basic(filter_by_action=pb.FilterByActionConfig(has_actions=[action]))
    )
    ranks = st.sampled_from(SMALL_INTS).map(
        lambda rank: Basic(filter_by_value=pb.FilterByValueConfig(field_name="rank", op="gt", int_operand=[rank]))
    )
    return st.just(_HAS_FID) | actions | ranks


def _trees(branches: st.SearchStrategy[Basic]) -> st.SearchStrategy[Basic]:
    kinds = st.sampled_from(["any_of", "all_of", "none_of"])
    lists = st.lists(branches, min_size=1, max_size=3)
    return st.builds(lambda kind, each: Basic(**{kind: pb.PredicatesConfig(predicates=each)}), kinds, lists)


@settings(deadline=None, max_examples=60)
@given(batches("a", "__ACTIONS__", "__RANK__"), st.recursive(_leaves(), _trees, max_leaves=8))
def test_a_tree_equals_its_reference(batch: pa.RecordBatch, config: Basic) -> None:
    parent = predicates.LogicalOr(pb.LogicalOrConfig(x=config, y=config))
    expected = [reference.kept_by(row, batch.schema, config) for row in batch.to_pylist()]
    assert parent.children[0].keep(batch).tolist() == expected
    assert parent.keep(batch).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(batches("a", "__ACTIONS__", "__RANK__"), _leaves(), _leaves())
def test_logical_or_keeps_what_either_keeps(batch: pa.RecordBatch, x: Basic, y: Basic) -> None:
    kept = predicates.LogicalOr(pb.LogicalOrConfig(x=x, y=y)).keep(batch)
    rows = batch.to_pylist()
    assert kept.tolist() == [
        reference.kept_by(row, batch.schema, x) or reference.kept_by(row, batch.schema, y) for row in rows
    ]


def test_every_tree_may_hold_every_filter() -> None:
    texts = {
        "filter_by_fid": "has_fids: 1",
        "filter_by_action": "has_actions: 1",
        "filter_by_label": "thresholds: 1",
        "filter_by_value": "field_name: 'uid' op: 'gt' int_operand: 1",
        "filter_by_feature_value": "feature_name: 'x' field_type: 'int64' op: 'gt' int_operand: 1",
        "select_flows": "data_sources: 'pc'",
        **dict.fromkeys(("any_of", "all_of", "none_of"), "predicates { filter_by_action { has_actions: 1 } }"),
    }
    assert set(texts) == set(predicates.PREDICATES)
    children = [text_format.Parse(f"{kind} {{ {text} }}", Basic()) for kind, text in texts.items()]
    batch = with_provenance(_or_rows(FID_METADATA))
    for tree in (predicates.AnyOf, predicates.AllOf, predicates.NoneOf):
        step = tree(pb.PredicatesConfig(predicates=children))
        assert [type(child) for child in step.children] == list(predicates.PREDICATES.values())
        assert step.keep(batch).shape == (40,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "s.predicates=: empty"),
        ("predicates {}", r"s.predicates\[0\]=: missing"),
        (
            "predicates { filter_by_action { has_actions: 1 } } predicates { add_label {} }",
            r"s.predicates\[1\]=add_label: add_label is no filter",
        ),
        (
            "predicates { any_of { predicates { filter_by_value { field_name: 'uid' op: 'over' } } } }",
            r"s.predicates\[0\].any_of.predicates\[0\].filter_by_value.op=over",
        ),
    ],
)
def test_what_is_no_filter_is_refused_by_its_place(config: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predicates.AllOf(text_format.Parse(config, pb.PredicatesConfig()), StepContext(id="s"))


def test_an_or_needs_two_filters() -> None:
    with pytest.raises(UserError, match="s.y=: missing"):
        predicates.LogicalOr(pb.LogicalOrConfig(x=_HAS_FID), StepContext(id="s"))
    label = Basic(add_label=pb.AddLabelConfig())
    with pytest.raises(UserError, match="s.y=add_label"):
        predicates.LogicalOr(pb.LogicalOrConfig(x=_HAS_FID, y=label), StepContext(id="s"))
