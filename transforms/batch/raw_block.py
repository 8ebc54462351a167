"""The raw block: an Arrow batch of records of one topic, as sources emit them and decoders take them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

RAW_FIELDS: tuple[pa.Field, ...] = (
    pa.field("value", pa.binary()),
    pa.field("partition", pa.int32()),
    pa.field("offset", pa.int64()),
    pa.field("timestamp_ms", pa.int64()),
)
"""Columns of a raw block: the bytes of each record, where it came from, and its time. The topic is schema metadata."""

_TOPIC_KEY = b"topic"


def raw_schema(topic: str) -> pa.Schema:
    """Schema of a raw block of `topic`."""
    return pa.schema(list(RAW_FIELDS), metadata={_TOPIC_KEY: topic.encode("utf-8")})


def raw_topic(block: pa.RecordBatch) -> str:
    """Topic of a raw block; ValueError when its schema does not say."""
    metadata = block.schema.metadata or {}
    if _TOPIC_KEY not in metadata:
        raise ValueError("raw block: schema metadata has no key 'topic'")
    return metadata[_TOPIC_KEY].decode("utf-8")


def raw_block(
    topic: str,
    values: pa.BinaryArray | Sequence[bytes | None],
    partition: int | Sequence[int] | np.ndarray,
    offset: Sequence[int] | np.ndarray,
    timestamp_ms: int | Sequence[int] | np.ndarray = 0,
) -> pa.RecordBatch:
    """A raw block of n records.

    Args:
      values: [n], the bytes of each record; null where a record has none.
      partition: of each record, [n], or one of all.
      offset: of each record, [n].
      timestamp_ms: Unix milliseconds of each record, [n], or one of all; 0 where the source has no times.
    """
    columns = [values, partition, offset, timestamp_ms]
    arrays = [_column(each, field.type, len(values)) for each, field in zip(columns, RAW_FIELDS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=raw_schema(topic))


def _column(values: object, kind: pa.DataType, rows: int) -> pa.Array:
    if isinstance(values, int):
        return pa.repeat(pa.scalar(values, kind), rows)
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
