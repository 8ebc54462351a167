"""Snapshot files of item pools in Monolith's format: TFRecords of ChannelCache, one file per worker and shard.

The name of a file is `model.ckpt-{step}_item_pool_{index}_{shard}_{workers}`; older files lack the step. Items are in
the order in which they came, so that restored pools drop the same items first. Items are converted one by one in
Python, which is slow but rare: the state of a running feed is saved by `ItemPool.save`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from google.protobuf import message

from millrace.protos import record_pb2
from millrace.runtime.atomic_file import write_bytes
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import SIGNATURE_BITS_V1
from millrace.transforms.frames import framing
from millrace.transforms.steps.negatives.item_pool import MAX_STATE_BYTES, Contents, ItemPool, checked

# So many items make records of some 100 kB.
_ITEMS_PER_RECORD = 512
_NAME = re.compile(r"(?:model\.ckpt-(\d{1,18})_)?item_pool_(\d{1,9})_(\d{1,9})_(\d{1,9})")


class SnapshotName(NamedTuple):
    """The parts of the name of a snapshot file; `step` is -1 for older names."""

    path: Path
    step: int
    worker: int
    shard: int
    workers: int


def newest_files(folder: Path) -> list[Path]:
    """The files of the newest step in `folder`, of all of its workers; none when the folder holds no snapshot."""
    names = list(_names(folder))
    step = max((name.step for name in names), default=-1)
    workers = max((name.workers for name in names if name.step == step), default=0)
    return [path for worker in range(workers) for path in snapshot_files(folder, step, worker)]


def write_next(pool: ItemPool, folder: Path) -> list[Path]:
    """Writes a snapshot of one worker, of the step after the newest one in `folder`; returns its files."""
    step = max((name.step for name in _names(folder)), default=-1) + 1
    return write_snapshot(pool, folder, step, index=0, workers=1)


def write_snapshot(pool: ItemPool, model_dir: Path, step: int, index: int, workers: int, shards: int = 1) -> list[Path]:
    """Writes a snapshot. A file appears whole or not at all, and replaces an older one of the same name.

    Returns: the files.
    """
    contents = pool.contents()
    paths = [model_dir / f"model.ckpt-{step}_item_pool_{index}_{shard}_{workers}" for shard in range(shards)]
    for shard, path in enumerate(paths):
        records = pa.array(_records(contents, np.flatnonzero(contents.channels % shards == shard)), pa.binary())
        write_bytes(path, framing.join_frames(records, framing.TF_RECORDS).to_pybytes())
    return paths


def snapshot_files(model_dir: Path, step: int, index: int) -> list[Path]:
    """The files of one worker, in the order of their shards; none when there is no snapshot.

    The files of `step` tell how many workers wrote them, W. This worker takes the files of worker index % W. Workers
    save at different steps, so the newest step up to `step` counts. Without such files it takes those of older names.
    """
    names = list(_names(model_dir))
    workers = max((name.workers for name in names if name.step == step), default=0)
    steps = [name for name in names if workers and name.workers == workers and name.worker == index % workers]
    newest = max((name.step for name in steps if 0 <= name.step <= step), default=-1)
    chosen = [name for name in steps if name.step == newest >= 0]
    if not chosen:
        old = [name for name in names if name.step < 0]
        workers = max((name.workers for name in old), default=1)
        chosen = [name for name in old if name.workers == workers and name.worker == index % workers]
    return [name.path for name in sorted(chosen, key=lambda name: name.shard)]


def read_snapshot(path: Path) -> Contents:
    """The items in a snapshot file; ValueError naming the file when it is something else."""
    if path.stat().st_size > MAX_STATE_BYTES:
        raise ValueError(f"{path}: larger than the limit of {MAX_STATE_BYTES} bytes")
    data = path.read_bytes()
    frames = framing.split_frames(data, framing.TF_RECORDS)
    if frames.error is not None:
        raise ValueError(f"{path}: byte {frames.end}: {frames.error.value}")
    reader = _Reader()
    try:
        for start, length in zip(frames.starts.tolist(), frames.lengths.tolist(), strict=True):
            reader.add(record_pb2.ChannelCache.FromString(data[start : start + length]))
        return reader.contents()
    except (ValueError, message.DecodeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _names(model_dir: Path) -> Iterator[SnapshotName]:
    for path in model_dir.iterdir() if model_dir.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if found:
            step, worker, shard, workers = (-1 if part is None else int(part) for part in found.groups())
            yield SnapshotName(path, step, worker, shard, workers)


def _records(contents: Contents, chosen: np.ndarray) -> list[bytes]:
    """ChannelCache messages with the items at the indices `chosen`, at most 512 items per message."""
    channels = contents.channels[chosen]
    ends = [*(np.flatnonzero(np.diff(channels)) + 1).tolist(), len(chosen)]
    records, start = [], 0
    for end in ends:
        for first in range(start, end, _ITEMS_PER_RECORD):
            rows = chosen[first : min(first + _ITEMS_PER_RECORD, end)]
            cache = record_pb2.ChannelCache(
                channel_id=int(contents.channels[rows[0]]), feature_datas=_items(contents, rows)
            )
            records.append(cache.SerializeToString())
        start = end
    return records


def _items(contents: Contents, rows: np.ndarray) -> list[record_pb2.FeatureData]:
    gids = contents.keys[rows].view(np.int64).tolist()
    counts = zip(contents.pushed[rows].tolist(), contents.drawn[rows].tolist(), strict=True)
    datas = [
        record_pb2.FeatureData(gid=gid, origin_cnt=pushed, sample_cnt=drawn)
        for gid, (pushed, drawn) in zip(gids, counts, strict=True)
    ]
    items = contents.items.take(pa.array(rows))
    for field, column in zip(items.schema, items.columns, strict=True):
        kind, number = _kind_of(field), int((field.metadata or {}).get(record_batch.ID_KEY, 0))
        for data, value in zip(datas, column.to_pylist(), strict=True):
            is_key = field.name == record_batch.ITEM_ID and value == data.gid
            if value is not None and not is_key:
                _set(data.feature_columns.add(name=field.name, id=number).feature, kind, value)
    return datas


_VALUES: dict[str, pa.DataType] = {
    "fid_v1": pa.int64(),
    "fid_v2": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "int64": pa.int64(),
    "bytes": pa.binary(),
}
_UNSIGNED = ("fid_v1", "fid_v2")
_MASK = (1 << 64) - 1


def _type_of(kind: str) -> pa.DataType:
    """The Arrow type of a feature whose oneof has the member `kind`, such as `fid_v2_list` or `int64_value`."""
    values, _, shape = kind.rpartition("_")
    lists = {"value": 0, "list": 1, "lists": 2}[shape]
    type_ = _VALUES[values]
    for _ in range(lists):
        type_ = pa.list_(type_)
    return type_


_KINDS = {name: _type_of(name) for name in record_pb2.Feature.DESCRIPTOR.fields_by_name}
_METADATA = {b"fid": "fid_v2", b"fid_v1": "fid_v1"}


def _kind_of(field: pa.Field) -> str:
    """The member of a feature's oneof that holds the values of a column; ValueError when there is none."""
    values = _METADATA.get((field.metadata or {}).get(record_batch.KIND_KEY, b""))
    type_ = _with_binary(field.type)
    for kind, candidate in _KINDS.items():
        fits = kind.startswith(values) if values else not kind.startswith(_UNSIGNED)
        if fits and candidate == type_:
            return kind
    raise ValueError(f"item column {field.name}: a snapshot has no place for {field.type}")


def _with_binary(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type_):
        return pa.list_(_with_binary(type_.value_type))
    return pa.binary() if pa.types.is_string(type_) else type_


def _set(feature: record_pb2.Feature, kind: str, value: Any) -> None:
    """Sets the member `kind` to a value of a column, as `to_pylist` gives it."""
    if kind.endswith("_value"):
        setattr(feature, kind, _wire(kind, value))
        return
    member = getattr(feature, kind)
    member.SetInParent()
    if kind.endswith("_list"):
        member.value.extend(_wire(kind, each) for each in value)
    for each in value if kind.endswith("_lists") else ():
        member.list.add().value.extend(_wire(kind, one) for one in each or ())


def _wire(kind: str, value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return value & _MASK if kind.startswith(_UNSIGNED) else value


def _get(feature: record_pb2.Feature, kind: str) -> Any:
    """The value of the member `kind`, as Arrow takes it."""
    member = getattr(feature, kind)
    if kind.endswith("_value"):
        return member
    if kind.endswith("_lists"):
        return [_values(each.value, kind) for each in member.list]
    return _values(member.value, kind)


def _values(values: Sequence[Any], kind: str) -> np.ndarray | list[Any]:
    if kind.startswith(_UNSIGNED):
        return np.array(values, np.uint64).view(np.int64)
    return list(values)


class _Reader:
    """Collects the items of ChannelCache messages, column by column."""

    def __init__(self) -> None:
        self._book: list[tuple[int, int, int, int]] = []
        self._columns: dict[str, tuple[str, int, dict[int, Any]]] = {record_batch.ITEM_ID: ("int64_value", 0, {})}

    def add(self, cache: record_pb2.ChannelCache) -> None:
        for data in cache.feature_datas:
            row = len(self._book)
            self._book.append((cache.channel_id, data.gid, data.origin_cnt, data.sample_cnt))
            self._put(record_batch.ITEM_ID, "int64_value", 0, row, data.gid)
            for named in data.feature_columns:
                kind = named.feature.WhichOneof("type")
                if kind is not None:
                    self._put(named.name, kind, named.id, row, _get(named.feature, kind))
            for slot, fids in _by_slot(data.fids).items():
                self._put(f"fc_slot_{slot}", "fid_v1_list", slot, row, fids)

    def contents(self) -> Contents:
        book = np.array(self._book, np.int64).reshape(-1, 4)
        columns, fields = [], []
        for name, (kind, number, values) in self._columns.items():
            field = _field_of(name, kind, number)
            columns.append(pa.array([values.get(row) for row in range(len(book))], field.type))
            fields.append(field)
        items = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
        return checked(Contents(book[:, 0], book[:, 1].view(np.uint64), book[:, 2], book[:, 3], items))

    def _put(self, name: str, kind: str, number: int, row: int, value: Any) -> None:
        known, _, values = self._columns.setdefault(name, (kind, number, {}))
        if known != kind:
            raise ValueError(f"feature {name} is {known} in one item, {kind} in another")
        values[row] = value


def _field_of(name: str, kind: str, number: int) -> pa.Field:
    metadata = {record_batch.ID_KEY: str(number).encode()} if number else {}
    for value, values in _METADATA.items():
        if kind.startswith(values):
            metadata[record_batch.KIND_KEY] = value
    return pa.field(name, _KINDS[kind], metadata=metadata or None)


def _by_slot(fids: Sequence[int]) -> dict[int, list[int]]:
    """{slot: fids v1} of an item of an Instance, whose fids are not told apart by feature."""
    slots: dict[int, list[int]] = {}
    for fid in fids:
        slots.setdefault((fid & _MASK) >> SIGNATURE_BITS_V1, []).append(fid)
    return slots
