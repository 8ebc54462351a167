"""Chains of steps: what a recipe builds, in what order it acts, what it counts, and what it refuses."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.data_source import data_source_key
from millrace.transforms.batch.provenance import ROWS_PER_RECORD, provenance_of, with_provenance
from millrace.transforms.recipe.chain import STEPS, TransformChain, make_step
from millrace.transforms.recipe.text import KINDS, parse_recipe
from millrace.transforms.steps.step import Predicate, StepContext
from tests.conformance.covers import covers
from tests.reference.record_rows import random_rows


def _example(kind: str) -> str:
    lines = STEPS[kind].example.strip().splitlines()
    return "steps:\n- " + "\n  ".join(lines) + "\n"


def test_every_kind_of_step_has_a_class_and_every_class_a_kind() -> None:
    assert set(STEPS) == set(KINDS)


@pytest.mark.parametrize("kind", STEPS)
def test_the_example_of_every_step_is_a_recipe(kind: str) -> None:
    chain = TransformChain.parse(_example(kind))
    assert [type(step) for step in chain.steps] == [STEPS[kind]]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_every_step_leaves_its_input_as_it_is_and_counts_its_rows(kind: str, rows: int) -> None:
    batch = random_rows(rows)
    copy = record_batch.from_bytes(record_batch.to_bytes(batch))
    chain = TransformChain.parse(_example(kind))
    after = chain.process(batch)
    assert batch.equals(copy)
    (counts,) = chain.take_counts().values()
    assert (counts["rows_in"], counts["rows_out"]) == (rows, after.num_rows)


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind != "shard_fids"])
def test_every_step_makes_the_same_of_a_slice_as_of_a_copy(kind: str) -> None:
    batch = random_rows(60).slice(7, 41)
    copy = record_batch.from_bytes(record_batch.to_bytes(batch))
    ours, theirs = (TransformChain.parse(_example(kind)).process(each) for each in (batch, copy))
    assert ours.to_pylist() == theirs.to_pylist()


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind != "shard_fids"])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_may_be_cut_into_batches_anywhere(kind: str, seed: int) -> None:
    batch = random_rows(90, seed)
    cuts = sorted(np.random.default_rng(seed).integers(0, 91, 4).tolist())
    pieces = [batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, 90], strict=True)]
    whole, cut = TransformChain.parse(_example(kind)), TransformChain.parse(_example(kind))
    expected = whole.process(batch).to_pylist()
    assert [row for piece in pieces for row in cut.process(piece).to_pylist()] == expected
    assert whole.take_counts() == cut.take_counts()


@covers("data:v16")
def test_filters_and_a_choice_of_two_keep_the_fifteen_rows_that_fulfil_them() -> None:
    rows = 40
    number = np.arange(rows)
    fids = [[290956192322012601] if row >= 10 else [] for row in range(rows)]
    field = pa.field("fc_slot_16", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA)
    batch = pa.RecordBatch.from_arrays([pa.array(fids, field.type)], schema=pa.schema([field]))
    for name, values in (
        ("__READ_COUNT__", pa.array(np.where(number >= 20, 0, 5))),
        ("__VIDEO_PLAY_TIME__", pa.array(np.where((number >= 20) & (number < 30), 0, 7).astype(np.float32))),
        ("__ACTIONS__", pa.array([[2] if 30 <= row < 35 else [1] for row in range(rows)], pa.list_(pa.int32()))),
    ):
        batch = record_batch.with_column(batch, pa.field(name, values.type), values)
    chain = TransformChain.parse(
        """
        steps:
          - filter_by_fid: {select_fids: [290956192322012601]}
          - filter_by_value: {field_name: read_count, op: in, int_operand: [0]}
          - logical_or:
              x: {filter_by_value: {field_name: video_play_time, op: eq, float_operand: [0]}}
              y: {filter_by_action: {has_actions: [2]}}
        """
    )
    assert chain.process(batch).num_rows == 15
    counts = list(chain.take_counts().values())
    assert [each["rows_out"] for each in counts] == [30, 20, 15]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([kind for kind in STEPS if issubclass(STEPS[kind], Predicate)]), max_size=5), st.data())
def test_filters_in_a_row_keep_what_they_keep_one_by_one(kinds: list[str], data: st.DataObject) -> None:
    batch = random_rows(data.draw(st.integers(0, 50)), data.draw(st.integers(0, 5)))
    text = "steps: []" if not kinds else "steps:\n" + "".join(_example(kind).partition("\n")[2] for kind in kinds)
    chain = TransformChain.parse(text)
    expected = batch
    for index, kind in enumerate(kinds):
        config = chain.config.configs[index]
        expected = make_step(config, StepContext(0, f"{index}.{kind}")).process(expected, Counter())
    assert chain.process(batch).to_pylist() == expected.to_pylist()


def test_an_empty_recipe_changes_nothing() -> None:
    batch = random_rows(5)
    assert TransformChain(pb.TransformConfig()).process(batch) is batch


def test_the_actions_of_an_event_feed_keep_their_names_through_steps_that_know_numbers() -> None:
    actions = pa.array([["click"], ["like", "share"], [], ["wink"]], pa.list_(pa.string()))
    batch = with_provenance(pa.record_batch({"__ACTIONS__": actions, "__READ_COUNT__": pa.array([1] * 4)}))
    chain = TransformChain.parse(
        """
        action_ids: {click: 1, like: 2}
        steps:
          - none_of: {predicates: [{filter_by_action: {has_actions: [1]}}]}
          - add_action: {field_name: read_count, op: eq, int_operand: [1], action: 2}
        """
    )
    assert chain.process(batch).column("__ACTIONS__").to_pylist() == [
        ["like", "share", "like"],
        ["like"],
        ["wink", "like"],
    ]


def test_actions_have_their_names_back_when_rows_are_sharded() -> None:
    actions = pa.array([["click"], []], pa.list_(pa.string()))
    batch = with_provenance(pa.record_batch({"__ACTIONS__": actions}))
    sharded = TransformChain.parse(_example("shard_fids")).process(batch)
    assert sharded.column("rows.__ACTIONS__").to_pylist() == [[["click"], []]]


def test_what_a_chain_has_learnt_goes_on_where_it_was_saved() -> None:
    text = "steps: [{generate_negatives: {neg_num: 2, item_features: [item], start_num: 3, positive_label: 1}}]"
    whole, first = TransformChain.parse(text), TransformChain.parse(text)
    batches = [random_rows(30, first_offset=30 * number) for number in range(4)]
    expected = [whole.process(batch).to_pylist() for batch in batches]
    found = []
    for batch in batches:
        found.append(first.process(batch).to_pylist())
        restored = TransformChain.parse(text)
        restored.restore(first.save())
        first = restored
    assert found == expected
    assert any(len(rows) > 30 for rows in found)
    assert first.stateful and not TransformChain.parse(_example("project")).stateful


_WARM = """[
  {filter_by_action: {has_actions: [1, 2]}},
  {generate_negatives: {neg_num: 2, item_features: [item], start_num: 10, positive_label: 1, warm: true}}]"""


@pytest.mark.parametrize(
    "steps", [_WARM, f"[{{run_flows: {{flows: [{{data_source: pc, steps: {_WARM}}}]}}}}]"], ids=["chain", "flow"]
)
def test_a_first_pass_shows_each_step_the_rows_that_the_steps_before_it_let_through(steps: str) -> None:
    rows = random_rows(300)
    keys = pa.array([data_source_key("pc")] * 300, pa.uint32())
    rows = record_batch.with_column(rows, pa.field("__DATA_SOURCE_KEY__", keys.type), keys)
    cold, warm = (TransformChain.parse(f"steps: {steps}") for _ in range(2))
    assert warm.warms
    warm.warm([rows.slice(0, 125), rows.slice(125)])
    assert not any(sum(counts.values()) for counts in warm.take_counts().values())
    few, many = cold.process(rows), warm.process(rows)
    assert many.num_rows > few.num_rows
    counts = list(warm.take_counts().values())[-1]
    assert [number for name, number in counts.items() if name.endswith("draws_missed")] == [0]
    assert [number for name, number in counts.items() if name.endswith("items_added")] == [0]


@pytest.mark.parametrize("state", [b"", b"[1]\nab", b"[3]\nabc", b"{}\n", b"\xff\n", b"[[]]\n"])
def test_a_state_of_something_else_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError):
        TransformChain.parse(_example("generate_negatives")).restore(state)


def test_copies_of_copies_have_numbers_of_their_own() -> None:
    chain = TransformChain.parse(
        """
        steps:
          - reweight: {action_priority: [2, 1], max_replicas: 8,
                       weights: [{action: 1, weight: 3}, {action: 2, weight: 2}]}
          - generate_negatives: {neg_num: 2, item_features: [item], start_num: 1, positive_label: 1}
        """
    )
    assert chain.fanout == 24
    rows = provenance_of(chain.process(random_rows(200)))
    keys = list(zip(*(part.tolist() for part in rows), strict=True))
    assert len(set(keys)) == len(keys)
    assert max(row for _, _, row in keys) >= 3 * ROWS_PER_RECORD


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps:\n- filter_by_value:\n    field_name: uid\n    op: near\n", r"recipe:4: steps\[0\].filter_by_value.op"),
        ("steps:\n- id: a\n  convert_fids: {}\n- id: a\n  convert_fids: {}\n", r"recipe:4: .*=a: another step has"),
        (
            "steps:\n- " + "\n  ".join(STEPS["shard_fids"].example.splitlines()) + "\n- convert_fids: {}\n",
            "steps follow",
        ),
        ("steps:\n" + "- generate_negatives: {neg_num: 99, item_features: [x]}\n" * 2, "stay within 256"),
        ("seed: 1\naction_ids: {a: 1, b: 1}\n", "recipe:2: action_ids.b=1: a has the same number"),
        ("action_ids: {a: -1}\n", "out of range"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_runs(text: str, words: str) -> None:
    read = parse_recipe(text)
    with pytest.raises(UserError, match=words):
        TransformChain(read.config, read)


def test_a_step_without_a_kind_is_refused() -> None:
    with pytest.raises(UserError, match="a step has one kind"):
        TransformChain(pb.TransformConfig(configs=[pb.OneTransformConfig(id="nothing")]))


def test_names_of_actions_can_stay_numbers_and_each_then_needs_one() -> None:
    actions = pa.array([["click", "like"], None, [], ["like"]], pa.list_(pa.string()))
    batch = with_provenance(pa.record_batch({"__ACTIONS__": actions}))
    chain = TransformChain.parse("action_ids: {click: 1, like: 7}")
    assert chain.process(batch, number_actions=True).column("__ACTIONS__").to_pylist() == [[1, 7], None, [], [7]]
    with pytest.raises(UserError, match=r"__ACTIONS__=like: .* give a recipe with action_ids: \{like: 2\}"):
        TransformChain.parse("action_ids: {click: 1}").process(batch, number_actions=True)


def test_an_action_without_a_number_is_no_mistake_in_a_row_that_is_dropped() -> None:
    actions = pa.array([["click"], ["share"]], pa.list_(pa.string()))
    batch = with_provenance(pa.record_batch({"__ACTIONS__": actions}))
    chain = TransformChain.parse("{action_ids: {click: 1}, steps: [{filter_by_action: {has_actions: [1]}}]}")
    assert chain.process(batch, number_actions=True).column("__ACTIONS__").to_pylist() == [[1]]
