"""The order of a sharded batch: the position of each (table, shard), and of each feature within it."""

import hashlib
import json

import numpy as np
from google.protobuf import json_format

from millrace.protos import sharded_batch_pb2 as pb
from millrace.runtime.errors import UserError
from millrace.transforms.batch import list_columns

VERSIONS = (1, 2, 3, 4, 5)
MAX_PS = 1 << 16
"""Most parameter servers: more are taken for a mistake."""

MAX_DIMS = 1 << 20
"""Most floats of an embedding: 4 MB; more are taken for a mistake."""


class ShardLayout:
    """The order of all batches that are sharded by one configuration.

    A block is a (table, embedding shard). Blocks are sorted by table, then shard; in layout 4 by shard, then table. A
    cell is a (block, feature of the block's table); cells are in the order of their blocks. Tables and features are in
    the order of their names.

    Args:
      feature_configs: the features, their tables and their slices.
      ps_num: number of parameter servers, each of which has one shard of every table; 0 means 1.
      version: layout of the result, 1 to 5; 0 means 5.

    Attributes:
      features, tables: sorted names.
      dims: int64 [features], number of floats in an embedding of the feature.
      block_tables: int64 [blocks], index of the block's table.
      cell_splits: int64 [blocks + 1], the cell at which each block begins.
      cell_blocks, cell_features, cell_shards: int64 [cells], block, feature and shard of each cell.
      fingerprint: a hash of the feature configs; it does not depend on `ps_num` and `version`.

    Raises: UserError naming the wrong setting.
    """

    def __init__(self, feature_configs: pb.FeatureConfigs, ps_num: int = 1, version: int = 5) -> None:
        _check(feature_configs, ps_num, version)
        configs = feature_configs.feature_configs
        self.ps_num, self.version = ps_num or 1, version or VERSIONS[-1]
        self.features = sorted(configs)
        self.tables = sorted({config.table for config in configs.values()})
        self.dims = np.array([sum(configs[name].slice_dims) for name in self.features], np.int64)
        self.fingerprint = _fingerprint(feature_configs)
        features = [
            [f for f, name in enumerate(self.features) if configs[name].table == table] for table in self.tables
        ]
        tables, shards = np.divmod(np.arange(len(self.tables) * self.ps_num), self.ps_num)
        if version == 4:
            shards, tables = np.divmod(np.arange(len(tables)), len(self.tables))
        self.block_tables = tables
        self.cell_splits = list_columns.splits_of(np.array([len(features[t]) for t in tables.tolist()]))
        self.cell_blocks = list_columns.row_of_value(self.cell_splits)
        self.cell_features = np.concatenate([np.array(features[t], np.int64) for t in tables.tolist()])
        self.cell_shards = shards[self.cell_blocks]

    @property
    def counts_floats(self) -> bool:
        """Whether offsets count floats of embeddings, as in layouts 3 to 5; in layouts 1 and 2 they count fids."""
        return self.version >= 3

    def block_of(self, table: np.ndarray | int, shard: np.ndarray | int) -> np.ndarray:
        """The indices of the blocks of these tables, by index, and shards."""
        first, second, width = (shard, table, len(self.tables)) if self.version == 4 else (table, shard, self.ps_num)
        return np.asarray(first) * width + second

    @property
    def block_names(self) -> list[tuple[str, int]]:
        """(table, shard) of each block."""
        shards = self.cell_shards[self.cell_splits[:-1]].tolist()
        return [(self.tables[t], p) for t, p in zip(self.block_tables.tolist(), shards, strict=True)]


def _fingerprint(feature_configs: pb.FeatureConfigs) -> str:
    features = {
        name: json_format.MessageToDict(config) for name, config in sorted(feature_configs.feature_configs.items())
    }
    return hashlib.sha256(json.dumps(features, sort_keys=True).encode()).hexdigest()[:16]


def _check(feature_configs: pb.FeatureConfigs, ps_num: int, version: int) -> None:
    if not 0 <= ps_num <= MAX_PS:
        raise UserError("ps_num", ps_num, "out of range", f"choose 1..{MAX_PS}")
    if version and version not in VERSIONS:
        raise UserError("version", version, "no such layout", "choose 1..5")
    if not feature_configs.feature_configs:
        raise UserError("feature_configs", "", "no feature is named", "name the features with their tables")
    for name, config in sorted(feature_configs.feature_configs.items()):
        where = f"feature_configs.{name}"
        if not config.table:
            raise UserError(f"{where}.table", "", "not given", "name the table of the embeddings")
        if not config.slice_dims or min(config.slice_dims) < 1 or sum(config.slice_dims) > MAX_DIMS:
            dims = list(config.slice_dims)
            raise UserError(f"{where}.slice_dims", dims, "no width", f"give slices of 1..{MAX_DIMS} floats in all")
        if config.pooling_type == pb.FIRSTN and config.max_sequence_length < 1:
            length = config.max_sequence_length
            raise UserError(f"{where}.max_sequence_length", length, "FIRSTN has a length", "choose 1 or more")
