"""The raw block: an Arrow batch of records of one topic, as sources emit them and decoders take them."""

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
