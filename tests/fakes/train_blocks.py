"""Train blocks as a feed would write them, from a small random world."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.training.task import Task
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.train_rows import row_fids

ROWS_PER_RECORD = 4


def make_batch(
    task: Task,
    first_record: int,
    records: int,
    seed: int = 0,
    partition: int = 0,
    audit: bool = True,
    users: int = 50,
    first_id: int = 0,
) -> pa.RecordBatch:
    """Four rows for each of the source records [first_record, first_record + records) of one source partition.

    Users have a liking for items of their own parity, so that there is something to learn. Users and items are numbered
    from `first_id` on.
    """
    rng = np.random.default_rng([seed, first_record, partition])
    rows = records * ROWS_PER_RECORD
    user = np.repeat(first_id + rng.integers(0, users, records), ROWS_PER_RECORD)
    item = first_id + rng.integers(0, users, rows)
    clicked = rng.random(rows) < np.where((user + item) % 2 == 0, 0.8, 0.2)
    offsets = np.repeat(np.arange(first_record, first_record + records), ROWS_PER_RECORD)
    raw = {
        "user_id": user,
        "item_id": item,
        "context.device": pa.array(np.array(["phone", "desk"])[rng.integers(0, 2, rows)]),
        "context.hour": rng.integers(0, 24, rows),
        record_batch.SOURCE_PARTITION: pa.array(np.full(rows, partition), pa.int64()),
        record_batch.SOURCE_OFFSET: offsets,
        record_batch.SOURCE_ROW: pa.array(np.tile(np.arange(ROWS_PER_RECORD), records), pa.int32()),
    }
    config = task.feed_config(audit=audit)
    fids = row_fids(pa.RecordBatch.from_pydict(raw), config.features, audit)
    labels = np.repeat(clicked.astype(np.float32)[:, np.newaxis], len(config.labels), axis=1)
    flat = {
        record_batch.LABEL: list(labels),
        record_batch.WEIGHT: np.ones(rows),
        record_batch.SAMPLE_RATE: np.ones(rows),
        record_batch.UID: user,
        record_batch.ITEM_ID: item,
        record_batch.REQ_ID: [f"r-{offset}" for offset in offsets],
        record_batch.REQ_TIME: offsets,
        record_batch.EVENT_TIME_MS: offsets * 1000,
        record_batch.ACTIONS: [["click"] if hit else [] for hit in clicked],
        record_batch.SOURCE_PARTITION: np.full(rows, partition),
        record_batch.SOURCE_OFFSET: offsets,
        record_batch.SOURCE_ROW: np.tile(np.arange(ROWS_PER_RECORD), records),
    }
    arrays = [*fids.columns, *(pa.array(flat[field.name], field.type) for field in record_batch.METADATA_FIELDS)]
    return pa.RecordBatch.from_arrays(arrays, schema=config.train_schema())


def produce_blocks(
    connection: KafkaConnection, topic: str, blocks: Sequence[pa.RecordBatch], partitions: int = 4
) -> None:
    """Writes the blocks to the partitions in turn."""
    ensure_topic(connection, topic, partitions=partitions)
    producer = make_producer(connection)
    for i, block in enumerate(blocks):
        producer.produce(topic, record_batch.to_bytes(block), key=str(i % partitions), partition=i % partitions)
    flush_or_raise(producer)
