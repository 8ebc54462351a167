"""Flows in a recipe: each one's own steps, merged in the order of the rows, whatever the batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.recipe.chain import TransformChain
from tests.conformance.covers import covers
from tests.reference.flows_reference import key_of
from tests.reference.record_rows import random_rows

_NAMES = ["pc", "mobile", "cloud"]
_FLOWS = """
seed: 3
steps:
  - run_flows:
      flows:
        - data_source: pc
          steps:
            - negative_sample: {drop_rate: 0.5, threshold: 0.5}
            - generate_negatives: {neg_num: 2, item_features: [item], start_num: 3, positive_label: 1}
        - data_source: mobile
          steps: [{mask_fid: {feature_name: item, fid: 562949953421313, output_name: is_first}}]
"""


def _rows(count: int, seed: int = 0, names: list[str] = _NAMES) -> pa.RecordBatch:
    rows = random_rows(count, seed)
    keys = np.array([key_of(name) for name in names])[np.arange(count) % len(names)]
    return record_batch.with_column(rows, pa.field("__DATA_SOURCE_KEY__", pa.uint32()), pa.array(keys, pa.uint32()))


def _places(rows: pa.RecordBatch) -> list[tuple[int, str]]:
    columns = (rows.column("__SOURCE_OFFSET__"), rows.column("__DATA_SOURCE_NAME__"))
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


@covers("data:v8")
def test_rows_of_three_flows_are_split_and_merged_in_order_without_loss() -> None:
    flows = ", ".join(f"{{data_source: {name}}}" for name in _NAMES)
    chain = TransformChain.parse(f"steps: [{{run_flows: {{flows: [{flows}]}}}}]")
    rows = _rows(4096)
    found = chain.process(rows)
    assert _places(found) == [(row, _NAMES[row % 3]) for row in range(4096)]
    assert found.drop_columns(["__DATA_SOURCE_NAME__"]).equals(
        rows.drop_columns([name for name in ["__DATA_SOURCE_NAME__"] if name in rows.schema.names])
    )


def test_each_flow_has_its_steps_and_rows_of_other_sources_are_dropped_and_counted() -> None:
    chain = TransformChain.parse(_FLOWS)
    rows = _rows(300)
    found = chain.process(rows)
    pc, mobile = (found.filter(pa.array([name == each for _, name in _places(found)])) for each in _NAMES[:2])
    assert set(_places(found)) <= {(row, _NAMES[row % 3]) for row in range(300) if row % 3 < 2}
    assert mobile.num_rows == 100
    assert mobile.column("is_first").null_count == 0 and pc.column("is_first").null_count == pc.num_rows
    assert 100 < pc.num_rows < 300
    (counts,) = chain.take_counts().values()
    assert (counts["rows_in"], counts["rows_dropped"], counts["rows_out"]) == (300, 100, found.num_rows)
    assert counts["pc.0.negative_sample.rows_in"] == 100
    assert counts["pc.0.negative_sample.rows_dropped"] == 100 - counts["pc.1.generate_negatives.rows_in"] > 20
    assert counts["mobile.0.mask_fid.rows_out"] == 100


def test_rows_leave_in_the_order_of_their_originals_and_copies_stand_beside_them() -> None:
    found = TransformChain.parse(_FLOWS).process(_rows(300))
    offsets = [offset for offset, _ in _places(found)]
    assert offsets == sorted(offsets)
    assert "__FLOW_ORDER__" not in found.schema.names


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_flows_may_be_cut_into_batches_anywhere(seed: int) -> None:
    batch = _rows(90, seed)
    cuts = sorted(np.random.default_rng(seed).integers(0, 91, 4).tolist())
    pieces = [batch.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, 90], strict=True)]
    whole, cut = TransformChain.parse(_FLOWS), TransformChain.parse(_FLOWS)
    expected = [_without_nulls(row) for row in whole.process(batch).to_pylist()]
    assert [_without_nulls(row) for piece in pieces for row in cut.process(piece).to_pylist()] == expected
    assert whole.take_counts() == cut.take_counts()


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A batch without rows of a flow lacks the columns that only its steps make."""
    return {name: value for name, value in row.items() if value is not None}


def test_what_the_steps_of_flows_have_learnt_goes_on_where_it_was_saved() -> None:
    batches = [_rows(60, seed) for seed in range(4)]
    whole, first = TransformChain.parse(_FLOWS), TransformChain.parse(_FLOWS)
    assert whole.stateful and whole.fanout == 3
    for batch in batches:
        expected = whole.process(batch).to_pylist()
        assert first.process(batch).to_pylist() == expected
        restored = TransformChain.parse(_FLOWS)
        restored.restore(first.save())
        first = restored


def test_flows_without_stateful_steps_have_no_state() -> None:
    chain = TransformChain.parse("steps: [{run_flows: {flows: [{data_source: pc, steps: [{convert_fids: {}}]}]}}]")
    assert not chain.stateful and chain.fanout == 1
    assert chain.save() == TransformChain.parse("steps: []").save()


def test_a_step_of_a_flow_does_not_choose_as_a_step_before_the_flows() -> None:
    sample = "negative_sample: {drop_rate: 0.5, threshold: 2}"
    chain = TransformChain.parse(
        f"steps: [{{{sample}}}, {{run_flows: {{flows: [{{data_source: pc, steps: [{{{sample}}}]}}]}}}}]"
    )
    rows = _rows(2000, names=["pc"])
    labels = pa.array([[0.0]] * 2000, pa.list_(pa.float32()))
    rows = record_batch.with_column(rows, pa.field("__LABEL__", labels.type), labels)
    assert 400 < chain.process(rows).num_rows < 600


def test_actions_of_an_event_feed_keep_their_names_through_the_steps_of_a_flow() -> None:
    rows = _rows(3, names=["pc"])
    actions = pa.array([["click"], ["share"], []], pa.list_(pa.string()))
    rows = record_batch.with_column(rows, pa.field("__ACTIONS__", actions.type), actions)
    text = "{run_flows: {flows: [{data_source: pc, steps: [{filter_by_action: {has_actions: [1]}}]}]}}"
    found = TransformChain.parse(f"action_ids: {{click: 1}}\nsteps: [{text}]").process(rows)
    assert found.column("__ACTIONS__").to_pylist() == [["click"]]


_SHARD = "{shard_fids: {feature_configs: {feature_configs: {user: {table: u, slice_dims: [1]}}}}}"


@pytest.mark.parametrize(
    ("flows", "words"),
    [
        ("[]", r"recipe:3: steps\[0\].run_flows.flows=: empty"),
        ("[{steps: []}]", r"steps\[0\].run_flows.flows\[0\].data_source=: empty"),
        ("[{data_source: a}, {data_source: a}]", r"flows\[1\].data_source=a: has a flow already"),
        ("[{data_source: Aa}, {data_source: BB}]", "flows=BB: has the same key as 'Aa'"),
        ("[{data_source: a, steps: [{project: {}}]}]", r"run_flows.flows\[0\].steps\[0\].project.feature_names="),
        ("[{data_source: a, steps: [{projec: {}}]}]", r"flows\[0\].steps\[0\].projec.*: unknown field; did you mean"),
        (f"[{{data_source: a, steps: [{_SHARD}]}}]", r"flows\[0\].steps\[0\]=.*shard_fids: is no step of a flow"),
        ("[{data_source: a, steps: [{run_flows: {flows: [{data_source: b}]}}]}]", "run_flows: is no step of a flow"),
    ],
)
def test_flows_that_cannot_work_are_refused_where_they_are_written(flows: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TransformChain.parse(f"steps:\n- run_flows:\n    flows: {flows}\n")


def test_the_example_recipe_is_one_for_three_flows() -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "recipes" / "flows.yaml"
    rows = _rows(300, names=["mobile", "pc", "tablet"])
    chain = TransformChain.read(str(path))
    found = chain.process(rows)
    assert {name for _, name in _places(found)} == {"mobile", "pc", "tablet"}
    assert chain.take_counts()["0.run_flows"]["rows_dropped"] == 0


def test_a_column_of_two_types_after_the_flows_is_named() -> None:
    step = "mask_fid: {feature_name: item, fid: 562949953421313, output_name: user}"
    chain = TransformChain.parse(
        f"steps: [{{run_flows: {{flows: [{{data_source: pc, steps: [{{{step}}}]}}, {{data_source: mobile}}]}}}}]"
    )
    with pytest.raises(UserError, match="flows=pc, mobile: column user: .*; let the steps"):
        chain.process(_rows(12))
