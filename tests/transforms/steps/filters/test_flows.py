"""Flows: split by data source, merged, selected; in one process and in a pipeline."""

from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.display import DisplayData
from hypothesis import given, settings

from millrace.protos import transform_config_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.batch.rebatch import rebatch
from millrace.transforms.beam.flows import DEAD_LETTERS, MergeFlows, SplitFlows, unknown_source_letters
from millrace.transforms.steps.filters.flows import SelectFlows, named_flow, split_flows
from tests.conformance.covers import covers
from tests.reference.filter_batches import batches
from tests.reference.flows_reference import flow_of, key_of

NAMES = ["pc", "mobile", "cloud"]


def _rows(count: int, names: list[str]) -> pa.RecordBatch:
    keys = [key_of(names[row % len(names)]) for row in range(count)]
    batch = pa.record_batch({"__DATA_SOURCE_KEY__": pa.array(keys, pa.uint32()), "x": pa.array([[1.5]] * count)})
    return with_provenance(batch)


def _merged(flows: dict[str, pa.RecordBatch]) -> pa.RecordBatch:
    return record_batch.concat([named_flow(rows, name) for name, rows in flows.items()])


def _names_and_offsets(batch: pa.RecordBatch) -> list[tuple[str, int]]:
    columns = (batch.column("__DATA_SOURCE_NAME__"), batch.column("__SOURCE_OFFSET__"))
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


@covers("data:v8")
def test_rows_of_three_flows_are_split_and_merged_without_loss() -> None:
    flows, unknown = split_flows(_rows(4096, NAMES), NAMES)
    assert unknown.num_rows == 0
    merged = _merged(flows)
    assert sorted(_names_and_offsets(merged), key=lambda pair: pair[1]) == [
        (NAMES[row % 3], row) for row in range(4096)
    ]
    parts = list(rebatch([merged], 512))
    assert [part.num_rows for part in parts] == [512] * 8
    assert record_batch.concat(parts).equals(merged)


@covers("data:v8")
def test_a_pipeline_splits_and_merges_without_loss() -> None:
    inputs = [_rows(4096, NAMES).slice(start, 1024) for start in range(0, 4096, 1024)]
    with TestPipeline() as pipeline:
        flows = pipeline | beam.Create(inputs) | SplitFlows(NAMES)
        merged = {name: flows[name] for name in NAMES} | MergeFlows()
        pairs = merged | beam.FlatMap(_names_and_offsets)
        assert_that(pairs, equal_to([(NAMES[row % 3], row) for row in range(4096)]), "all rows")
        assert_that(flows[DEAD_LETTERS], equal_to([]), "no dead letters")


def test_rows_of_unknown_sources_are_dead_letters() -> None:
    with TestPipeline() as pipeline:
        flows = pipeline | beam.Create([_rows(5, NAMES)]) | SplitFlows(["pc", "mobile"])
        letters = flows[DEAD_LETTERS] | beam.FlatMap(lambda batch: batch.drop_columns(["value"]).to_pylist())
        expected = {
            "topic": None,
            "partition": 0,
            "offset": 2,
            "reason": "unknown_data_source",
            "detail": "data source key 2782803200",
            "truncated_from": None,
        }
        assert_that(letters, equal_to([expected]))


def test_a_dead_letter_holds_its_row() -> None:
    rows = _rows(2, ["cloud"])
    letters = unknown_source_letters(rows)
    assert letters.schema.equals(dead_letter.SCHEMA)
    values = [record_batch.from_bytes(value) for value in letters.column("value").to_pylist()]
    assert record_batch.concat(values).equals(rows)


def test_a_dead_letter_of_a_large_row_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter, "MAX_VALUE_BYTES", 100)
    letters = unknown_source_letters(_rows(1, ["cloud"]).drop_columns(["__SOURCE_OFFSET__"]))
    assert len(letters.column("value")[0].as_py()) == 100
    assert letters.column("truncated_from")[0].as_py() > 100
    assert letters.column("offset").to_pylist() == [None]


@settings(deadline=None, max_examples=60)
@given(batches("__DATA_SOURCE_KEY__", "ints"))
def test_split_equals_its_reference(batch: pa.RecordBatch) -> None:
    names = ["pc", "cloud"]
    flows, unknown = split_flows(batch, names)
    expected = [flow_of(row, names) for row in batch.to_pylist()]
    for name, rows in [*flows.items(), (None, unknown)]:
        wanted = np.array([flow == name for flow in expected], bool)
        assert repr(rows.to_pylist()) == repr(batch.filter(pa.array(wanted)).to_pylist())
    select = SelectFlows(pb.SelectFlowsConfig(data_sources=names))
    assert select.keep(batch).tolist() == [flow is not None for flow in expected]


def test_flows_with_other_columns_are_merged_with_nulls() -> None:
    merged = _merged({"pc": pa.record_batch({"a": [1]}), "mobile": pa.record_batch({"b": [2]})})
    assert merged.to_pylist() == [
        {"a": 1, "__DATA_SOURCE_NAME__": "pc", "b": None},
        {"a": None, "__DATA_SOURCE_NAME__": "mobile", "b": 2},
    ]


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    same = ["Aa", "BB"]  # the classic collision of Java's hash
    with pytest.raises(UserError, match="flows=BB: has the same key as 'Aa'"):
        SplitFlows(same)
    with pytest.raises(UserError, match="step.data_sources=BB"):
        SelectFlows(pb.SelectFlowsConfig(data_sources=same))
    with pytest.raises(UserError, match="step.data_sources=: empty"):
        SelectFlows(pb.SelectFlowsConfig())
    with pytest.raises(UserError, match="flows=dead_letters"):
        SplitFlows(["dead_letters"])


def test_the_transform_shows_its_flows_and_types() -> None:
    split = SplitFlows(NAMES)
    assert {item.key: item.value for item in DisplayData.create_from(split).items}["flows"] == "pc, mobile, cloud"
    with TestPipeline() as pipeline:
        flows = pipeline | beam.Create([_rows(1, NAMES)]) | split
        assert flows["pc"].element_type == pa.RecordBatch
        merged: Any = {"pc": flows["pc"]} | MergeFlows()
        assert merged.element_type == pa.RecordBatch
