"""The raw block: an Arrow batch of records of one topic, as sources emit them and decoders take them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch.provenance import source_partition

RAW_FIELDS: tuple[pa.Field, ...] = (
    pa.field("value", pa.binary()),
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("timestamp_ms", pa.int64()),
)
"""Columns of a raw block: the bytes of each record, where it came from, and its time.

The topic and the number of the source (`provenance.source_number`) are schema metadata.
"""

_TOPIC_KEY, _SOURCE_KEY = b"topic", b"source"


def raw_schema(topic: str, source: int = 0) -> pa.Schema:
    """Schema of a raw block of `topic`, which has the number `source`."""
    metadata = {_TOPIC_KEY: topic.encode("utf-8")}
    if source:
        metadata[_SOURCE_KEY] = str(source).encode("ascii")
    return pa.schema(list(RAW_FIELDS), metadata=metadata)


def raw_topic(block: pa.RecordBatch) -> str:
    """Topic of a raw block; ValueError when its schema does not say."""
    metadata = block.schema.metadata or {}
    if _TOPIC_KEY not in metadata:
        raise ValueError("raw block: schema metadata has no key 'topic'")
    return metadata[_TOPIC_KEY].decode("utf-8")


def source_partitions(block: pa.RecordBatch) -> pa.Int64Array:
    """The source partition of each record of a raw block, as in `__SOURCE_PARTITION__`."""
    source = int((block.schema.metadata or {}).get(_SOURCE_KEY, b"0"))
    partitions = block.column("partition").cast(pa.int64())
    return pc.add(partitions, source_partition(source, 0)) if source else partitions


def raw_block(
    topic: str,
    values: pa.BinaryArray | Sequence[bytes | None],
    partition: int | Sequence[int] | np.ndarray,
    offset: Sequence[int] | np.ndarray,
    timestamp_ms: int | Sequence[int] | np.ndarray = 0,
    source: int = 0,
) -> pa.RecordBatch:
    """A raw block of n records.

    Args:
      values: [n], the bytes of each record; null where a record has none.
      partition: of each record, [n], or one of all.
      offset: of each record, [n].
      timestamp_ms: Unix milliseconds of each record, [n], or one of all; 0 where the source has no times.
      source: number of the source, 0 for files.
    """
    columns = [values, partition, offset, timestamp_ms]
    arrays = [_column(each, field.type, len(values)) for each, field in zip(columns, RAW_FIELDS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=raw_schema(topic, source))


def _column(values: object, kind: pa.DataType, rows: int) -> pa.Array:
    if isinstance(values, int):
        return pa.repeat(pa.scalar(values, kind), rows)
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
