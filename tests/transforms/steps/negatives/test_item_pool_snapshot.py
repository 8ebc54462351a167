"""Snapshot files of item pools: what is in them, which are read, damaged ones."""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import record_pb2
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v1
from millrace.transforms.steps.negatives import item_pool_snapshot
from millrace.transforms.steps.negatives.item_pool import Contents, ItemPool
from millrace.transforms.steps.negatives.item_pool_snapshot import (
    newest_files,
    read_snapshot,
    snapshot_files,
    write_next,
    write_snapshot,
)

FIELDS = [
    pa.field("__ITEM_ID__", pa.int64()),
    record_batch.fid_field("fids"),
    pa.field("old fids", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA),
    pa.field("ints", pa.list_(pa.int64()), metadata={record_batch.ID_KEY: b"12"}),
    pa.field("floats", pa.list_(pa.float32())),
    pa.field("doubles", pa.list_(pa.float64())),
    pa.field("texts", pa.list_(pa.binary())),
    pa.field("lists", pa.list_(pa.list_(pa.int64())), metadata=record_batch.FID_METADATA),
    pa.field("float lists", pa.list_(pa.list_(pa.float32()))),
    pa.field("one int", pa.int64()),
    pa.field("one float", pa.float32()),
    pa.field("one text", pa.binary()),
]
numbers = st.integers(-(1 << 63), (1 << 63) - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "fids": st.lists(numbers, max_size=3),
    "old fids": st.lists(numbers, max_size=3),
    "ints": st.lists(numbers, max_size=3),
    "floats": st.lists(st.floats(width=32, allow_nan=False), max_size=2),
    "doubles": st.lists(st.floats(allow_nan=False), max_size=2),
    "texts": st.lists(st.binary(max_size=5), max_size=2),
    "lists": st.lists(st.lists(numbers, max_size=2), max_size=2),
    "float lists": st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=2), max_size=2),
    "one int": numbers,
    "one float": st.floats(width=32, allow_nan=False),
    "one text": st.binary(max_size=5),
}
random_items = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})


def pool_of(keys: list[int], channels: list[int] | None = None, items: list[dict[str, Any]] | None = None) -> ItemPool:
    pool = ItemPool(0, 1000)
    rows = [{"__ITEM_ID__": key} | item for key, item in zip(keys, items or [{}] * len(keys), strict=True)]
    batch = pa.RecordBatch.from_pylist(rows, schema=pa.schema(FIELDS))
    book = np.asarray(channels or [3] * len(keys), np.int64)
    counts = np.arange(1, len(keys) + 1)
    pool.merge(Contents(book, np.asarray(keys, np.int64).view(np.uint64), counts, counts - 1, batch))
    return pool


def content(pool: ItemPool) -> list[Any]:
    contents = pool.contents()
    book = zip(*(column.tolist() for column in contents[:4]), strict=True)
    rows = [{name: value for name, value in row.items() if value is not None} for row in contents.items.to_pylist()]
    return list(zip(book, rows, strict=True))


def restore_snapshot(pool: ItemPool, model_dir: Path, step: int, index: int) -> list[Path]:
    """Merges the snapshot of one worker into `pool`; returns the files that were read."""
    files = snapshot_files(model_dir, step, index)
    for path in files:
        pool.merge(read_snapshot(path))
    return files


@settings(deadline=None, max_examples=60)
@given(st.lists(random_items, max_size=12), st.data())
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    keys = data.draw(st.permutations(range(-3, len(items) - 3)))
    channels = data.draw(st.lists(st.integers(-2, 2), min_size=len(items), max_size=len(items)))
    pool, restored = pool_of(keys, channels, items), ItemPool(0, 1000)
    shards = data.draw(st.integers(1, 3))
    files = write_snapshot(pool, folder, 7, 0, 1, shards)
    assert [file.name for file in files] == [f"model.ckpt-7_item_pool_0_{shard}_1" for shard in range(shards)]
    assert restore_snapshot(restored, folder, 7, 0) == files
    assert sorted(content(restored), key=lambda item: item[0][0]) == sorted(content(pool), key=lambda item: item[0][0])


def test_items_stay_in_the_order_in_which_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_pool_snapshot, "_ITEMS_PER_RECORD", 4)
    pool, restored = pool_of([9, 3, 7, 1, 8, 2, 6], [3] * 7), ItemPool(0, 1000)
    write_snapshot(pool, tmp_path, 1, 0, 1)
    restore_snapshot(restored, tmp_path, 1, 0)
    assert restored.contents().keys.tolist() == [9, 3, 7, 1, 8, 2, 6]
    assert restored.contents().drawn.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_file_is_tfrecords_of_channel_caches(tmp_path: Path) -> None:
    pool = pool_of([5, 6, 1], [3, 3, 4], [{"fids": [1, -1]}, {"ints": [4]}, {}])
    data = write_snapshot(pool, tmp_path, 1, 0, 1)[0].read_bytes()
    caches = []
    while data:
        length = int.from_bytes(data[:8], "little")
        for start, stop, crc in ((0, 8, 8), (12, 12 + length, 12 + length)):
            value = google_crc32c.value(data[start:stop])
            masked = ((value >> 15 | value << 17) + 0xA282EAD8) % (1 << 32)
            assert int.from_bytes(data[crc : crc + 4], "little") == masked
        caches.append(record_pb2.ChannelCache.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [(cache.channel_id, [item.gid for item in cache.feature_datas]) for cache in caches] == [
        (3, [5, 6]),
        (4, [1]),
    ]
    first, second = caches[0].feature_datas
    assert [each.name for each in first.feature_columns] == ["fids"]
    assert list(first.feature_columns[0].feature.fid_v2_list.value) == [1, (1 << 64) - 1]
    assert (second.feature_columns[0].id, second.origin_cnt, second.sample_cnt) == (12, 2, 1)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def test_a_worker_takes_the_files_of_its_remainder_at_the_newest_step(tmp_path: Path) -> None:
    touch(tmp_path, "model.ckpt-20_item_pool_0_0_2", "model.ckpt-18_item_pool_1_0_2", "model.ckpt-18_item_pool_1_1_2")
    touch(tmp_path, "model.ckpt-10_item_pool_1_0_2", "model.ckpt-25_item_pool_1_0_2", "model.ckpt-19_item_pool_1_0_4")
    touch(
        tmp_path,
        "item_pool_0_0_1",
        "model.ckpt-20_item_pool_0_0_2_tmp",
        "model.ckpt-20_item_pool_x_0_2",
        "model.ckpt-20",
    )
    names = {index: [path.name for path in snapshot_files(tmp_path, 20, index)] for index in range(4)}
    own = ["model.ckpt-18_item_pool_1_0_2", "model.ckpt-18_item_pool_1_1_2"]
    assert names == {0: ["model.ckpt-20_item_pool_0_0_2"], 1: own, 2: ["model.ckpt-20_item_pool_0_0_2"], 3: own}


def test_older_names_are_the_last_resort(tmp_path: Path) -> None:
    touch(tmp_path, "model.ckpt-20_item_pool_0_0_2", "item_pool_0_0_3", "item_pool_1_0_3", "item_pool_1_1_3")
    assert [path.name for path in snapshot_files(tmp_path, 21, 4)] == ["item_pool_1_0_3", "item_pool_1_1_3"]
    assert [path.name for path in snapshot_files(tmp_path, 20, 1)] == ["item_pool_1_0_3", "item_pool_1_1_3"]
    assert snapshot_files(tmp_path, 21, 2) == []
    assert snapshot_files(tmp_path / "none", 21, 2) == []


def test_a_snapshot_is_merged_into_the_pool(tmp_path: Path) -> None:
    write_snapshot(pool_of([1, 2, 3]), tmp_path, 5, 0, 1)
    pool = pool_of([2, 9])
    restore_snapshot(pool, tmp_path, 5, 0)
    contents = pool.contents()
    assert contents.keys.tolist() == [2, 9, 1, 3]
    assert contents.pushed.tolist() == [1 + 2, 2, 1, 3]


def test_items_of_instances_get_a_column_a_slot(tmp_path: Path) -> None:
    fids = [int(fid_v1(5, 1)), int(fid_v1(700, 2)), int(fid_v1(5, 3))]
    cache = record_pb2.ChannelCache(channel_id=3, feature_datas=[record_pb2.FeatureData(gid=4, fids=fids)])
    path = tmp_path / "item_pool_0_0_1"
    records = pa.array([cache.SerializeToString()], pa.binary())
    path.write_bytes(
        item_pool_snapshot.framing.join_frames(records, item_pool_snapshot.framing.TF_RECORDS).to_pybytes()
    )
    items = read_snapshot(path).items
    assert items.to_pylist() == [{"__ITEM_ID__": 4, "fc_slot_5": [fids[0], fids[2]], "fc_slot_700": [fids[1]]}]
    assert record_batch.is_fid_v1_field(items.schema.field("fc_slot_700"))


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_snapshot(pool_of([1, 2, 3]), tmp_path, 5, 0, 1)
    good = path.read_bytes()
    for data in (good[:-1], good[:5] + b"x" + good[6:], good[:20] + b"xx" + good[22:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=path.name):
            restore_snapshot(ItemPool(), tmp_path, 5, 0)
    two_kinds = [record_pb2.FeatureData(gid=gid) for gid in (1, 2)]
    two_kinds[0].feature_columns.add(name="x").feature.int64_value = 1
    two_kinds[1].feature_columns.add(name="x").feature.float_value = 1
    negative = [record_pb2.FeatureData(gid=1, origin_cnt=-1)]
    for datas, reason in ((two_kinds, "feature x is int64_value in one item"), (negative, "counter is out of range")):
        cache = record_pb2.ChannelCache(feature_datas=datas).SerializeToString()
        frames = item_pool_snapshot.framing.join_frames(pa.array([cache]), item_pool_snapshot.framing.TF_RECORDS)
        path.write_bytes(frames.to_pybytes())
        with pytest.raises(ValueError, match=reason):
            read_snapshot(path)
    monkeypatch.setattr(item_pool_snapshot, "MAX_STATE_BYTES", 10)
    with pytest.raises(ValueError, match="limit of 10 bytes"):
        read_snapshot(path)


def test_a_column_that_a_snapshot_has_no_place_for_is_named(tmp_path: Path) -> None:
    pool = ItemPool()
    key = np.array([1], np.uint64)
    items = pa.record_batch({"when": pa.array([1], pa.timestamp("s"))})
    pool.merge(Contents(np.array([3]), key, np.array([1]), np.array([0]), items))
    with pytest.raises(ValueError, match="item column when"):
        write_snapshot(pool, tmp_path, 1, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_next_snapshot_is_of_the_step_after_the_newest_and_is_the_one_to_start_from(tmp_path: Path) -> None:
    assert newest_files(tmp_path) == []
    assert [path.name for path in write_next(pool_of([1]), tmp_path)] == ["model.ckpt-0_item_pool_0_0_1"]
    write_snapshot(pool_of([2]), tmp_path, 41, 0, 2)
    write_snapshot(pool_of([3]), tmp_path, 41, 1, 2)
    assert [path.name[-5:] for path in newest_files(tmp_path)] == ["0_0_2", "1_0_2"]
    assert write_next(pool_of([4]), tmp_path) == newest_files(tmp_path)
    assert read_snapshot(newest_files(tmp_path)[0]).keys.tolist() == [4]
