"""Codecs as steps of a pipeline."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from millrace.runtime.errors import UserError
from millrace.transforms.beam.codecs import (
    DecodeAvro,
    DecodeRecords,
    DecodeTfExamples,
    Deframe,
    EncodeRecords,
    encode_block,
)
from millrace.transforms.codecs.tf_example import TfExampleOptions, encode_tf_examples
from millrace.transforms.frames.framing import KAFKA_FRAMES, join_frames
from tests.reference.file_batches import events_block
from tests.reference.record_rows import random_rows

SCHEMA = {"type": "record", "name": "R", "fields": [{"name": "__UID__", "type": "long"}]}


def check(blocks: list[pa.RecordBatch], step: beam.PTransform, rows: list[tuple], dead: list[tuple]) -> None:
    """Runs the step; `rows` are (offset, first column), `dead` (offset, reason)."""
    with TestPipeline() as pipeline:
        outputs = pipeline | beam.Create(blocks) | step
        assert_that(outputs["rows"] | "Rows" >> beam.FlatMap(_rows), equal_to(rows), "Rows are right")
        letters = outputs["dead_letters"] | "Dead" >> beam.FlatMap(_letters)
        assert_that(letters, equal_to(dead), "Dead letters are right")


def _rows(batch: pa.RecordBatch) -> list[tuple[int, Any]]:
    offsets = batch.column("offset" if "offset" in batch.schema.names else "__SOURCE_OFFSET__")
    return list(zip(offsets.to_pylist(), batch.column(0).to_pylist(), strict=True))


def _letters(dead: pa.RecordBatch) -> list[tuple[int, str]]:
    return [(row["offset"], row["reason"]) for row in dead.to_pylist()]


def test_values_are_cut_into_their_records() -> None:
    value = join_frames(pa.array([b"a", b"b"], pa.binary()), KAFKA_FRAMES).to_pybytes()
    check([events_block([value, value[:-1]])], Deframe(), [(0, b"a"), (0, b"b"), (1, b"a")], [(1, "truncated")])


def test_avro_values_become_rows() -> None:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(SCHEMA), {"__UID__": 7})
    blocks = [events_block([stream.getvalue(), b""])]
    check(blocks, DecodeAvro(SCHEMA, json.dumps(SCHEMA)), [(0, 7)], [(1, "malformed_avro")])


def test_tf_examples_become_rows() -> None:
    options = TfExampleOptions({"item": 1})
    batch = pa.RecordBatch.from_pydict({"item": [[5]]})
    blocks = [events_block([encode_tf_examples(batch, options)[0].as_py(), b"\xff"])]
    check(blocks, DecodeTfExamples(options), [(0, [1 << 48 | 5])], [(1, "malformed_frame")])


def test_wrong_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either a schema or a registry"):
        DecodeAvro(SCHEMA)
    with pytest.raises(UserError, match="reader_schema"):
        DecodeAvro("no", SCHEMA)
    with pytest.raises(UserError, match="cannot be read"):
        DecodeAvro(SCHEMA, registry_file=str(tmp_path / "none"))


def test_steps_show_their_settings() -> None:
    assert "kafka_dump=False" in Deframe().display_data()["frames"]
    assert DecodeTfExamples(TfExampleOptions({"item": 1}, label="y")).display_data() == {
        "sparse_features": "item",
        "label": "y",
    }


def test_rows_go_to_records_and_back_where_they_came_from() -> None:
    rows = random_rows(40)
    with TestPipeline() as pipeline:
        blocks = pipeline | beam.Create([rows]) | EncodeRecords("example")
        found = blocks | DecodeRecords("example", features=["user", "price"])
        assert_that(found["rows"], _holds_rows(rows))


def _holds_rows(expected: pa.RecordBatch) -> Callable[[list[pa.RecordBatch]], None]:
    names = ["user", "price", "__UID__", "__SOURCE_PARTITION__", "__SOURCE_OFFSET__", "__SOURCE_ROW__"]

    def check(found: list[pa.RecordBatch]) -> None:
        rows = [row for batch in found for row in batch.select(names).to_pylist()]
        assert rows == expected.select(names).to_pylist()

    return check


def test_a_format_of_several_rows_a_record_is_not_for_one_record_a_row() -> None:
    with pytest.raises(ValueError, match="choose example or instance"):
        encode_block(random_rows(3), "example_batch")
