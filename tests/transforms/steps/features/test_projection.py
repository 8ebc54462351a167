"""Projection: the features that stay, those that a recipe needs, and names by slots."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch.fid import fid_v2
from millrace.transforms.steps.features.feature_list import parse_feature_list
from millrace.transforms.steps.features.projection import (
    Project,
    SlotPair,
    project,
    required_features,
    resolve_features,
)
from millrace.transforms.steps.step import Counts
from tests.conformance.covers import covers
from tests.reference.filter_batches import batches


@covers("data:v35")
def test_features_are_resolved_by_name_and_by_pairs_of_slots_in_any_order() -> None:
    slots = {f"slot_{number}": number for number in (1, 2, 3, 4)}
    wanted: list[str | SlotPair] = ["slot_1", "slot_2", SlotPair(3, 10003)]
    for order in itertools.permutations(wanted):
        for mapped in itertools.permutations(slots.items()):
            found = resolve_features(dict(mapped), order)
            assert found == {"slot_1": 1, "slot_2": 2, "slot_3": 3}


@covers("data:v35")
def test_a_feature_that_is_not_mapped_is_refused() -> None:
    with pytest.raises(UserError, match="no feature has one of these slots"):
        resolve_features({"slot_1": 1}, [SlotPair(2, 10002)])
    with pytest.raises(UserError, match="features=slot_2: no feature has this name"):
        resolve_features({"slot_1": 1}, ["slot_2"])


def test_a_pair_finds_all_features_that_share_a_slot() -> None:
    assert resolve_features({"a": 5, "b": 10005, "c": 5, "d": 6}, [SlotPair(5, 10005)]) == {"a": 5, "b": 10005, "c": 5}


@settings(deadline=None, max_examples=50)
@given(batches(), st.sets(st.sampled_from(["a", "b", "ints", "texts", "missing"]), min_size=1))
def test_projection_keeps_the_named_features_and_all_metadata(batch: pa.RecordBatch, names: set[str]) -> None:
    expected = [name for name in batch.schema.names if name in names or name.startswith("__")]
    rows = Project(pb.ProjectConfig(feature_names=names)).process(batch, Counts())
    assert rows.schema.names == expected
    assert rows.num_rows == batch.num_rows
    assert all(rows.schema.field(name).equals(batch.schema.field(name), check_metadata=True) for name in expected)
    assert repr(project(batch, names).to_pylist()) == repr(rows.to_pylist())


def test_a_feature_list_names_the_columns_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "list.conf"
    path.write_text("feature_name=fc_user; slot=1\nfeature_name=fc_item; slot=2\nfeature_name=f_price")
    step = Project(pb.ProjectConfig(feature_list_file=str(path)))
    names = ["user", "fc_item", "price", "slot_2", "fc_slot_1", "slot_3", "other", "__UID__"]
    batch = pa.record_batch({name: pa.array([[1]]) for name in names})
    assert step.process(batch, Counts()).schema.names == [*names[:5], "__UID__"]


@pytest.mark.parametrize("config", [{}, {"feature_names": ["a"], "feature_list_file": "list.conf"}])
def test_projection_needs_one_way_to_name_features(config: dict[str, object]) -> None:
    with pytest.raises(UserError, match="step.feature_names="):
        Project(pb.ProjectConfig(**config))  # type: ignore[arg-type]


def test_projection_needs_a_feature_list_that_can_be_read() -> None:
    with pytest.raises(UserError, match="none.conf: cannot be read"):
        Project(pb.ProjectConfig(feature_list_file="none.conf"))


def _recipe(*steps: str) -> pb.TransformConfig:
    return text_format.Parse(" ".join(f"configs {{ {step} }}" for step in steps), pb.TransformConfig())


def test_a_source_must_read_what_the_steps_name_and_what_is_wanted() -> None:
    value = "filter_by_feature_value { feature_name: 'price' field_type: 'float' op: 'gt' float_operand: 1 }"
    recipe = _recipe(
        f"logical_or_config {{ x {{ any_of {{ predicates {{ {value} }} }} }} y {{ filter_by_label {{}} }} }}",
        "basic_config { combine_features { feature_names: ['a', 'b'] slot: 9 output_name: 'ab' } }",
        "basic_config { switch_slot { features { feature_name: 'c' slot: 9 } } }",
        "basic_config { generate_negatives { neg_num: 1 item_features: 'item' index_feature: 'index' } }",
        "basic_config { shard_fids { feature_configs { feature_configs { key: 'a' value { table: 't' } } } } }",
    )
    assert required_features(recipe, ["user"]) == {"user", "price", "a", "b", "c", "item", "index"}
    assert required_features(pb.TransformConfig(), ["user"]) == {"user"}


def test_a_filter_by_fids_needs_all_features_unless_a_list_tells_which() -> None:
    features = parse_feature_list(
        "feature_name=user; slot=1; feature_version=2\nfeature_name=item; slot=2; feature_version=2\nfeature_name=x"
    )
    recipe = _recipe(f"basic_config {{ filter_by_fid {{ has_fids: {int(fid_v2(2, 9))} select_slots: 1 }} }}")
    assert required_features(recipe, []) is None
    assert required_features(recipe, ["x"], features) == {"x", "user", "item"}
    unknown = _recipe(f"basic_config {{ filter_by_fid {{ filter_fids: {int(fid_v2(3, 9))} }} }}")
    with pytest.raises(UserError, match="filter_by_fid.filter_fids=.*v2 slot 3"):
        required_features(unknown, [], features)
    unknown = _recipe("basic_config { filter_by_fid { select_slots: 7 } }")
    with pytest.raises(UserError, match="filter_by_fid.select_slots=7"):
        required_features(unknown, [], features)
    by_action = _recipe("basic_config { filter_by_fid { has_actions: 7 } }")
    assert required_features(by_action, ["x"]) == {"x"}


def test_only_what_a_projection_lets_through_is_read() -> None:
    project = "basic_config { project { feature_names: ['user', 'item'] } }"
    mask = "basic_config { mask_fid { feature_name: 'price' fid: 1 output_name: 'm' } }"
    by_fids = "basic_config { filter_by_fid { has_fids: 7 } }"
    assert required_features(_recipe(project)) == {"user", "item"}
    assert required_features(_recipe(project), ["item", "other"]) == {"item"}
    assert required_features(_recipe(mask, project)) == {"user", "item", "price"}
    assert required_features(_recipe(project, by_fids)) == {"user", "item"}
    assert required_features(_recipe(by_fids, project)) is None
    assert required_features(_recipe(mask)) is None
    assert required_features(_recipe("basic_config { project { feature_list_file: 'list.conf' } }")) is None


def test_the_steps_of_all_flows_say_what_is_read() -> None:
    mask = "steps { basic_config { mask_fid { feature_name: 'price' fid: 1 output_name: 'm' } } }"
    project = "steps { basic_config { project { feature_names: 'item' } } }"
    flows = f"basic_config {{ run_flows {{ flows {{ {mask} }} flows {{ {project} }} }} }}"
    assert required_features(_recipe(flows), ["user"]) == {"user", "price"}
    assert required_features(_recipe(flows)) is None
    both = f"basic_config {{ run_flows {{ flows {{ {mask} {project} }} flows {{ {project} }} }} }}"
    assert required_features(_recipe(both)) == {"price", "item"}
