"""Rows to feed shards by the user's fid: the numpy twin of `fid mod num_shards`."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v2
from millrace.transforms.feed.config import FeedConfig


def shard_of(fids: np.ndarray, num_shards: int) -> np.ndarray:
    """int64 [n] in [0, num_shards): the fid, taken as unsigned 64 bits, mod num_shards."""
    if num_shards < 1:
        raise ValueError(f"num_shards {num_shards}: expected 1 or more")
    return (np.asarray(fids).astype(np.uint64) % np.uint64(num_shards)).astype(np.int64)


def user_slot(config: FeedConfig) -> int:
    """Slot of the first feature of the user id, 0 when there is none."""
    return next((feature.slot for feature in config.features if feature.column == "user_id"), 0)


def split_by_shard(batch: pa.RecordBatch, num_shards: int, slot: int = 0) -> dict[int, pa.RecordBatch]:
    """{shard: its rows in their order}, without shards that get none. A user's rows go to one shard.

    Args:
      batch: rows with `__UID__`.
      slot: slot of the user's fid (`user_slot`).
    """
    if not batch.num_rows:
        return {}
    shards = shard_of(fid_v2(slot, record_batch.numpy_column(batch, record_batch.UID)), num_shards)
    present = np.unique(shards).tolist()
    if len(present) == 1:
        return {present[0]: batch}
    return {shard: batch.filter(pc.equal(pa.array(shards), shard)) for shard in present}
