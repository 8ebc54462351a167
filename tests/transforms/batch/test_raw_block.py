"""What a raw block says about where its records come from."""

import pyarrow as pa
import pytest

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.dead_letter import Reason, Refusals
from millrace.transforms.batch.provenance import source_partition
from millrace.transforms.batch.raw_block import raw_block, source_partitions
from millrace.transforms.codecs.arrow import decode_arrow
from millrace.transforms.codecs.json_decoder import decode_json
from millrace.transforms.codecs.record_codec import decode_records, encode_records
from millrace.transforms.feed.events import decode_impressions
from tests.transforms.feed.join_rows import NOW

SOURCE = 12345
EVENT = b'{"schema_version":1,"request_id":"r","user_id":1,"item_ids":[2],"timestamp_ms":%d}' % NOW
ROW = pa.record_batch({"f": pa.array([[1]], pa.list_(pa.int64()))}, schema=pa.schema([record_batch.fid_field("f")]))


def _block(value: bytes, source: int = SOURCE) -> pa.RecordBatch:
    return raw_block("t", [value], 3, [7], source=source)


def test_records_of_files_have_plain_partitions() -> None:
    assert source_partitions(_block(b"", 0)).to_pylist() == [3]


@pytest.mark.parametrize("format", ["events", "arrow", "example", "json"])
def test_rows_of_every_decoder_carry_the_number_of_the_source(format: str) -> None:
    if format == "events":
        rows, dead = decode_impressions(_block(EVENT), {}, NOW)
    elif format == "json":
        rows, dead = decode_json(_block(b'{"x": 1}'), pa.schema([("x", pa.int64())]))
    elif format == "arrow":
        rows, dead = decode_arrow(_block(record_batch.to_bytes(ROW)))
    else:
        rows, dead = decode_records(_block(encode_records(ROW, format)[0].as_py()), format)
    assert dead.num_rows == 0
    assert rows.column("__SOURCE_PARTITION__").to_pylist() == [source_partition(SOURCE, 3)]
    assert rows.schema.field("__SOURCE_PARTITION__").type == pa.int64()


def test_dead_letters_show_the_plain_partition() -> None:
    refusals = Refusals(_block(b"?"))
    refusals.add(pa.array([0]).to_numpy(), Reason.MALFORMED_JSON, "")
    assert refusals.to_batch().column("partition").to_pylist() == [3]
