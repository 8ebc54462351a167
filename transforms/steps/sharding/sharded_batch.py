"""A sharded batch as numpy arrays, as a message, and as one row of Arrow that travels like any other batch."""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.protos import sharded_batch_pb2 as pb
from millrace.transforms.batch import line_id, list_columns
from millrace.transforms.steps.sharding.shard_layout import ShardLayout

SHARED_BIT = 1 << 31
"""Bit of a number in `nfl_offset`: all rows of the feature share one entry."""

_ARRAYS: dict[str, np.dtype] = {
    "fids": np.dtype(np.int64),
    "fid_splits": np.dtype(np.int64),
    "row_splits": np.dtype(np.int64),
    "fid_offset": np.dtype(np.uint64),
    "feature_offset": np.dtype(np.int32),
    "nfl_offset": np.dtype(np.uint32),
    "emb_size": np.dtype(np.int64),
}
_ARRAY_PREFIX, _ROW_PREFIX = "sharded.", "rows."
_SIZE = np.dtype(np.int64)
_META_KEY = b"millrace.sharded"


@dataclass(frozen=True)
class ShardedFids:
    """The fids of a batch by block, and offsets that lead from embeddings back to rows; order: see `ShardLayout`.

    Attributes:
      fids: int64 [m], block after block; within a block by feature, then in the order of the rows.
      fid_splits: int64 [blocks + 1], the position in `fids` at which each block begins.
      row_splits: int64 [cells + blocks], for each block the positions at which its features begin, and its length.
      fid_offset: uint64 [n], one number for each fid of the batch, by feature, then by row: upper << 32 | lower.
        Layouts 3 to 5: upper is table * ps_num + shard, lower the number of floats of the block before the embedding.
        Layout 1: upper is table * ps_num + shard, lower the index in the block.
        Layout 2: upper is the cell, lower the index in the cell.
      feature_offset: int32 [entries + 1], the position in `fid_offset` at which each (feature, row) begins.
      nfl_offset: uint32 [features + 1], the position in `feature_offset` at which each feature begins, with SHARED_BIT
        when all rows share its one entry; the last number is entries + 1.
      emb_size: int64 [blocks], number of floats of all embeddings of the block.
      batch_size: number of rows.
      rows: the columns of the batch that are not sharded.
    """

    layout: ShardLayout
    fids: np.ndarray
    fid_splits: np.ndarray
    row_splits: np.ndarray
    fid_offset: np.ndarray
    feature_offset: np.ndarray
    nfl_offset: np.ndarray
    emb_size: np.ndarray
    batch_size: int
    rows: pa.RecordBatch

    def fids_of(self, table: str, shard: int) -> np.ndarray:
        """int64 [n]: the fids of a block; a view."""
        return self._fids_of(self._block(table, shard))

    def row_splits_of(self, table: str, shard: int) -> np.ndarray:
        """int64 [features of the table + 1]: where the features of a block begin within it; a view."""
        return self._row_splits_of(self._block(table, shard))

    def flat_offsets(self) -> np.ndarray:
        """int64 [n]: the number of floats before each embedding, if the embeddings of all blocks are one flat array.

        Raises: ValueError for layouts 1 and 2.
        """
        self._need_floats()
        blocks = self.layout.block_of(*np.divmod(_upper(self.fid_offset), self.layout.ps_num))
        return list_columns.splits_of(self.emb_size)[blocks] + _lower(self.fid_offset)

    def outputs(self) -> dict[str, np.ndarray]:
        """{name: tensor of the layout}; the name of a tensor of one block is `<name>/<table>:<shard>`."""
        version = self.layout.version
        size = np.int32(self.batch_size)
        named = {
            "nfl_offset": self.nfl_offset,
            "feature_offset": self.feature_offset,
            "fid_offset": self.fid_offset,
            "batch_size": np.array([size] if version == 5 else size),
        }
        if version == 4:
            return named | self._flat_outputs()
        for block, (table, shard) in enumerate(self.layout.block_names):
            key = f"{table}:{shard}"
            named[f"fid_list/{key}"] = self._fids_of(block)
            if version > 1:
                named[f"fid_list_row_splits/{key}"] = self._row_splits_of(block)
            if version == 5:
                named[f"fid_list_row_splits_size/{key}"] = _size(self._row_splits_of(block))
        if version == 5:
            named |= {"nfl_size": _size(self.nfl_offset), "feature_size": _size(self.feature_offset)}
            named |= {"fid_size": _size(self.fid_offset), "emb_size": self.emb_size}
        return named

    def to_proto(self) -> pb.ShardedBatch:
        """The batch as a message. Of the other columns it holds the numbers and bytes, without their Arrow types.

        Raises: ValueError for layouts 1 and 2, and for a column of nested lists.
        """
        self._need_floats()
        layout = self.layout
        message = pb.ShardedBatch(
            batch_size=self.batch_size,
            ps_num=layout.ps_num,
            fid_offset=self.fid_offset,
            feature_offset=self.feature_offset,
            nfl_offset=self.nfl_offset,
            dense_columns=[_dense_column(self.rows, name) for name in self.rows.schema.names],
            config_fingerprint=layout.fingerprint,
        )
        for table, shard in sorted(layout.block_names):
            block = self._block(table, shard)
            message.table_shards.add(
                table=table,
                ps=shard,
                fids=self._fids_of(block).view(np.uint64),
                row_splits=self._row_splits_of(block),
                emb_size=int(self.emb_size[block]),
            )
        return message

    @classmethod
    def from_proto(cls, message: pb.ShardedBatch, layout: ShardLayout) -> Self:
        """The batch in a message that `to_proto` made.

        Args:
          layout: the layout, 3 or 5, by which the batch was sharded.

        Raises: ValueError when it was sharded otherwise, or when its parts do not fit each other.
        """
        _check_meta(layout, message.config_fingerprint, message.ps_num)
        blocks = message.table_shards
        if [(block.table, block.ps) for block in blocks] != layout.block_names:
            raise ValueError(
                f"the batch has not the {len(layout.block_names)} blocks of its tables and shards, in order"
            )
        columns = {dense.name: _array_of(dense) for dense in message.dense_columns}
        return cls(
            layout,
            fids=np.concatenate([np.array(block.fids, np.uint64).view(np.int64) for block in blocks]),
            fid_splits=list_columns.splits_of(np.array([len(block.fids) for block in blocks])),
            row_splits=np.concatenate([np.array(block.row_splits, np.int64) for block in blocks]),
            fid_offset=np.array(message.fid_offset, np.uint64),
            feature_offset=np.array(message.feature_offset, np.int32),
            nfl_offset=np.array(message.nfl_offset, np.uint32),
            emb_size=np.array([block.emb_size for block in blocks], np.int64),
            batch_size=message.batch_size,
            rows=pa.RecordBatch.from_pydict(columns),
        )._checked()

    def to_record_batch(self) -> pa.RecordBatch:
        """One row: `sharded.<array>` is the list of an array's numbers, `rows.<column>` that of a column's values.

        `sharded.batch_size` is a list of one number. Nothing is copied. The metadata of the schema says how the batch
        was sharded; it is the same for all batches of a configuration, so that one file can hold them.
        """
        arrays = {name: pa.array(getattr(self, name)) for name in _ARRAYS}
        arrays["batch_size"] = pa.array(np.array([self.batch_size], _SIZE))
        fields = [pa.field(f"{_ARRAY_PREFIX}{name}", array.type) for name, array in arrays.items()]
        fields += [field.with_name(f"{_ROW_PREFIX}{field.name}") for field in self.rows.schema]
        columns = [*arrays.values(), *self.rows.columns]
        lists = [pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column) for column in columns]
        meta = {
            "config_fingerprint": self.layout.fingerprint,
            "ps_num": self.layout.ps_num,
            "version": self.layout.version,
        }
        schema = [field.with_type(column.type) for field, column in zip(fields, lists, strict=True)]
        return pa.RecordBatch.from_arrays(lists, schema=pa.schema(schema, {_META_KEY: json.dumps(meta)}))

    @classmethod
    def from_record_batch(cls, batch: pa.RecordBatch, layout: ShardLayout) -> Self:
        """The batch in a row that `to_record_batch` made, without a copy. A column whose list is null is left out.

        Args:
          layout: the layout by which the batch was sharded.

        Raises: ValueError when it is no such row, was sharded otherwise, or its parts do not fit each other.
        """
        meta = _meta_of(batch)
        _check_meta(layout, meta.get("config_fingerprint"), meta.get("ps_num"))
        if meta.get("version") != layout.version:
            raise ValueError(f"the batch has layout {meta.get('version')}, not {layout.version}")
        arrays = {name: _array_in(batch, name, dtype) for name, dtype in _ARRAYS.items()}
        (batch_size,) = _array_in(batch, "batch_size", _SIZE)
        fields = [
            field
            for field, column in zip(batch.schema, batch.columns, strict=True)
            if field.name.startswith(_ROW_PREFIX) and not column.null_count
        ]
        columns = [_list_in(batch, field.name) for field in fields]
        schema = [
            pa.field(field.name.removeprefix(_ROW_PREFIX), column.type, metadata=field.metadata)
            for field, column in zip(fields, columns, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(columns, schema=pa.schema(schema))
        return cls(layout=layout, batch_size=int(batch_size), rows=rows, **arrays)._checked()

    def _block(self, table: str, shard: int) -> int:
        if table not in self.layout.tables or not 0 <= shard < self.layout.ps_num:
            raise ValueError(f"no block {table}:{shard}")
        return int(self.layout.block_of(self.layout.tables.index(table), shard))

    def _fids_of(self, block: int) -> np.ndarray:
        return self.fids[self.fid_splits[block] : self.fid_splits[block + 1]]

    def _row_splits_of(self, block: int) -> np.ndarray:
        first, last = self.layout.cell_splits[block : block + 2]
        return self.row_splits[first + block : last + block + 1]

    def _flat_outputs(self) -> dict[str, np.ndarray]:
        lengths = np.diff(self.fid_splits)
        return {
            "fid_list": self.fids,
            "fid_list_row_splits": self.row_splits,
            "fid_list_table_row_length": lengths,
            "fid_list_shard_row_length": lengths.reshape(self.layout.ps_num, -1).sum(axis=1),
            "fid_list_emb_row_length": self.emb_size,
        }

    def _need_floats(self) -> None:
        if not self.layout.counts_floats:
            raise ValueError(f"layout {self.layout.version} counts fids, not floats: shard with layout 3, 4 or 5")

    def _checked(self) -> Self:
        """This batch; ValueError unless its parts fit together and every offset leads to an embedding."""
        self._need_floats()
        self._check_rows()
        self._check_offsets(self._checked_counts())
        return self

    def _check_rows(self) -> None:
        _check_splits("feature_offset", self.feature_offset, len(self.feature_offset) - 1, len(self.fid_offset))
        starts = self.nfl_offset.astype(np.int64) & ~SHARED_BIT
        _check_splits("nfl_offset", starts, len(self.layout.features), len(self.feature_offset))
        expected = np.where(self.nfl_offset[:-1] >= SHARED_BIT, 1, self.batch_size)
        expected[-1] += 1
        if not np.array_equal(np.diff(starts), expected):
            raise ValueError(f"nfl_offset: a feature has neither {self.batch_size} entries nor shares one")
        if self.rows.num_columns and self.rows.num_rows != self.batch_size:
            raise ValueError(f"the other columns have {self.rows.num_rows} rows, not {self.batch_size}")

    def _checked_counts(self) -> np.ndarray:
        """int64 [cells]: fids of each cell."""
        layout, blocks = self.layout, len(self.layout.block_tables)
        _check_splits("fid_splits", self.fid_splits, blocks, len(self.fids))
        if len(self.row_splits) != len(layout.cell_blocks) + blocks:
            raise ValueError(f"row_splits has {len(self.row_splits)} numbers, not {len(layout.cell_blocks) + blocks}")
        firsts = layout.cell_splits[:-1] + np.arange(blocks)
        counts = np.delete(np.diff(self.row_splits), firsts[1:] - 1)
        if self.row_splits[firsts].any() or (counts < 0).any():
            raise ValueError("row_splits: a block does not begin at 0, or goes back")
        sizes = np.add.reduceat(counts, layout.cell_splits[:-1])
        floats = np.add.reduceat(counts * layout.dims[layout.cell_features], layout.cell_splits[:-1])
        if not np.array_equal(sizes, np.diff(self.fid_splits)) or not np.array_equal(floats, self.emb_size):
            raise ValueError("row_splits, fids and emb_size contradict each other")
        return counts

    def _check_offsets(self, counts: np.ndarray) -> None:
        """ValueError unless an embedding of the right feature begins at each offset; `counts`: fids of each cell."""
        layout = self.layout
        entries = np.minimum(self.nfl_offset.astype(np.int64) & ~SHARED_BIT, len(self.feature_offset) - 1)
        features = list_columns.row_of_value(self.feature_offset[entries])
        tables, shards = np.divmod(_upper(self.fid_offset), layout.ps_num)
        cell_of = np.empty((len(layout.features), layout.ps_num), np.int64)
        cell_of[layout.cell_features, layout.cell_shards] = np.arange(len(counts))
        cells, dims = cell_of[features, shards], layout.dims[features]
        ends = list_columns.splits_of(counts * layout.dims[layout.cell_features])
        in_block = ends - np.append(ends[layout.cell_splits[layout.cell_blocks]], 0)
        floats = _lower(self.fid_offset) - in_block[cells]
        fits = (floats >= 0) & (floats < counts[cells] * dims) & (floats % dims == 0)
        if not fits.all() or (tables != layout.block_tables[layout.cell_blocks[cells]]).any():
            raise ValueError("fid_offset does not lead to an embedding of its feature")


def _upper(offsets: np.ndarray) -> np.ndarray:
    return (offsets >> np.uint64(32)).astype(np.int64)


def _lower(offsets: np.ndarray) -> np.ndarray:
    return (offsets & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _size(array: np.ndarray) -> np.ndarray:
    return np.array([len(array)], np.int32)


def _check_splits(name: str, splits: np.ndarray, parts: int, total: int) -> None:
    """ValueError unless `splits` cuts `total` values into `parts` parts."""
    if len(splits) != parts + 1 or parts < 0 or splits[0] or splits[-1] != total or (np.diff(splits) < 0).any():
        raise ValueError(f"{name} does not cut {total} into {parts} parts")


def _check_meta(layout: ShardLayout, fingerprint: object, ps_num: object) -> None:
    if fingerprint != layout.fingerprint:
        raise ValueError(f"the batch was sharded by other feature configs: {fingerprint}, not {layout.fingerprint}")
    if ps_num != layout.ps_num:
        raise ValueError(f"the batch was sharded for {ps_num} parameter servers, not {layout.ps_num}")


def _meta_of(batch: pa.RecordBatch) -> dict[str, Any]:
    try:
        meta = json.loads((batch.schema.metadata or {})[_META_KEY])
    except (KeyError, ValueError):
        raise ValueError("not a sharded batch: its schema does not say how it was sharded") from None
    if not isinstance(meta, dict) or batch.num_rows != 1:
        raise ValueError(f"not one sharded batch: it has {batch.num_rows} rows")
    return meta


def _list_in(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The values in the one row of the column `name`."""
    index = batch.schema.get_field_index(name)
    column = batch.column(index) if index >= 0 else None
    if column is None or not pa.types.is_list(column.type) or column.null_count:
        raise ValueError(f"column {name}: expected one list")
    return column.flatten()


def _array_in(batch: pa.RecordBatch, name: str, dtype: np.dtype) -> np.ndarray:
    column = _list_in(batch, f"{_ARRAY_PREFIX}{name}")
    if column.type != pa.from_numpy_dtype(dtype) or column.null_count:
        raise ValueError(f"column {_ARRAY_PREFIX}{name}: expected a list of {dtype}")
    return column.to_numpy()


def _dense_column(rows: pa.RecordBatch, name: str) -> pb.ShardedBatch.DenseColumn:
    """A column as flat values, with row splits if it holds lists; a null becomes the default of its type."""
    column = rows.column(name)
    field = next((field for field in line_id.FIELDS.values() if field.column == name), None)
    if field is not None:
        column = line_id.column(rows, field.name)
    dense = pb.ShardedBatch.DenseColumn(name=name)
    if pa.types.is_list(column.type):
        dense.row_splits.extend(list_columns.splits_of(list_columns.lengths(column)).tolist())
        column = column.flatten()
    if pa.types.is_floating(column.type):
        dense.float_value.extend(pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False))
    elif pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        dense.int64_value.extend(pc.fill_null(column.cast(pa.int64()), 0).to_numpy())
    elif pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        dense.bytes_value.extend(pc.fill_null(column.cast(pa.binary()), b"").to_pylist())
    else:
        raise ValueError(f"column {name}: {column.type} has no place in a ShardedBatch")
    return dense


def _array_of(dense: pb.ShardedBatch.DenseColumn) -> pa.Array:
    """The values as floats, int64 or bytes, in lists if there are row splits."""
    if dense.float_value:
        values = pa.array(np.array(dense.float_value, np.float32))
    elif dense.bytes_value:
        values = pa.array(list(dense.bytes_value), pa.binary())
    else:
        values = pa.array(np.array(dense.int64_value, np.int64))
    if not dense.row_splits:
        return values
    splits = np.array(dense.row_splits, np.int64)
    _check_splits(f"dense column {dense.name}", splits, len(splits) - 1, len(values))
    return list_columns.list_array(values, splits)
