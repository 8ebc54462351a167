"""Splits rows among the shards of a feed: by request, by user or by source partition."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v2
from millrace.transforms.batch.hashes import siphash24
from millrace.transforms.feed.config import FeedConfig

_REQUEST_KEY = b"millrace-shard-1"
"""Key of the hash that chooses the shard of a request: no other hash has it, so that none is skewed within a shard."""


def shard_of(fids: np.ndarray, num_shards: int) -> np.ndarray:
    """int64 [n] in [0, num_shards): floormod(fid, num_shards), as the tables have it; ValueError for no shards.

    Negative fids, which only foreign records have, lie in the same range.
    """
    if num_shards < 1:
        raise ValueError(f"num_shards {num_shards}: expected 1 or more")
    return np.mod(np.asarray(fids, np.int64), num_shards)


def user_slot(config: FeedConfig) -> int:
    """Slot of the first feature of the user id; 0 when no feature reads it."""
    return next((feature.slot for feature in config.features if feature.column == "user_id"), 0)


def by_user(batch: pa.RecordBatch, num_shards: int, slot: int = 0) -> dict[int, pa.RecordBatch]:
    """{shard: its rows in order}, without shards that get none. All rows of a user go to one shard.

    Args:
      batch: rows with `__UID__`.
      num_shards: number of shards, 1 or more.
      slot: slot of the user's fid (`user_slot`).
    """
    if not batch.num_rows:
        return {}
    shards = shard_of(fid_v2(slot, record_batch.numpy_column(batch, record_batch.UID)), num_shards)
    present = np.unique(shards).tolist()
    if len(present) == 1:
        return {present[0]: batch}
    return {shard: batch.filter(pc.equal(pa.array(shards), shard)) for shard in present}


def by_request(rows: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(shard, rows) by a hash of `request_id`, so that an impression and its actions meet in one shard."""
    if shards == 1:
        yield 0, rows
        return
    shard = (siphash24(rows.column("request_id"), _REQUEST_KEY) % np.uint64(shards)).astype(np.int64)
    order = np.argsort(shard, kind="stable")
    edges = np.searchsorted(shard[order], np.arange(shards + 1)).tolist()
    sorted_rows = rows.take(pa.array(order))
    for number in range(shards):
        start, stop = edges[number], edges[number + 1]
        if stop > start:
            yield number, sorted_rows.slice(start, stop - start)


def by_partition(rows: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(shard, rows) by source partition, so that the rows of a record stay together and in order."""
    if not rows.num_rows:
        return
    shard = record_batch.numpy_column(rows, record_batch.SOURCE_PARTITION) % shards
    for number in np.unique(shard).tolist():
        yield number, rows if (shard == number).all() else rows.filter(pa.array(shard == number))


def is_actions(rows: pa.RecordBatch) -> bool:
    """Whether `rows` are actions; else they are impression rows."""
    return "action" in rows.schema.names
