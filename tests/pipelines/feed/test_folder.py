"""The folder that a bounded feed fills: what other commands read of it is what was written."""

from pathlib import Path

import pyarrow as pa

from millrace.pipelines.feed.folder import WriteParquetDoFn
from millrace.pipelines.files.containers import read_parquet
from millrace.transforms.batch import dead_letter
from tests.reference.file_batches import canonical_batch


def read(path: Path) -> pa.RecordBatch:
    with open(path, "rb") as file:
        (batch, dead), *rest = read_parquet(file, 0, str(path))
    assert not rest and not dead.num_rows
    return batch


def test_rows_are_read_again_as_they_were_written_types_and_all(tmp_path: Path) -> None:
    rows = canonical_batch(10)
    assert list(WriteParquetDoFn(tmp_path).process(("rows", rows))) == ["rows"]
    again = read(tmp_path / "rows.parquet")
    assert [(each.name, each.type, each.metadata) for each in again.schema] == [
        (each.name, each.type, each.metadata) for each in rows.schema
    ]
    assert again.to_pylist() == rows.to_pylist()


def test_a_table_that_is_not_of_rows_does_not_say_that_it_is(tmp_path: Path) -> None:
    list(WriteParquetDoFn(tmp_path, rows=False).process(("dead", dead_letter_of("x"))))
    assert read(tmp_path / "dead.parquet").schema.field("reason").type == pa.list_(pa.binary())


def dead_letter_of(topic: str) -> pa.RecordBatch:
    row = {"value": b"v", "topic": topic, "partition": 0, "offset": 7, "reason": "truncated", "detail": "d"}
    return pa.RecordBatch.from_pylist([row], schema=dead_letter.SCHEMA)
