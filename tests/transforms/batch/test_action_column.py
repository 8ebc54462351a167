"""The most prior action, and actions that are appended."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch.action_column import most_prior
from millrace.transforms.steps.labels.label_steps import AddAction
from tests.conformance.covers import covers
from tests.reference import actions as reference
from tests.reference.label_steps import add_action
from tests.transforms.batch.line_id_batches import actions, batch_of, rows_of

_ACTIONS = pa.list_(pa.int32())
_FIELDS = ("actions", "read_count")


@given(st.lists(actions, max_size=8), st.lists(st.integers(-1, 5), unique=True, max_size=4), st.integers(0, 3))
def test_most_prior_actions_equal_the_reference(rows: list[Any], priority: list[int], start: int) -> None:
    chosen, none = most_prior(pa.array(rows, _ACTIONS).slice(start), priority)
    found = [None if missing else action for action, missing in zip(chosen.tolist(), none.tolist(), strict=True)]
    assert found == [reference.most_prior(row, priority) for row in rows[start:]]


def test_without_a_listed_action_the_first_one_counts() -> None:
    chosen, none = most_prior(pa.array([[7, 3], [3, 7], [9, 8], [], None], _ACTIONS), [3, 7])
    assert chosen.tolist()[:3] == [3, 3, 9]
    assert none.tolist() == [False, False, False, True, True]


def test_hidden_values_of_a_null_row_are_no_actions() -> None:
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4], pa.int32()), mask=pa.array([True, False])
    )
    chosen, none = most_prior(column, [4])
    assert (chosen.tolist(), none.tolist()) == ([0, 4], [True, False])


@covers("data:v23")
def test_an_action_is_appended_where_a_field_says_so() -> None:
    step = AddAction(pb.AddActionConfig(field_name="sample_rate", op="ge", float_operand=[0], action=2))
    batch = batch_of([{"actions": [1]}], ["actions"])
    assert rows_of(step.process(batch, Counter()), ["actions"])[0]["actions"] == [1, 2]
    assert rows_of(batch, ["actions"])[0]["actions"] == [1]


_rows = st.fixed_dictionaries({"actions": actions, "read_count": st.one_of(st.none(), st.integers(-2, 2))})


@given(st.lists(_rows, max_size=8), st.integers(0, 3))
def test_appended_actions_equal_the_reference(rows: list[dict[str, Any]], start: int) -> None:
    step = AddAction(pb.AddActionConfig(field_name="read_count", op="between", int_operand=[0, 2], action=9))
    counts: Counter[str] = Counter()
    made = rows_of(step.process(batch_of(rows, _FIELDS, start), counts), _FIELDS)
    fulfilled = [0 <= (row["read_count"] or 0) < 2 for row in rows[start:]]
    expected = [add_action(row, yes, 9) for row, yes in zip(rows[start:], fulfilled, strict=True)]
    assert [row["actions"] for row in made] == [row["actions"] for row in expected]
    assert counts["actions_added"] == sum(fulfilled)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"field_name": "chnids", "op": "in", "int_operand": [1]}, "field_name=chnids: the field holds a list"),
        ({"field_name": "read", "op": "eq", "int_operand": [1]}, "field_name=read: a line id has no such field"),
        ({"field_name": "uid", "op": "any", "int_operand": [1]}, "op=any"),
        ({"field_name": "did", "op": "endswith", "string_operand": ["a"]}, "op=endswith"),
        ({"field_name": "uid", "op": "eq"}, "int_operand"),
    ],
)
def test_wrong_settings_of_an_action_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AddAction(pb.AddActionConfig(**config, action=2))
