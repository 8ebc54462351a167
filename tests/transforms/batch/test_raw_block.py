"""The builder of raw blocks."""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch.raw_block import raw_block, raw_schema, raw_topic


def test_a_block_has_the_schema_of_its_topic_and_one_partition_or_one_per_record() -> None:
    block = raw_block("t", [b"a", None], 3, [7, 8])
    assert block.schema.equals(raw_schema("t"), check_metadata=True)
    assert raw_topic(block) == "t"
    assert block.to_pylist() == [
        {"value": b"a", "partition": 3, "offset": 7, "timestamp_ms": 0},
        {"value": None, "partition": 3, "offset": 8, "timestamp_ms": 0},
    ]
    values = pa.array([b"a", None], pa.binary())
    assert raw_block("t", values, np.array([3, 3]), np.array([7, 8]), [0, 0]).equals(block)


def test_a_block_of_no_records_has_the_same_schema() -> None:
    assert raw_block("t", [], 0, []).schema.equals(raw_schema("t"), check_metadata=True)
