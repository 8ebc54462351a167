"""The canonical batch: column names, Arrow schemas and bytes.

A row of a train batch is one (impression, item). `transforms/README.md` describes every column.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

LABEL = "__LABEL__"
WEIGHT = "__WEIGHT__"
SAMPLE_RATE = "__SAMPLE_RATE__"
UID = "__UID__"
ITEM_ID = "__ITEM_ID__"
REQ_ID = "__REQ_ID__"
REQ_TIME = "__REQ_TIME__"
EVENT_TIME_MS = "__EVENT_TIME_MS__"
ACTIONS = "__ACTIONS__"
SOURCE_PARTITION = "__SOURCE_PARTITION__"
SOURCE_OFFSET = "__SOURCE_OFFSET__"
SOURCE_ROW = "__SOURCE_ROW__"
AUDIT = "__AUDIT__"

INVALID_LABEL = float(np.finfo(np.float32).min)
"""Label of a head that a row says nothing about: the lowest float32, -3.4028235e38."""

_LOWEST_VALID_LABEL = np.float32(INVALID_LABEL / 2)

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
"""Kafka header `content-type` of a train block."""

MAX_BLOCK_BYTES = 1_000_000
"""Largest train block: below the 1 MiB that a Kafka broker accepts by default, headers included."""

KIND_KEY = b"millrace.kind"
FID_METADATA = {KIND_KEY: b"fid"}
FID_V1_METADATA = {KIND_KEY: b"fid_v1"}
RAW_METADATA = {KIND_KEY: b"raw"}
"""Field metadata that tell the kind of a feature: fids v2, fids v1 as they came, or raw bytes.

Features without a kind hold plain values of their Arrow type.
"""

ID_KEY = b"millrace.id"
"""Field metadata: the number that the feature has in the records that it came from, decimal."""

SHARED_KEY = b"millrace.shared"
"""Field metadata, b"1": the records gave one list of values for all their rows. It is a hint: batches that were merged
may carry it though their rows differ, so a reader compares the rows."""

METADATA_FIELDS: tuple[pa.Field, ...] = (
    pa.field(LABEL, pa.list_(pa.float32())),
    pa.field(WEIGHT, pa.float32()),
    pa.field(SAMPLE_RATE, pa.float32()),
    pa.field(UID, pa.int64()),
    pa.field(ITEM_ID, pa.int64()),
    pa.field(REQ_ID, pa.string()),
    pa.field(REQ_TIME, pa.int64()),
    pa.field(EVENT_TIME_MS, pa.int64()),
    pa.field(ACTIONS, pa.list_(pa.string())),
    pa.field(SOURCE_PARTITION, pa.int64()),
    pa.field(SOURCE_OFFSET, pa.int64()),
    pa.field(SOURCE_ROW, pa.int32()),
)


def is_valid_label(labels: Any) -> Any:
    """Which labels say something: a bool, array or tensor of bool in the shape of `labels`.

    Those above half of INVALID_LABEL do. INVALID_LABEL plus any ordinary number, minus infinity and NaN say nothing.
    """
    return labels > _LOWEST_VALID_LABEL


def fid_field(name: str) -> pa.Field:
    """The field of a sparse feature: `list<int64>` of fid v2."""
    return pa.field(name, pa.list_(pa.int64()), metadata=FID_METADATA)


def train_schema(features: Sequence[str]) -> pa.Schema:
    """Schema of a train batch with the sparse features of these names, in this order."""
    return pa.schema([fid_field(name) for name in features] + list(METADATA_FIELDS))


def to_bytes(batch: pa.RecordBatch) -> bytes:
    """One Arrow IPC stream with one batch. Of a slice only the visible rows are written."""
    batch = _without_hidden_values(batch)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _without_hidden_values(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` where columns of empty lists have no hidden values: Arrow would write those of the whole parent."""
    for index, field in enumerate(batch.schema):
        column = batch.column(index)
        if pa.types.is_list(field.type) and not pa.types.is_primitive(field.type.value_type) and len(column):
            first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
            if first == last and len(column.values):
                empty_rows = pa.array(np.zeros(len(column) + 1, np.int32))
                mask = column.is_null() if column.null_count else None
                values = pa.array([], field.type.value_type)
                batch = batch.set_column(
                    index, field, pa.ListArray.from_arrays(empty_rows, values, field.type, mask=mask)
                )
    return batch


class NotArrowError(ValueError):
    """Bytes that should be an Arrow IPC stream and are not."""


def from_bytes(data: bytes | memoryview | pa.Buffer) -> pa.RecordBatch:
    """The batch of one Arrow IPC stream; NotArrowError when `data` is anything else."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            batches = list(reader)
            schema = reader.schema
    except (pa.ArrowException, OSError) as error:
        raise NotArrowError(f"not an Arrow IPC stream of {len(data)} bytes: {error}") from error
    if len(batches) == 1:
        return batches[0]
    return concat(batches, schema)


def concat(batches: Sequence[pa.RecordBatch], schema: pa.Schema | None = None) -> pa.RecordBatch:
    """One batch with the rows of all, in order; what a batch has no column for is null.

    Args:
      schema: of the result when there are no batches.

    Raises: ValueError naming a column that has two types, or when there are neither batches nor a schema.
    """
    if len(batches) == 1:
        return batches[0]
    if batches and all(batch.schema.equals(batches[0].schema) for batch in batches):
        return pa.concat_batches(batches)
    if batches:
        return _concat_columns(batches)
    if schema is None:
        raise ValueError("concat of no batches needs a schema")
    return empty(schema)


def _concat_columns(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """`concat` of batches with different columns."""
    kinds: dict[str, pa.Field] = {}
    for field in itertools.chain.from_iterable(batch.schema for batch in batches):
        seen = kinds.setdefault(field.name, field)
        if seen.type != field.type or (seen.metadata or {}).get(KIND_KEY) != (field.metadata or {}).get(KIND_KEY):
            raise ValueError(f"column {field.name}: {seen.type} in one batch, {field.type} in another")
    table = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    (merged,) = table.select(list(kinds)).cast(pa.schema(list(kinds.values()))).combine_chunks().to_batches()
    return merged


def empty(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of no rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def split_to_bytes(batch: pa.RecordBatch, max_bytes: int = MAX_BLOCK_BYTES) -> list[tuple[pa.RecordBatch, bytes]]:
    """Splits `batch` into runs of rows that take at most `max_bytes` as an Arrow IPC stream.

    Returns: [(rows, their bytes)] in order; an empty list for an empty batch.
    Raises: ValueError when a single row takes more.
    """
    if not batch.num_rows:
        return []
    data = to_bytes(batch)
    if len(data) <= max_bytes:
        return [(batch, data)]
    if batch.num_rows == 1:
        raise ValueError(f"one row takes {len(data)} bytes as Arrow IPC, more than the limit of {max_bytes}")
    parts = min(batch.num_rows, max(2, -(-len(data) // max_bytes)))
    edges = np.linspace(0, batch.num_rows, parts + 1).astype(np.int64).tolist()
    blocks: list[tuple[pa.RecordBatch, bytes]] = []
    for start, stop in itertools.pairwise(edges):
        blocks.extend(split_to_bytes(batch.slice(start, stop - start), max_bytes))
    return blocks


def is_fid_field(field: pa.Field) -> bool:
    """Whether the field's metadata says that it holds fids v2."""
    return (field.metadata or {}).get(KIND_KEY) == b"fid"


def is_fid_v1_field(field: pa.Field) -> bool:
    """Whether the field's metadata says that it holds fids v1."""
    return (field.metadata or {}).get(KIND_KEY) == b"fid_v1"


def is_metadata_name(name: str) -> bool:
    """Whether a column of this name holds row metadata (`__UID__`) and not a feature."""
    return len(name) > 4 and name.startswith("__") and name.endswith("__") and name == name.upper()


def feature_columns(schema: pa.Schema) -> list[str]:
    """Names of the features, sparse and dense, in schema order."""
    return [name for name in schema.names if not is_metadata_name(name)]


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """The column `name`; None when the batch has no such column."""
    index = batch.schema.get_field_index(name)
    return batch.column(index) if index >= 0 else None


def with_column(batch: pa.RecordBatch, field: pa.Field, values: pa.Array) -> pa.RecordBatch:
    """`batch` with the column `field.name` replaced where it stands, or appended."""
    if not batch.num_columns:  # Arrow takes a batch of no columns for one of no rows, and would append none to it
        return pa.RecordBatch.from_arrays([values], schema=pa.schema([field], metadata=batch.schema.metadata))
    index = batch.schema.get_field_index(field.name)
    if index < 0:
        return batch.append_column(field, values)
    return batch.set_column(index, field, values)


def fid_columns(schema: pa.Schema) -> list[str]:
    """Names of the fid features, in schema order."""
    return [field.name for field in schema if is_fid_field(field)]


def numpy_column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A primitive column without nulls as numpy, without a copy where Arrow allows it."""
    return batch.column(name).to_numpy(zero_copy_only=False)
