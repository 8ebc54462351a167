"""How often rows count, and what becomes of them."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.steps.labels.reweight import ActionWeight, Reweight, replicas
from tests.conformance.covers import covers
from tests.reference import reweight as reference
from tests.transforms.batch.line_id_batches import batch_of, rows_of

_FIELDS = ("actions", "pre_actions")
_WEIGHTS = [ActionWeight(1, 4, -1.0), ActionWeight(2, 2, 1.0), ActionWeight(3, 1, -1.0)]
_ACTIONS = pa.list_(pa.int32())


def _config(weights: list[ActionWeight], priority: list[int], **more: Any) -> pb.ReweightConfig:
    return pb.ReweightConfig(action_priority=priority, weights=[each._asdict() for each in weights], **more)


def _processed(config: pb.ReweightConfig, rows: list[dict[str, Any]]) -> tuple[pa.RecordBatch, Counter[str]]:
    counts: Counter[str] = Counter()
    return Reweight(config).process(batch_of(rows, _FIELDS), counts), counts


@covers("data:v24")
@pytest.mark.parametrize(
    ("before", "now", "times", "label"),
    [
        ([], [1], 4, -1),
        ([], [2, 1], 2, 1),
        ([1], [2], 6, 1),
        ([1], [3], 3, 1),
        ([2], [3], 3, -1),
        ([1], [1], 0, 0),
        ([], [], 1, 0),
        ([], [99], 1, 0),
    ],
)
def test_rows_count_as_their_actions_weigh(before: list[int], now: list[int], times: int, label: float) -> None:
    batch, counts = _processed(_config(_WEIGHTS, [3, 2, 1]), [{"pre_actions": before, "actions": now, "label": [0]}])
    assert [row["label"] for row in rows_of(batch, _FIELDS)] == [[label]] * times
    assert counts["rows_dropped"] == (times == 0)


@covers("data:v24")
@pytest.mark.parametrize(
    ("before", "now", "times", "label"),
    [([], [2], 3, -1), ([], [7], 6, 1), ([7], [2], 9, -1), ([2], [7], 0, 0)],
)
def test_an_action_that_came_before_weighs_as_well(before: list[int], now: list[int], times: int, label: float) -> None:
    config = _config([ActionWeight(2, 3, -1.0), ActionWeight(7, 6, 1.0)], [2, 7, 0, 1])
    batch, _ = _processed(config, [{"pre_actions": before, "actions": now, "label": [0]}])
    assert [row["label"] for row in rows_of(batch, _FIELDS)] == [[label]] * times


_actions = st.one_of(st.none(), st.lists(st.integers(0, 5), max_size=4))
_rows = st.lists(st.tuples(_actions, _actions, st.sampled_from([-1.0, 0.0, 0.5, 1.0])), max_size=8)
_weights = st.lists(
    st.builds(ActionWeight, st.integers(0, 5), st.integers(0, 5), st.sampled_from([-1.0, 0.0, 1.0, 1.5])),
    min_size=1,
    max_size=4,
    unique_by=lambda weight: weight.action,
)


@given(_rows, _weights, st.lists(st.integers(0, 5), unique=True, max_size=4), st.integers(0, 3))
def test_replicas_equal_the_reference(
    rows: list[Any], weights: list[ActionWeight], priority: list[int], start: int
) -> None:
    before, now = (pa.array([row[at] for row in rows], _ACTIONS).slice(start) for at in (0, 1))
    labels = np.array([row[2] for row in rows[start:]], np.float32)
    times, made = replicas(before, now, labels, priority, weights)
    expected = [reference.reweight(row[0] or [], row[1] or [], row[2], priority, weights) for row in rows[start:]]
    assert list(zip(times.tolist(), made.tolist(), strict=True)) == expected


@given(_rows, _weights, st.integers(1, 5), st.integers(0, 3))
def test_copies_and_weights_add_up_to_the_same(
    rows: list[Any], weights: list[ActionWeight], most: int, start: int
) -> None:
    records = [{"pre_actions": row[0], "actions": row[1], "label": [row[2]]} for row in rows]
    batch = batch_of(records, _FIELDS, start)
    copied, weighed = (
        Reweight(_config(weights, [1, 2, 3], max_replicas=most, emit=emit)).process(batch, Counter())
        for emit in ("COPIES", "WEIGHT")
    )
    for column in ("__SOURCE_OFFSET__", "__LABEL__"):
        repeated = weighed[column].take(pa.array(np.repeat(np.arange(weighed.num_rows), _ints(weighed["__WEIGHT__"]))))
        assert copied[column].equals(repeated)
    keys = set(zip(*(copied[name].to_pylist() for name in ("__SOURCE_OFFSET__", "__SOURCE_ROW__")), strict=True))
    assert len(keys) == copied.num_rows
    assert batch.equals(batch_of(records, _FIELDS, start))


def test_copies_beyond_the_cap_are_counted() -> None:
    rows = [{"actions": [1], "label": [0]}, {"actions": [1] * 2000, "label": [0]}]
    batch, counts = _processed(_config([ActionWeight(1, 100, 1.0)], [1]), rows)
    assert batch.num_rows == 128
    assert counts["replicas_capped"] == 36 + 2**53 - 64


def test_a_weight_of_zero_beats_weights_that_overflow() -> None:
    rows = [{"actions": [1] * 2000 + [4], "label": [0]}]
    weights = [ActionWeight(1, 100, 1.0), ActionWeight(4, 0, 1.0)]
    assert _processed(_config(weights, []), rows)[0].num_rows == 0


def test_rows_without_labels_are_dropped() -> None:
    batch, counts = _processed(_config(_WEIGHTS, [1]), [{"actions": [1]}, {"actions": [1], "label": []}])
    assert (batch.num_rows, counts["rows_dropped"]) == (0, 2)


def test_a_weight_multiplies_the_one_that_a_row_has() -> None:
    batch = batch_of([{"actions": [1], "label": [0]}] * 2, _FIELDS)
    weights = pa.array([None, 0.5], pa.float32())
    batch = record_batch.with_column(batch, pa.field(record_batch.WEIGHT, pa.float32()), weights)
    made = Reweight(_config(_WEIGHTS, [1], emit="WEIGHT")).process(batch, Counter())
    assert made["__WEIGHT__"].to_pylist() == [4.0, 2.0]
    assert made["__SOURCE_ROW__"].equals(batch["__SOURCE_ROW__"])


def test_rows_without_provenance_are_copied_too() -> None:
    batch = batch_of([{"actions": [2], "label": [0]}], _FIELDS)
    bare = batch.drop_columns(["__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__"])
    assert Reweight(_config(_WEIGHTS, [2])).process(bare, Counter()).num_rows == 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (_config([], [1]), "weights"),
        (_config(_WEIGHTS, [1, 2, 1]), "action_priority=1"),
        (_config([*_WEIGHTS, ActionWeight(1, 1, 0.0)], [1]), r"weights\[3\].action=1: has two weights"),
        (_config([ActionWeight(1, -2, 0.0)], [1]), r"weights\[0\].weight=-2: below zero"),
        (_config(_WEIGHTS, [1], max_replicas=257), "max_replicas=257: out of range; choose 1..256"),
        (_config(_WEIGHTS, [1], max_replicas=-1), "max_replicas=-1"),
    ],
)
def test_wrong_settings_are_refused_by_name(config: pb.ReweightConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Reweight(config)


def test_the_fan_out_is_that_of_the_copies() -> None:
    assert Reweight(_config(_WEIGHTS, [1])).fanout == 64
    assert Reweight(_config(_WEIGHTS, [1], max_replicas=3)).fanout == 3
    assert Reweight(_config(_WEIGHTS, [1], emit="WEIGHT")).fanout == 1


def _ints(column: pa.Array) -> np.ndarray:
    return column.to_numpy().astype(np.int64)
