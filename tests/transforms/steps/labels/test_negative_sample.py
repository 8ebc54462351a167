"""Negatives that are dropped."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.steps.labels.negative_sample import NegativeSample
from millrace.transforms.steps.step import StepContext
from tests.conformance.covers import covers
from tests.reference import sampling as reference
from tests.reference.rows_reference import uniform_of
from tests.transforms.batch.line_id_batches import actions, batch_of, labels

_RATES = [{"action": action, "rate": rate} for action, rate in ((1, 1), (2, 0), (3, 1), (4, 0.5), (5, 0.22))]
_BY_ACTION = pb.NegativeSampleConfig(
    threshold=0.5, drop_rate=0.88, action_priority=[2, 3, 4, 1, 5, 6], per_action_drop_rate=_RATES
)
_FIELDS = ("actions", "sample_rate")


def _kept(config: pb.NegativeSampleConfig, row: dict[str, Any], copies: int = 5000) -> int:
    return NegativeSample(config, StepContext(3)).process(batch_of([row] * copies, _FIELDS), Counter()).num_rows


@covers("data:v15")
@pytest.mark.parametrize(
    ("label", "row_actions", "drop_rate"),
    [
        (1, [1, 3, 5], 0),
        (0.5, [1, 3, 5], 0),
        (0, [1, 2, 4, 5], 0),
        (0, [1, 3, 5], 1),
        (0, [5, 6], 0.22),
        (0, [6], 0.88),
        (0, [10, 11, 12], 0.88),
        (0, [], 0.88),
    ],
)
def test_negatives_are_dropped_at_the_rate_of_their_action(
    label: float, row_actions: list[int], drop_rate: float
) -> None:
    kept = _kept(_BY_ACTION, {"label": [label], "actions": row_actions})
    spread = 4 * (5000 * drop_rate * (1 - drop_rate)) ** 0.5
    assert abs(kept - 5000 * (1 - drop_rate)) <= spread


_rows = st.lists(st.fixed_dictionaries({"label": labels, "actions": actions}), max_size=8)


@given(_rows, st.sampled_from([_BY_ACTION, pb.NegativeSampleConfig(drop_rate=0.5, label_index=1)]), st.integers(0, 3))
def test_what_is_kept_equals_the_reference_and_stays_the_same(
    rows: list[dict[str, Any]], config: pb.NegativeSampleConfig, start: int
) -> None:
    step, counts = NegativeSample(config, StepContext(1, "drop")), Counter[str]()
    made = step.process(batch_of(rows, _FIELDS, start), counts)
    expected = [
        offset
        for offset, row in enumerate(rows)
        if offset >= start
        and reference.keeps(row["label"], row["actions"], uniform_of(1, "drop/", (0, offset, 0)), config)
    ]
    assert made["__SOURCE_OFFSET__"].to_pylist() == expected
    assert counts["rows_dropped"] == max(len(rows) - start, 0) - len(expected)
    assert step.process(batch_of(rows, _FIELDS, start), counts).equals(made)


def test_rows_that_stay_carry_the_rate_that_undoes_the_sampling() -> None:
    config = pb.NegativeSampleConfig(drop_rate=0.75, threshold=0.5, correct_sample_rate=True)
    rows = [{"label": [1]}, {"label": [1], "sample_rate": 0.5}] + [{"label": [0], "sample_rate": 0.5}] * 50
    made = NegativeSample(config).process(batch_of(rows, _FIELDS), Counter())
    assert made["__SAMPLE_RATE__"].to_pylist()[:2] == [0.25, 0.125]
    assert set(made["__SAMPLE_RATE__"].to_pylist()[2:]) == {0.125}


def test_a_choice_at_random_needs_to_know_the_row() -> None:
    bare = batch_of([{"label": [0]}], []).drop_columns(["__SOURCE_OFFSET__"])
    with pytest.raises(ValueError, match="__SOURCE_OFFSET__"):
        NegativeSample(pb.NegativeSampleConfig(drop_rate=0.5)).process(bare, Counter())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"drop_rate": 1.5}, "drop_rate=1.5: not a share"),
        ({"label_index": -1}, "label_index=-1"),
        ({"action_priority": [1]}, "per_action_drop_rate"),
        ({"per_action_drop_rate": _RATES}, "action_priority"),
        ({"action_priority": [1, 1], "per_action_drop_rate": _RATES}, "action_priority=1"),
        ({"action_priority": [1], "per_action_drop_rate": [{"rate": -1}]}, r"per_action_drop_rate\[0\].rate=-1"),
        (
            {"action_priority": [1], "per_action_drop_rate": [*_RATES, {"action": 1, "rate": 0.5}]},
            r"per_action_drop_rate\[5\]=0.5: is a second rate",
        ),
        ({"drop_rate": 1, "correct_sample_rate": True}, "correct_sample_rate"),
        (
            {"correct_sample_rate": True, "action_priority": [1], "per_action_drop_rate": _RATES},
            "correct_sample_rate",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        NegativeSample(pb.NegativeSampleConfig(**config))
