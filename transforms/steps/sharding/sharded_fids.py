"""Groups the fids of a batch by embedding table and parameter server, so that they only need to be looked up.

The shard of a fid is fid mod ps_num, as in `ops/cc/embedding/base/fid.h`. Fids v1 are converted to v2 first.
"""

import itertools
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from millrace.ops import record_library
from millrace.protos import sharded_batch_pb2 as pb
from millrace.protos import transform_config_pb2 as config_pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import arrays, list_columns, record_batch
from millrace.transforms.steps.sharding.shard_layout import ShardLayout
from millrace.transforms.steps.sharding.sharded_batch import SHARED_BIT, ShardedFids
from millrace.transforms.steps.step import Counts, Step, StepContext

_ALONE = StepContext()
_MAX_FIDS = (1 << 31) - 1
_MAX_OFFSET = 1 << 32


class _Feature(NamedTuple):
    """The fids of a feature, [n], and the splits of its entries, [entries + 1]: one per row, or one if it is shared."""

    fids: np.ndarray
    splits: np.ndarray
    shared: bool


class _OffsetRule(NamedTuple):
    """How the offset of a fid follows from its cell, its feature, and its number within the cell.

    Attributes:
      first: uint64 [cells], offset of the first fid of each cell.
      steps: int64 [features], difference between the offsets of two fids that follow one another.
    """

    first: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, layout: ShardLayout, fid_ends: np.ndarray, float_ends: np.ndarray) -> Self:
        first_cells = layout.cell_splits[layout.cell_blocks]
        high = layout.block_tables[layout.cell_blocks] * layout.ps_num + layout.cell_shards
        steps = layout.dims if layout.counts_floats else np.ones_like(layout.dims)
        if layout.version == 1:
            low = fid_ends[:-1] - fid_ends[first_cells]
        elif layout.version == 2:
            high, low = np.arange(len(high)), np.zeros_like(high)
        else:
            low = float_ends[:-1] - float_ends[first_cells]
        return cls((high << 32 | low).astype(np.uint64), steps)


def shard_fids(
    batch: pa.RecordBatch, feature_configs: pb.FeatureConfigs, ps_num: int = 1, unique: bool = False, version: int = 5
) -> ShardedFids:
    """The batch, sharded.

    Args:
      feature_configs: features to shard, with tables and slices. A feature that the batch lacks is one empty entry that
        all rows share; a row that lacks a feature of the batch has an empty entry.
      ps_num: number of parameter servers; 0 means 1.
      unique: whether a fid is looked up once per (feature, shard), however often it occurs.
      version: layout of the result, 1 to 5. New trainers take 5, or 4 for one flat buffer per shard.

    Raises:
      UserError: naming the setting that is wrong.
      ValueError: a column holds no fids, or the batch has more than 2^31 fids or needs more than 2^32 floats per block.
    """
    return shard_with(batch, ShardLayout(feature_configs, ps_num, version), unique)


def shard_with(batch: pa.RecordBatch, layout: ShardLayout, unique: bool) -> ShardedFids:
    """`shard_fids` with a layout that was made before, for many batches of one configuration."""
    indices = [arrays.index_of(batch.schema, name) for name in layout.features]
    features = [_feature(batch, index) for index in indices]
    fids = np.ascontiguousarray(np.concatenate([feature.fids for feature in features]))
    if len(fids) > _MAX_FIDS:
        raise ValueError(f"{len(fids)} fids in one batch, more than {_MAX_FIDS}: use smaller batches")
    fid_starts = list_columns.splits_of(np.array([len(feature.fids) for feature in features]))
    numbers, counts = _number(fids, fid_starts, layout.ps_num, unique)
    cells = counts[layout.cell_features, layout.cell_shards]
    fid_ends, float_ends = (list_columns.splits_of(each) for each in (cells, cells * layout.dims[layout.cell_features]))
    emb_size = np.diff(float_ends[layout.cell_splits])
    if emb_size.max() > _MAX_OFFSET:
        table, shard = layout.block_names[int(emb_size.argmax())]
        raise ValueError(f"table {table} needs {emb_size.max()} floats on shard {shard}, more than 2^32")
    rule = _OffsetRule.of(layout, fid_ends, float_ends)
    sharded = _place(fids, fid_starts, layout, rule, fid_ends, numbers)
    return ShardedFids(
        layout,
        fids=sharded,
        fid_splits=fid_ends[layout.cell_splits],
        row_splits=_row_splits(layout, fid_ends),
        fid_offset=numbers,
        feature_offset=_feature_offset(features, fid_starts),
        nfl_offset=_nfl_offset(features),
        emb_size=emb_size,
        batch_size=batch.num_rows,
        rows=batch.select(sorted(set(range(batch.num_columns)) - set(indices))),
    )


class ShardFids(Step):
    """Groups the fids of a batch by (table, parameter server), with offsets that lead from embeddings back to rows.

    The step must be the last one, because its output are no rows: a batch becomes one sharded batch, which is a row
    with the columns `sharded.<array>` and `rows.<column>` (see `transforms/steps/sharding/sharded_batch.py`). A batch
    of no rows becomes none. A feature that the batch lacks is one empty entry that all rows share. A feed to a trainer
    holds rows and refuses the step; `records convert` to Arrow or Parquet runs it.
    """

    gives_rows = False
    counters = {"fids_in": "fids of the features", "fids_out": "fids to look up; fewer with `unique`"}
    example = """\
shard_fids:
  ps_num: 2
  feature_configs: {feature_configs: {user: {table: user, slice_dims: [1, 16]}}}"""

    def __init__(self, config: config_pb.ShardFidsConfig, context: StepContext = _ALONE) -> None:
        super().__init__(config, context)
        try:
            self._layout = ShardLayout(config.feature_configs, config.ps_num, config.version)
        except UserError as error:
            raise self.wrong(error.field, error.value, error.problem, error.remedy) from error

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        sharded = shard_with(batch, self._layout, self.config.unique)
        counts["fids_in"] += len(sharded.fid_offset)
        counts["fids_out"] += len(sharded.fids)
        row = sharded.to_record_batch()
        return row if batch.num_rows else row.slice(0, 0)


def _feature(batch: pa.RecordBatch, index: int | None) -> _Feature:
    """The feature in the column `index`; one empty entry for None."""
    if index is None:
        return _Feature(*arrays.no_fids(1), shared=True)
    field = batch.schema.field(index)
    values, splits = arrays.fids_of(field, batch.column(index))
    marked = (field.metadata or {}).get(record_batch.SHARED_KEY) == b"1"
    if marked and batch.num_rows and _all_equal(values, splits):
        return _Feature(values[: splits[1]], splits[:2], shared=True)
    return _Feature(values, splits, shared=False)


def _all_equal(values: np.ndarray, splits: np.ndarray) -> bool:
    """Whether all rows have the same values as the first one."""
    width = int(splits[1])
    return bool((np.diff(splits) == width).all() and (values.reshape(-1, max(width, 1)) == values[:width]).all())


def _row_splits(layout: ShardLayout, fid_ends: np.ndarray) -> np.ndarray:
    """int64 [cells + blocks]: where the features of each block begin within it, and its length."""
    cells = len(layout.cell_blocks)
    splits = np.zeros(cells + len(layout.block_tables), np.int64)
    ends = fid_ends[1:] - fid_ends[layout.cell_splits[layout.cell_blocks]]
    splits[np.arange(cells) + layout.cell_blocks + 1] = ends
    return splits


def _feature_offset(features: list[_Feature], fid_starts: np.ndarray) -> np.ndarray:
    entries = list_columns.splits_of(np.array([len(feature.splits) - 1 for feature in features]))
    offsets = np.empty(entries[-1] + 1, np.int32)
    for feature, start, (first, last) in zip(features, fid_starts[:-1], itertools.pairwise(entries), strict=True):
        np.add(feature.splits[:-1], start, out=offsets[first:last], casting="same_kind")
    offsets[-1] = fid_starts[-1]
    return offsets


def _nfl_offset(features: list[_Feature]) -> np.ndarray:
    entries = list_columns.splits_of(np.array([len(feature.splits) - 1 for feature in features]))
    entries[-1] += 1
    shared = np.array([feature.shared for feature in features] + [False])
    return (entries | np.where(shared, SHARED_BIT, 0)).astype(np.uint32)


def _number(fids: np.ndarray, starts: np.ndarray, ps_num: int, unique: bool) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [n]: shard << 32 | number within its cell, int64 [features, ps_num]: fids of each feature and shard)."""
    numbers = np.empty(len(fids), np.uint64)
    counts = np.empty((len(starts) - 1, ps_num), np.int64)
    record_library.call("millrace_number_fids", fids, starts, *counts.shape, int(unique), numbers, counts)
    return numbers, counts


def _place(
    fids: np.ndarray,
    starts: np.ndarray,
    layout: ShardLayout,
    rule: _OffsetRule,
    fid_ends: np.ndarray,
    numbers: np.ndarray,
) -> np.ndarray:
    """int64 [m]: the fids in the order of the cells. The numbers in `numbers` are replaced by offsets."""
    shape = len(layout.features), layout.ps_num
    targets, first = np.empty(shape, np.int64), np.empty(shape, np.uint64)
    targets[layout.cell_features, layout.cell_shards] = fid_ends[:-1]
    first[layout.cell_features, layout.cell_shards] = rule.first
    sharded = np.empty(int(fid_ends[-1]), np.int64)
    arrays = targets, first, rule.steps, numbers, sharded
    record_library.call("millrace_place_fids", fids, starts, *shape, *arrays)
    return sharded
