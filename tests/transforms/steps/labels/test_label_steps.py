"""Steps that make labels of actions, channels, heads and ranks."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch.record_batch import INVALID_LABEL
from millrace.transforms.steps.filters.filters import FilterByLabel
from millrace.transforms.steps.labels.label_steps import AddLabel, FillMultiRankOutput, MultiLabelGen, ScatterLabel
from millrace.transforms.steps.step import Step, StepContext
from tests.conformance.covers import covers
from tests.reference import label_steps as reference
from tests.reference.rows_reference import uniform_of
from tests.transforms.batch.line_id_batches import actions, batch_of, float32, labels, rows_of

_NONE = INVALID_LABEL
_TASKS = [{"pos_actions": [1, 2], "neg_actions": [3], "sample_rate": 1.0}, {"pos_actions": [4], "sample_rate": 0.5}]
_FIELDS = ("actions", "sample_rate", "chnid", "device_type", "is_draw", "rank")


def _processed(step: Step, rows: list[dict[str, Any]], start: int = 0) -> tuple[list[dict[str, Any]], Counter[str]]:
    counts: Counter[str] = Counter()
    return rows_of(step.process(batch_of(rows, _FIELDS, start), counts), _FIELDS), counts


def _labels(step: Step, rows: list[dict[str, Any]]) -> list[Any]:
    return [row["label"] for row in _processed(step, rows)[0]]


@covers("data:v17")
def test_actions_become_one_label_a_task() -> None:
    step = AddLabel(pb.AddLabelConfig(task_label_configs=_TASKS, negative_value=-1))
    rows = [{"actions": each} for each in ([1, 2, 4], [1], [3, 4], [5])] * 100
    made = _labels(step, rows)
    assert all(row == [1.0, 1.0] for row in made[0::4])
    assert {tuple(row) for row in made[1::4]} == {(1.0, -1.0), (1.0, _NONE)}
    assert all(row == [-1.0, 1.0] for row in made[2::4])
    assert {tuple(row) for row in made[3::4]} == {(_NONE, -1.0), (_NONE, _NONE)}
    kept = FilterByLabel(pb.FilterByLabelConfig(thresholds=[-100, -100])).process(
        step.process(batch_of(rows, _FIELDS), Counter()), Counter()
    )
    assert 340 <= kept.num_rows <= 360


@covers("data:v17")
def test_an_earlier_label_that_is_not_positive_says_nothing_any_more() -> None:
    step = AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1]}], new_sample_rate=0.25))
    rows = [{"label": [0.0, 0.0], "actions": [1]}, {"label": [0.5]}, {"label": []}, {}]
    made, _ = _processed(step, rows)
    assert [row["label"] for row in made] == [[_NONE, 0.0, 1.0], [0.5, 0.0], [0.0], [0.0]]
    assert {row["sample_rate"] for row in made} == {0.25}


@covers("data:v19")
def test_a_label_moves_to_the_position_of_its_channel() -> None:
    step = ScatterLabel(pb.ScatterLabelConfig(channel_index={100: 3, 200: 1, 300: 4}))
    rows = [{"label": label, "chnid": chnid} for label, chnid in (([1], 0), ([2], 100), ([3], 200), ([], 300))]
    made, counts = _processed(step, rows)
    empty = [_NONE] * 5
    assert [row["label"] for row in made] == [empty, [_NONE, _NONE, _NONE, 2.0, _NONE], [_NONE, 3.0, *empty[2:]], empty]
    assert counts["rows_without_channel"] == 1
    keep = FilterByLabel(pb.FilterByLabelConfig(thresholds=[-100.0] * 5))
    survivors, _ = _processed(keep, [{"label": row["label"]} for row in made])
    assert len(survivors) == 2


@covers("data:v20")
def test_a_row_is_labelled_for_the_head_that_its_device_names() -> None:
    config = pb.MultiLabelGenConfig(
        head_field="device_type",
        head_index={"ios": 3, "wp": 1, "android": 4, "other": 0},
        pos_actions=[3, 2],
        neg_actions=[1],
        action_priority=[4, 3, 2, 1, 0],
    )
    rows = [
        {"device_type": device, "actions": each}
        for device, each in (("ios", [1, 2]), ("wp", [3]), ("android", [2]), ("ios", [1]))
    ]
    made = _labels(MultiLabelGen(config), rows)
    assert [(row.index(max(row)), max(row)) for row in made] == [(3, 1.0), (1, 1.0), (4, 1.0), (3, 0.0)]
    assert all(row.count(_NONE) == 4 for row in made)


def test_heads_may_be_named_by_integers() -> None:
    config = pb.MultiLabelGenConfig(head_field="chnid", head_index={"0": 1, "-7": 0}, use_origin_label=True, task_num=3)
    rows = [{"label": [2.0], "chnid": -7}, {"label": [3.0]}, {"label": [4.0], "chnid": 5}, {"chnid": -7}]
    made, counts = _processed(MultiLabelGen(config), rows)
    empty = [_NONE] * 3
    assert [row["label"] for row in made] == [[2.0, _NONE, _NONE], [_NONE, 3.0, _NONE], empty, empty]
    assert counts["rows_without_head"] == 1


_rows = st.fixed_dictionaries(
    {
        "label": labels,
        "actions": actions,
        "sample_rate": st.sampled_from([None, 0.5]),
        "chnid": st.sampled_from([None, 0, 1, 2, 100]),
        "device_type": st.sampled_from([None, "", "ios", "wp", "tv"]),
        "is_draw": st.sampled_from([None, False, True]),
        "rank": st.sampled_from([None, -1, 0, 16, 17, 18]),
    }
)
_GEN = {"head_field": "device_type", "head_index": {"ios": 2, "": 0}, "pos_label": 2.5, "neg_label": -2}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ScatterLabel(pb.ScatterLabelConfig(channel_index={0: 1, 100: 0})), reference.scatter_label),
        (
            MultiLabelGen(
                pb.MultiLabelGenConfig(**_GEN, pos_actions=[3, 2], neg_actions=[1, 0], action_priority=[2, 1])
            ),
            reference.multi_label_gen,
        ),
        (MultiLabelGen(pb.MultiLabelGenConfig(**_GEN, use_origin_label=True)), reference.multi_label_gen),
        (FillMultiRankOutput(pb.FillMultiRankOutputConfig(enable_draw_as_rank=True)), reference.fill_multi_rank_output),
        (
            FillMultiRankOutput(pb.FillMultiRankOutputConfig(enable_chnid_as_rank=True)),
            reference.fill_multi_rank_output,
        ),
        (
            FillMultiRankOutput(pb.FillMultiRankOutputConfig(enable_lineid_rank_as_rank=True)),
            reference.fill_multi_rank_output,
        ),
    ],
)
@given(rows=st.lists(_rows, max_size=6), start=st.integers(0, 2))
def test_labels_equal_the_reference(
    step: Step, expected: Callable[..., dict[str, Any]], rows: list[dict[str, Any]], start: int
) -> None:
    made, _ = _processed(step, rows, start)
    assert [row["label"] for row in made] == [float32(expected(row, step.config)["label"]) for row in rows[start:]]


@given(st.lists(_rows, max_size=6), st.integers(0, 2), st.integers(0, 5))
def test_labels_of_tasks_equal_the_reference(rows: list[dict[str, Any]], start: int, seed: int) -> None:
    config = pb.AddLabelConfig(task_label_configs=_TASKS, negative_value=-1, new_sample_rate=0.5)
    step = AddLabel(config, StepContext(seed, "labels"))
    made, _ = _processed(step, rows, start)
    expected = [
        reference.add_label(row, config, [0.0, uniform_of(seed, "labels/task1", (0, offset, 0))])
        for offset, row in enumerate(rows)
    ][start:]
    assert [row["label"] for row in made] == [row["label"] for row in expected]
    assert [row["sample_rate"] for row in made] == [0.5] * len(expected)
    assert made == _processed(step, rows, start)[0]


def test_a_batch_without_any_column_of_theirs_is_labelled_as_one_of_nulls() -> None:
    bare = batch_of([{}, {}], []).drop_columns(["__LABEL__"])
    step = AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1]}]))
    assert step.process(bare, Counter())["__LABEL__"].to_pylist() == [[0.0], [0.0]]
    rank = FillMultiRankOutput(pb.FillMultiRankOutputConfig(enable_draw_as_rank=True))
    assert rank.process(bare, Counter())["__LABEL__"].to_pylist() == [[0.0], [0.0]]
    assert bare.schema.names == ["__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__"]


def test_negatives_get_a_label_at_the_rate_of_their_task() -> None:
    step = AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1], "sample_rate": 0.3}]))
    made = step.process(batch_of([{}] * 20_000, []), Counter())["__LABEL__"]
    labelled = pa.compute.sum(pa.compute.equal(made.flatten(), 0.0)).as_py()
    assert abs(labelled - 6000) < 4 * (20_000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AddLabel(pb.AddLabelConfig()), "task_label_configs"),
        (lambda: AddLabel(pb.AddLabelConfig(task_label_configs=[{}])), r"task_label_configs\[0\].pos_actions"),
        (
            lambda: AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1], "neg_actions": [2, 1]}])),
            r"task_label_configs\[0\].neg_actions=1: the action is positive too",
        ),
        (
            lambda: AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1], "sample_rate": 1.5}])),
            r"task_label_configs\[0\].sample_rate=1.5",
        ),
        (
            lambda: AddLabel(pb.AddLabelConfig(task_label_configs=[{"pos_actions": [1]}], new_sample_rate=0)),
            "new_sample_rate=0",
        ),
        (lambda: ScatterLabel(pb.ScatterLabelConfig()), "channel_index"),
        (lambda: ScatterLabel(pb.ScatterLabelConfig(channel_index={1: -1})), "channel_index=-1: position out of range"),
        (lambda: _gen(head_field="chnids"), "head_field=chnids: neither an integer nor a string"),
        (lambda: _gen(head_field="q_pred"), "head_field=q_pred: neither an integer nor a string"),
        (lambda: _gen(head_field="chnid"), "head_index.ios"),
        (lambda: _gen(head_field="chnid", head_index={"07": 0}), "head_index.07=0: not an int64"),
        (lambda: _gen(head_field="rank", head_index={"2147483648": 0}), "head_index.2147483648=0: not an int32"),
        (lambda: _gen(task_num=1), "task_num=1: out of range; choose 2..4096"),
        (lambda: _gen(neg_actions=[2]), "neg_actions=2: the action is positive too"),
        (lambda: _gen(use_origin_label=True), "use_origin_label"),
        (lambda: _gen(pos_actions=[]), "pos_actions=: no actions"),
        (lambda: _gen(action_priority=[1, 1]), "action_priority=1: the action is there twice"),
        (lambda: FillMultiRankOutput(pb.FillMultiRankOutputConfig()), "no rank is enabled"),
        (
            lambda: FillMultiRankOutput(pb.FillMultiRankOutputConfig(enable_draw_as_rank=True, rank_num=0)),
            "rank_num=0",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(make: Callable[[], Step], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def _gen(**changes: Any) -> MultiLabelGen:
    settings = {"head_field": "device_type", "head_index": {"ios": 1}, "pos_actions": [2]} | changes
    return MultiLabelGen(pb.MultiLabelGenConfig(**settings))
