"""How many rows a block of JSON objects may become."""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.codecs.json_parser import parse_objects
from tests.reference.record_comparison import block_of


def test_a_small_block_does_not_become_a_huge_batch_of_nulls() -> None:
    block = block_of([b"{}"] * 100_000)
    refusals = Refusals(block)
    rows, positions = parse_objects(block, pa.schema([(f"f{i}", pa.int64()) for i in range(1000)]), refusals)
    assert rows.nbytes < 80 << 20
    assert 5_000 < rows.num_rows < 10_000
    assert positions.tolist() == list(range(rows.num_rows))
    dead = refusals.to_batch()
    assert dead.num_rows == 100_000 - rows.num_rows
    assert set(dead["reason"].to_pylist()) == {Reason.TOO_MANY_ROWS.value}
    assert "100000 rows x 1000 fields in one block, at most" in dead["detail"][0].as_py()


def test_rows_of_many_fields_are_taken_where_their_bytes_allow_for_them() -> None:
    record = b'{"f1": 1, "text": "' + b"x" * 200 + b'"}'
    block = block_of([record] * 5_000)
    refusals = Refusals(block)
    schema = pa.schema([(f"f{i}", pa.int64()) for i in range(1000)])
    rows, positions = parse_objects(block, schema, refusals)
    assert len(positions) == 5_000
    assert np.all(rows["f1"].to_numpy() == 1)
