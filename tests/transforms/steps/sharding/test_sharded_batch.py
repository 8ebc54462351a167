"""The forms of a sharded batch: a message and a row of Arrow, there and back, and what a damaged one gets."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import sharded_batch_pb2 as pb
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.steps.sharding.shard_layout import ShardLayout
from millrace.transforms.steps.sharding.sharded_batch import ShardedFids
from millrace.transforms.steps.sharding.sharded_fids import shard_fids

CONFIGS = pb.FeatureConfigs(
    feature_configs={
        "user": pb.FeatureConfig(table="users", slice_dims=[1, 3]),
        "item": pb.FeatureConfig(table="items", slice_dims=[2]),
        "seen": pb.FeatureConfig(table="items", slice_dims=[2]),
        "absent": pb.FeatureConfig(table="users", slice_dims=[1]),
    }
)

_ARRAYS = ("fids", "fid_splits", "row_splits", "fid_offset", "feature_offset", "nfl_offset", "emb_size")


def _batch(rows: int = 5) -> pa.RecordBatch:
    ids = np.arange(rows)
    fields = [record_batch.fid_field(name) for name in ("user", "item", "seen")]
    fields += [pa.field(record_batch.LABEL, pa.list_(pa.float32())), pa.field("device", pa.string())]
    fields += [pa.field(record_batch.SAMPLE_RATE, pa.float32()), pa.field("age", pa.int64())]
    columns = [
        [[i] for i in ids % 3],
        [[i, i + 1] for i in ids],
        [list(range(i)) if i % 2 else None for i in ids],
        [[float(i), 0.0] for i in ids],
        ["phone" if i else None for i in ids],
        [0.5 if i % 2 else None for i in ids],
        [int(i) if i else None for i in ids],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    return with_provenance(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))


def _assert_equal(one: ShardedFids, other: ShardedFids) -> None:
    for name in _ARRAYS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert getattr(one, name).tolist() == getattr(other, name).tolist()
    assert one.batch_size == other.batch_size


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("version", [3, 5])
def test_a_message_gives_the_batch_back(version: int, rows: int) -> None:
    sharded = shard_fids(_batch(rows), CONFIGS, 3, unique=True, version=version)
    message = pb.ShardedBatch.FromString(sharded.to_proto().SerializeToString())
    restored = ShardedFids.from_proto(message, ShardLayout(CONFIGS, 3, version))
    _assert_equal(restored, sharded)
    assert restored.rows.column(record_batch.LABEL).to_pylist() == [[i, 0.0] for i in range(rows)]


def test_a_message_has_its_blocks_in_one_order_whatever_the_layout() -> None:
    by_shard, by_table = (shard_fids(_batch(), CONFIGS, 3, version=version).to_proto() for version in (4, 5))
    assert by_shard == by_table
    assert [(block.table, block.ps) for block in by_table.table_shards] == [
        (table, shard) for table in ("items", "users") for shard in range(3)
    ]


def test_what_a_row_does_not_have_is_the_default_in_a_message() -> None:
    sharded = shard_fids(_batch(3), CONFIGS)
    rows = ShardedFids.from_proto(sharded.to_proto(), ShardLayout(CONFIGS)).rows
    assert rows.column("device").to_pylist() == [b"", b"phone", b"phone"]
    assert rows.column(record_batch.SAMPLE_RATE).to_pylist() == [1.0, 0.5, 1.0]
    assert rows.column("age").to_pylist() == [0, 1, 2]


def test_a_column_that_a_message_cannot_hold_is_named() -> None:
    batch = _batch(1).append_column("nested", pa.array([[[1.0]]]))
    with pytest.raises(ValueError, match="column nested: "):
        shard_fids(batch, CONFIGS).to_proto()


def test_layouts_that_count_fids_have_no_message_and_no_float_offsets() -> None:
    sharded = shard_fids(_batch(), CONFIGS, version=1)
    for method in (sharded.to_proto, sharded.flat_offsets):
        with pytest.raises(ValueError, match="layout 1 counts fids"):
            method()


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_row_of_arrow_gives_the_batch_back_with_all_its_columns(version: int, rows: int) -> None:
    batch = _batch(7).slice(2, rows)
    sharded = shard_fids(batch, CONFIGS, 3, unique=True, version=version)
    row = record_batch.from_bytes(record_batch.to_bytes(sharded.to_record_batch()))
    restored = ShardedFids.from_record_batch(row, ShardLayout(CONFIGS, 3, version))
    _assert_equal(restored, sharded)
    assert restored.rows.equals(batch.drop_columns(["user", "item", "seen"]), check_metadata=True)


def test_a_row_of_arrow_shares_the_memory_of_the_arrays() -> None:
    sharded = shard_fids(_batch(), CONFIGS, 3)
    row = sharded.to_record_batch()
    for name in _ARRAYS:
        assert row.column(f"sharded.{name}").values.buffers()[1].address == getattr(sharded, name).ctypes.data
    restored = ShardedFids.from_record_batch(row, ShardLayout(CONFIGS, 3))
    assert np.shares_memory(restored.fids, sharded.fids)


def test_a_batch_that_was_sharded_otherwise_is_refused() -> None:
    sharded = shard_fids(_batch(), CONFIGS, 3)
    others = pb.FeatureConfigs()
    others.CopyFrom(CONFIGS)
    others.feature_configs["user"].slice_dims[0] = 2
    for layout, problem in (
        (ShardLayout(others, 3), "other feature configs"),
        (ShardLayout(CONFIGS, 2), "for 3 parameter servers, not 2"),
    ):
        with pytest.raises(ValueError, match=problem):
            ShardedFids.from_proto(sharded.to_proto(), layout)
        with pytest.raises(ValueError, match=problem):
            ShardedFids.from_record_batch(sharded.to_record_batch(), layout)
    with pytest.raises(ValueError, match="layout 5, not 4"):
        ShardedFids.from_record_batch(sharded.to_record_batch(), ShardLayout(CONFIGS, 3, 4))
    with pytest.raises(ValueError, match="not a sharded batch"):
        ShardedFids.from_record_batch(_batch(), ShardLayout(CONFIGS, 3))


def test_the_fingerprint_is_of_the_features_alone() -> None:
    again = pb.FeatureConfigs(out_configs={"vec": pb.OutConfig()})
    for name in sorted(CONFIGS.feature_configs, reverse=True):
        again.feature_configs[name].CopyFrom(CONFIGS.feature_configs[name])
    assert ShardLayout(again, 7, 4).fingerprint == ShardLayout(CONFIGS).fingerprint


def _begins(sharded: ShardedFids) -> list[int]:
    """Where embeddings begin when those of all blocks lie one after another."""
    layout = sharded.layout
    counts = np.concatenate([np.diff(sharded.row_splits_of(*block)) for block in layout.block_names])
    dims = np.repeat(layout.dims[layout.cell_features], counts)
    return (np.cumsum(dims) - dims).tolist()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_message_is_refused_or_stays_within_its_blocks(data: st.DataObject) -> None:
    layout = ShardLayout(CONFIGS, 3)
    message = shard_fids(_batch(), CONFIGS, 3).to_proto()
    message.ClearField("dense_columns")
    block = message.table_shards[data.draw(st.integers(0, len(message.table_shards) - 1))]
    numbers = data.draw(
        st.sampled_from([message.fid_offset, message.feature_offset, message.nfl_offset, block.row_splits, block.fids])
    )
    change = data.draw(st.sampled_from(["set", "drop", "add", "size"]))
    value = data.draw(st.integers(0, 40) | st.integers(0, (1 << 31) - 1))
    if change == "size":
        block.emb_size = value
    elif change == "add":
        numbers.append(value)
    elif numbers:
        at = data.draw(st.integers(0, len(numbers) - 1))
        numbers[at] = value
        if change == "drop":
            del numbers[at]
    try:
        restored = ShardedFids.from_proto(message, layout)
    except ValueError:
        return
    assert len(restored.flat_offsets()) == restored.feature_offset[-1]
    assert set(restored.flat_offsets().tolist()) <= set(_begins(restored))
