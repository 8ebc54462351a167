"""Small batches of every kind of column, and raw blocks."""

import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.batch.raw_block import raw_block


def canonical_batch(rows: int) -> pa.RecordBatch:
    """Features of each kind, with nulls and empty lists, and some row metadata; provenance included."""
    numbers = list(range(rows))
    columns = {
        record_batch.fid_field("slot_1"): [None if n % 5 == 4 else [1 << 48 | n] * (n % 3) for n in numbers],
        pa.field("v1", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA): [[-n] for n in numbers],
        pa.field("context.hour", pa.list_(pa.int64())): [[n % 24] for n in numbers],
        pa.field("ue", pa.list_(pa.float32())): [[n / 2, -n / 4] for n in numbers],
        pa.field("double", pa.list_(pa.float64())): [[n / 3] for n in numbers],
        pa.field("name", pa.list_(pa.binary())): [[bytes([n % 256]), b""] for n in numbers],
        pa.field("nested", pa.list_(pa.list_(pa.int64()))): [[[n], [], [n, n]] for n in numbers],
        pa.field("scalar", pa.int64()): [None if n % 4 == 3 else n for n in numbers],
        pa.field("__LABEL__", pa.list_(pa.float32())): [[float(n % 2)] for n in numbers],
        pa.field("__UID__", pa.int64()): [n * n for n in numbers],
        pa.field("__REQ_ID__", pa.string()): [f"r{n}" for n in numbers],
        pa.field("__ACTIONS__", pa.list_(pa.int32())): [[n % 7] * (n % 2) for n in numbers],
    }
    arrays = [pa.array(values, field.type) for field, values in columns.items()]
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(list(columns)))
    return with_provenance(batch, partition=2, first_offset=100)


def events_block(values: list[bytes | None], partition: int = 3, first_offset: int = 0) -> pa.RecordBatch:
    """A raw block of the topic `events`."""
    offsets = range(first_offset, first_offset + len(values))
    return raw_block("events", values, partition, offsets, 1_764_000_000_000)
