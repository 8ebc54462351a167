"""Recipe files: what they may say, and the line of every mistake."""

from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.recipe.text import parse_recipe, read_recipe

_RECIPE = """\
seed: 7
action_ids: {click: 1, like: 2}
steps:
  - filter_by_value: {field_name: uid, op: gt, int_operand: [0]}
  - id: sample
    negative_sample:
      drop_rate: 0.5
      per_action_drop_rate:
        - {action: 1, rate: 0.25}
  - logical_or:
      x: {filter_by_action: {has_actions: [2]}}
      y: {filter_by_value: {field_name: device_type, op: eq, string_operand: [phone]}}
  - none_of:
      predicates:
        - filter_by_fid: {has_fids: [18446744073709551615]}
  - label_normalization:
      operations: [{method: scale, value: 2}]
  - scatter_label: {channel_index: {100: 3}}
"""


def test_a_recipe_becomes_the_message_that_it_describes() -> None:
    config = parse_recipe(_RECIPE).config
    assert config.seed == 7
    assert dict(config.action_ids) == {"click": 1, "like": 2}
    basic = [each.basic_config for each in config.configs]
    assert basic[0].filter_by_value == pb.FilterByValueConfig(field_name="uid", op="gt", int_operand=[0])
    assert config.configs[1].id == "sample"
    assert basic[1].negative_sample.per_action_drop_rate[0].rate == 0.25
    assert config.configs[2].logical_or_config.y.filter_by_value.string_operand == ["phone"]
    assert basic[3].none_of.predicates[0].filter_by_fid.has_fids == [2**64 - 1]
    assert basic[4].label_normalization.operations[0].method == pb.LabelNormalizationConfig.SCALE
    assert dict(basic[5].scatter_label.channel_index) == {100: 3}


def test_a_recipe_in_json_says_the_same() -> None:
    text = '{"seed": 7, "steps": [{"filter_by_label": {"thresholds": [0, 0.5]}}]}'
    assert parse_recipe(text).config.configs[0].basic_config.filter_by_label.thresholds == [0.0, 0.5]


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("steps:\n  - filter_by_fid:\n      has_fid: [1]\n", 3, "has_fid=: unknown field; did you mean has_fids?"),
        ("steps:\n  - filter_by_fids: {}\n", 2, "did you mean filter_by_fid?"),
        ("seed: seven\n", 1, "seed=seven: wrong type; give a whole number"),
        ("steps:\n- filter_by_label:\n    thresholds: [a]\n", 3, "thresholds[0]=a: wrong type; give a number"),
        ("steps:\n- filter_by_label:\n    thresholds: 0\n", 3, "not a list"),
        ("steps:\n- filter_by_fid:\n    has_fids: [-1]\n", 3, "out of range; give a value of type uint64"),
        ("steps:\n- filter_by_fid: {}\n  filter_by_label: {}\n", 2, "a step has one kind"),
        ("steps:\n- filter_by_fid: {}\n- id: x\n", 3, "a step has one kind"),
        ("steps:\n- label_normalization:\n    operations:\n    - {method: cube}\n", 4, "choose METHOD_UNSPECIFIED"),
        ("steps:\n- scatter_label: {channel_index: {a: 1}}\n", 2, "the key is not a whole number"),
        ("seed: 1\nseed: 2\n", 2, "given twice"),
        ("stages: []\n", 1, "unknown field"),
        ("steps: [\n", 2, "write YAML or JSON"),
        ("steps:\n- filter_by_fid: 3\n", 2, "not a mapping"),
        ("steps:\n- filter_by_value:\n    keep_empty: 1\n", 3, "give true or false"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_a_remedy(text: str, line: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "shop.yaml")
    assert str(caught.value).startswith(f"shop.yaml:{line}")
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--recipe=.*gone.yaml: cannot be read"):
        read_recipe(tmp_path / "gone.yaml")


def test_aliases_cannot_multiply_without_end() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    names = "abcdefgh"
    for before, after in zip(names, names[1:], strict=False):
        bomb += f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
    with pytest.raises(UserError):
        parse_recipe(bomb)
    with pytest.raises(UserError, match="more than"):
        lists = "&x [0,0,0,0,0,0,0,0,0,0]"
        steps = [f"- filter_by_label: {{thresholds: {lists}}}"] + ["- filter_by_label: {thresholds: *x}"] * 20_000
        parse_recipe("steps:\n" + "\n".join(steps))


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_a_clear_error(text: str) -> None:
    try:
        parse_recipe(text)
    except UserError as error:
        assert error.problem


def test_a_recipe_survives_the_way_over_json_of_its_message() -> None:
    config = parse_recipe(_RECIPE).config
    assert json_format.Parse(json_format.MessageToJson(config), pb.TransformConfig()) == config
