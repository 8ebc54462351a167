"""Batches of rows with every kind of column, for tests of whole chains."""

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v1, fid_v2
from millrace.transforms.batch.line_id import FIELDS
from millrace.transforms.batch.list_columns import list_array, splits_of
from millrace.transforms.batch.provenance import with_provenance


def random_rows(rows: int, seed: int = 0, first_offset: int = 0) -> pa.RecordBatch:
    """`rows` rows with provenance; about one value in ten is null, and lists have none to three values."""
    draw = np.random.default_rng([seed, first_offset])
    batch = with_provenance(pa.record_batch({"__REQ_TIME__": pa.array(1_764_000_000 + np.arange(rows))}))
    offsets = pa.array(np.arange(first_offset, first_offset + rows))
    batch = record_batch.with_column(batch, pa.field(record_batch.SOURCE_OFFSET, pa.int64()), offsets)
    for slot, name in enumerate(("user", "item", "item_id", "genre"), 1):
        fids = fid_v2(slot, draw.integers(0, 50, rows))
        batch = record_batch.with_column(batch, record_batch.fid_field(name), _lists(draw, fids, rows, pa.int64()))
    for slot in (1, 2):
        name = f"fc_slot_{slot}"
        field = pa.field(name, pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA)
        column = _lists(draw, fid_v1(slot, draw.integers(0, 50, rows)), rows, pa.int64())
        batch = record_batch.with_column(batch, field, column)
    for name, values in (
        ("price", draw.random(rows).astype(np.float32)),
        ("city", draw.choice([123, 456, 789], rows)),
        (record_batch.LABEL, draw.choice([-1.0, 0.0, 1.0, 5000.0], rows).astype(np.float32)),
        ("__ACTIONS__", draw.integers(1, 5, rows).astype(np.int32)),
        ("__PRE_ACTIONS__", draw.integers(1, 5, rows).astype(np.int32)),
        ("__SPECIAL_STRATEGIES__", draw.integers(1, 4, rows).astype(np.int32)),
    ):
        column = _lists(draw, values, rows, pa.array(values).type)
        batch = record_batch.with_column(batch, pa.field(name, column.type), column)
    for name, values in (
        ("uid", draw.integers(0, 100, rows)),
        ("item_id", draw.integers(0, 50, rows)),
        ("read_count", draw.integers(0, 6, rows)),
        ("rank", draw.integers(0, 20, rows)),
        ("chnid", draw.choice([0, 100, 200, 300], rows)),
        ("video_play_time", draw.choice([0.0, 60.0, 9000.0], rows)),
        ("device_type", draw.choice(["ios", "android", "pc"], rows)),
    ):
        column = pa.array(values, mask=draw.random(rows) < 0.1).cast(FIELDS[name].type)
        batch = record_batch.with_column(batch, pa.field(FIELDS[name].column, column.type), column)
    return batch


def _lists(draw: np.random.Generator, values: np.ndarray, rows: int, kind: pa.DataType) -> pa.ListArray:
    counts = draw.integers(0, 4, rows)
    nulls = draw.random(rows) < 0.1
    counts[nulls] = 0
    chosen = values[draw.integers(0, max(1, rows), int(counts.sum()))] if rows else values[:0]
    return list_array(chosen, splits_of(counts), kind, nulls)
