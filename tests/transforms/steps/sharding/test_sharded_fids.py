"""Fids by table and shard, in every layout, equal to the row-wise reference; and back to their rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.protos import sharded_batch_pb2 as pb
from millrace.protos import transform_config_pb2 as config_pb
from millrace.protos.record_pb2 import INDIVIDUAL, SHARED, ExampleBatch
from millrace.runtime.errors import UserError
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import fid_v1, fid_v2
from millrace.transforms.batch.provenance import with_provenance
from millrace.transforms.codecs.record_codec import decode_records
from millrace.transforms.feed.shards import shard_of
from millrace.transforms.steps.sharding.shard_layout import ShardLayout
from millrace.transforms.steps.sharding.sharded_batch import ShardedFids
from millrace.transforms.steps.sharding.sharded_fids import ShardFids, shard_fids
from millrace.transforms.steps.step import StepContext
from tests.conformance.covers import covers
from tests.reference import sharding_reference as reference
from tests.reference.record_comparison import block_of

A10, A11 = int(fid_v2(1, 10)), int(fid_v2(1, 11))
B20, B21 = int(fid_v2(2, 20)), int(fid_v2(2, 21))
C30 = int(fid_v2(3, 30))

Rows = list[list[int] | None]


def _configs(features: dict[str, tuple[str, list[int]]]) -> pb.FeatureConfigs:
    """Of {feature: (table, slice_dims)}."""
    configs = {name: pb.FeatureConfig(table=table, slice_dims=dims) for name, (table, dims) in features.items()}
    return pb.FeatureConfigs(feature_configs=configs)


def _batch(columns: dict[str, Rows], shared: tuple[str, ...] = ()) -> pa.RecordBatch:
    """Of {feature: fids of each row}."""
    fields = [
        record_batch.fid_field(name).with_metadata(
            {**record_batch.FID_METADATA, **({record_batch.SHARED_KEY: b"1"} if name in shared else {})}
        )
        for name in columns
    ]
    arrays = [pa.array(rows, pa.list_(pa.int64())) for rows in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


CONFIGS = _configs({"a": ("t0", [1, 3]), "b": ("t1", [2]), "c": ("t0", [3])})


def _vector_batch() -> pa.RecordBatch:
    """Two rows, three features, two tables."""
    return _batch({"a": [[A10, A11], [A11]], "b": [[B20], [B20, B21]], "c": [None, [C30]]})


def _pairs(offsets: np.ndarray) -> list[tuple[int, int]]:
    return [(offset >> 32, offset & 0xFFFFFFFF) for offset in offsets.tolist()]


@covers("data:v26", "data:v27")
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_features_and_rows_are_found_by_their_offsets_in_every_layout(version: int) -> None:
    sharded = shard_fids(_vector_batch(), CONFIGS, 2, version=version)
    assert sharded.nfl_offset.tolist() == [0, 2, 4, 7]
    assert sharded.feature_offset.tolist() == [0, 2, 3, 4, 6, 6, 7]
    assert sharded.batch_size == 2


@covers("data:v28")
@pytest.mark.parametrize("version", [2, 3, 5])
def test_a_block_has_its_fids_by_feature_and_then_by_row(version: int) -> None:
    outputs = shard_fids(_vector_batch(), CONFIGS, 2, version=version).outputs()
    lists = {key: outputs[f"fid_list/{key}"].tolist() for key in ("t0:0", "t0:1", "t1:0", "t1:1")}
    assert lists == {"t0:0": [A10, C30], "t0:1": [A11, A11], "t1:0": [B20, B20], "t1:1": [B21]}
    splits = {key: outputs[f"fid_list_row_splits/{key}"].tolist() for key in lists}
    assert splits == {"t0:0": [0, 1, 2], "t0:1": [0, 2, 2], "t1:0": [0, 2], "t1:1": [0, 1]}


@covers("data:v29")
@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (0, 1)]),
        (2, [(0, 0), (2, 0), (2, 1), (4, 0), (4, 1), (5, 0), (1, 0)]),
        *[(version, [(0, 0), (1, 0), (1, 4), (2, 0), (2, 2), (3, 0), (0, 4)]) for version in (3, 4, 5)],
    ],
)
def test_each_layout_has_its_own_offsets(version: int, expected: list[tuple[int, int]]) -> None:
    offsets = shard_fids(_vector_batch(), CONFIGS, 2, version=version).fid_offset
    assert _pairs(offsets) == expected
    if version >= 3:
        assert offsets[2] == 4294967300


@covers("data:v30")
def test_layout_5_tells_sizes_and_layout_4_is_one_flat_buffer_by_shard() -> None:
    v5 = shard_fids(_vector_batch(), CONFIGS, 2, version=5).outputs()
    assert v5["emb_size"].tolist() == [7, 8, 4, 2]
    sizes = [v5[name].tolist() for name in ("nfl_size", "feature_size", "fid_size", "batch_size")]
    assert sizes == [[4], [7], [7], [2]]
    v4 = shard_fids(_vector_batch(), CONFIGS, 2, version=4).outputs()
    assert v4["fid_list"].tolist() == [A10, C30, B20, B20, A11, A11, B21]
    assert v4["fid_list_row_splits"].tolist() == [0, 1, 2, 0, 2, 0, 2, 2, 0, 1]
    assert v4["fid_list_table_row_length"].tolist() == [2, 2, 2, 1]
    assert v4["fid_list_shard_row_length"].tolist() == [4, 3]
    assert v4["fid_list_emb_row_length"].tolist() == [7, 4, 8, 2]
    assert v4["batch_size"].shape == ()


@covers("data:v31")
def test_a_unique_fid_has_one_embedding_a_feature_and_shard() -> None:
    sharded = shard_fids(_vector_batch(), CONFIGS, 2, unique=True)
    assert sharded.fids_of("t0", 1).tolist() == [A11]
    assert sharded.fids_of("t1", 0).tolist() == [B20]
    assert sharded.row_splits_of("t0", 1).tolist() == [0, 1, 1]
    assert _pairs(sharded.fid_offset) == [(0, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (0, 4)]
    assert sharded.emb_size.tolist() == [7, 4, 2, 2]


def _example_batch(lists: dict[str, list[list[int]]], rows: int) -> ExampleBatch:
    """Of {feature: fids of each row, or of all rows where there is one list}."""
    batch = ExampleBatch(batch_size=rows)
    for name, fids_of_rows in lists.items():
        kind = INDIVIDUAL if len(fids_of_rows) == rows else SHARED
        named = batch.named_feature_list.add(name=name, type=kind)
        for fids in fids_of_rows:
            named.feature.add().fid_v2_list.value.extend(fids)
    return batch


def _decoded(*batches: ExampleBatch) -> pa.RecordBatch:
    rows, dead_letters = decode_records(block_of([batch.SerializeToString() for batch in batches]), "example_batch")
    assert dead_letters.num_rows == 0
    return rows


@covers("data:v32")
def test_a_shared_feature_has_one_entry_from_the_record_to_the_trainer() -> None:
    """The rows come from a record; an absent feature has one empty entry."""
    rows = _decoded(_example_batch({"a": [[A10, A11], [A11]], "b": [[B20, B21]]}, rows=2))
    sharded = shard_fids(rows, CONFIGS, 2, unique=True)
    assert sharded.nfl_offset.tolist() == [0, 2147483650, 2147483651, 5]
    assert sharded.feature_offset.tolist() == [0, 2, 3, 5, 5]


def test_rows_of_records_that_share_other_values_keep_their_own() -> None:
    sharing = [_example_batch({"b": [[fid]]}, rows=2) for fid in (B20, B21)]
    own = _example_batch({"b": [[B20], [B21]]}, rows=2)
    lacking = _example_batch({"a": [[A10]]}, rows=2)
    only_b = _configs({"b": ("t1", [2])})
    for records, expected in (
        ([sharing[0], sharing[0]], [[B20]]),
        ([sharing[0], sharing[1]], [[B20], [B20], [B21], [B21]]),
        ([sharing[0], own], [[B20], [B20], [B20], [B21]]),
        ([sharing[0], lacking], [[B20], [B20], [], []]),
    ):
        together = _decoded(*records)
        merged = record_batch.concat([_decoded(record) for record in records])
        for rows in (together, merged):
            sharded = shard_fids(rows, only_b)
            entries = np.split(sharded.fids_of("t1", 0), sharded.feature_offset[1:-1])
            assert [entry.tolist() for entry in entries] == expected


def test_a_feature_that_calls_itself_shared_but_differs_between_rows_is_not() -> None:
    marked = _batch({"a": [[A10], [A11]], "b": [[B20], [B20, B21]]}, shared=("a", "b"))
    plain = _batch({"a": [[A10], [A11]], "b": [[B20], [B20, B21]]})
    assert shard_fids(marked, CONFIGS).nfl_offset.tolist() == shard_fids(plain, CONFIGS).nfl_offset.tolist()


TABLES_OF_27 = _configs({"fa": ("t1", [1, 4]), "fb": ("t1", [1, 4]), "fc": ("t2", [2])})


@covers("dist:27", part="lists and offsets; the product has no layouts and no gradients by offset")
def test_the_offsets_of_the_layout_example() -> None:
    batch = _batch({"fa": [[10, 11], [10, 13]], "fb": [[21, 20], []], "fc": [[7, 8, 9, 12], [5]]})
    sharded = shard_fids(batch, TABLES_OF_27, 2, unique=True)
    blocks = [("t1", 0), ("t1", 1), ("t2", 0), ("t2", 1)]
    lists = [sharded.fids_of(*block).tolist() for block in blocks]
    assert lists == [[10, 20], [11, 13, 21], [8, 12], [7, 9, 5]]
    assert [sharded.row_splits_of(*block).tolist() for block in blocks] == [[0, 1, 2], [0, 2, 3], [0, 2], [0, 3]]
    assert _pairs(sharded.fid_offset) == [
        (0, 0), (1, 0), (0, 0), (1, 5), (1, 10), (0, 5), (3, 0), (2, 0), (3, 2), (2, 2), (3, 4)
    ]  # fmt: skip
    assert sharded.fid_offset[4] == 0x10000000A
    assert sharded.feature_offset.tolist() == [0, 2, 4, 6, 6, 10, 11]
    assert sharded.nfl_offset.tolist() == [0, 2, 4, 7]
    assert sharded.emb_size.tolist() == [10, 15, 4, 6]


@covers("dist:28", part="offsets; the product has no layouts and no gradients by offset")
def test_the_offsets_of_the_layout_example_with_a_shared_feature() -> None:
    lists = {"fa": [[10, 11], [10, 13]], "fb": [[21, 20]], "fc": [[7, 8, 9, 12], [5]]}
    sharded = shard_fids(_decoded(_example_batch(lists, rows=2)), TABLES_OF_27, 2, unique=True)
    assert sharded.feature_offset.tolist() == [0, 2, 4, 6, 10, 11]
    assert sharded.nfl_offset.tolist() == [0, 0x80000002, 3, 6]


@pytest.mark.parametrize(
    ("slots", "shards", "dims", "ids", "shard_sizes", "slot_sizes", "offsets"),
    [
        pytest.param([[0, 1, 2, 2, 3, 5]], 3, [1], [0, 3, 1, 2, 5], [2, 1, 2], [2, 1, 2], None,
                     marks=covers("dist:4"), id="one slot"),
        pytest.param([[0, 1, 2, 2, 3, 5], []], 3, [1, 1], [0, 3, 1, 2, 5], [2, 1, 2], [2, 0, 1, 0, 2, 0], None,
                     marks=covers("dist:5"), id="an empty slot"),
        pytest.param([[0, 1, 2, 2, 3, 5], [6, 7, 8, 8, 9, 11]], 3, [1, 1], [0, 3, 6, 9, 1, 7, 2, 5, 8, 11], [4, 2, 4],
                     [2, 2, 1, 1, 2, 2], None, marks=covers("dist:6"), id="two slots"),
        pytest.param([[], []], 2, [1, 1], [], [0, 0], [0, 0, 0, 0], None,
                     marks=covers("dist:7"), id="empty slots"),
        pytest.param([[0, 1, 0], [3, 2, 3], [5, 6, 7]], 2, [1, 2, 3], [0, 2, 6, 1, 3, 5, 7], [3, 4],
                     [1, 1, 1, 1, 1, 2], [0, 6, 0, 7, 1, 7, 9, 3, 12],
                     marks=covers("dist:8", part="all but emb_offset_sz"), id="three widths"),
        pytest.param([[2, 3, 1, 2, 7, 2], [5, 8, 4, 4, 5, 11, 6]], 3, [3, 2], [3, 6, 1, 7, 4, 2, 5, 8, 11], [2, 3, 4],
                     [1, 1, 2, 1, 1, 3], [13, 0, 5, 13, 8, 13, 16, 18, 11, 11, 16, 20, 3],
                     marks=covers("dist:9"), id="two widths"),
        pytest.param([[0, 1, 2, 3, 4, 5, 6, 7, 8], [10, 11, 10]], 5, [2, 3], [0, 5, 10, 1, 6, 11, 2, 7, 3, 8, 4],
                     [3, 3, 2, 2, 1], None, [0, 7, 14, 18, 22, 2, 9, 16, 20, 4, 11, 4],
                     marks=covers("dist:11"), id="five shards"),
    ],
)  # fmt: skip
def test_layout_4_with_a_table_a_slot_reorders_ids_for_one_lookup_a_shard(
    slots: list[list[int]], shards: int, dims: list[int], ids: list[int], shard_sizes: list[int],
    slot_sizes: list[int] | None, offsets: list[int] | None,
) -> None:  # fmt: skip
    """The fused reorder of ids is this layout."""
    names = [f"slot{i}" for i in range(len(slots))]
    configs = _configs({name: (name, [dim]) for name, dim in zip(names, dims, strict=True)})
    batch = _batch({name: [fids] for name, fids in zip(names, slots, strict=True)})
    sharded = shard_fids(batch, configs, shards, unique=True, version=4)
    outputs = sharded.outputs()
    assert outputs["fid_list"].tolist() == ids
    assert outputs["fid_list_shard_row_length"].tolist() == shard_sizes
    if slot_sizes is not None:
        assert outputs["fid_list_table_row_length"].tolist() == slot_sizes
    if offsets is not None:
        assert sharded.flat_offsets().tolist() == offsets


def _sharded_9() -> ShardedFids:
    configs = _configs({"slot0": ("slot0", [3]), "slot1": ("slot1", [2])})
    batch = _batch({"slot0": [[2, 3, 1, 2, 7, 2]], "slot1": [[5, 8, 4, 4, 5, 11, 6]]})
    return shard_fids(batch, configs, 3, unique=True, version=4)


@covers("dist:25", part="offsets; the sums are taken in the test")
def test_sizes_tell_where_the_ids_and_embeddings_of_a_lookup_lie() -> None:
    sharded = _sharded_9()
    assert sharded.fid_splits.tolist() == [0, 1, 2, 4, 5, 6, 9]
    assert np.cumsum(sharded.emb_size).tolist() == [3, 5, 11, 13, 16, 22]
    assert sharded.emb_size.reshape(3, 2).sum(axis=1).tolist() == [5, 8, 9]


@covers("dist:18", part="where a row begins; the product has no gather by offset")
def test_flat_offsets_find_the_embeddings_in_one_buffer() -> None:
    flat = [
        1.1,
        1.2,
        1.3,
        2.1,
        2.2,
        3.1,
        3.2,
        3.3,
        4.1,
        4.2,
        4.3,
        5.1,
        5.2,
        6.1,
        6.2,
        6.3,
        7.1,
        7.2,
        8.1,
        8.2,
        9.1,
        9.2,
    ]
    offsets = _sharded_9().flat_offsets().tolist()
    assert [int(flat[offset]) for offset in offsets[:6]] == [6, 1, 3, 6, 4, 6]
    assert [int(flat[offset]) for offset in offsets[6:]] == [7, 8, 5, 5, 7, 9, 2]


def test_fids_v1_are_converted_before_they_are_sharded() -> None:
    v1 = [int(fid_v1(700, 10)), int(fid_v1(700, 11))]
    field = pa.field("fc_slot_700", pa.list_(pa.int64()), metadata=record_batch.FID_V1_METADATA)
    batch = pa.RecordBatch.from_arrays([pa.array([v1], field.type)], schema=pa.schema([field]))
    sharded = shard_fids(batch, _configs({"slot_700": ("t", [1])}), 2)
    assert [sharded.fids_of("t", shard).tolist() for shard in (0, 1)] == [[int(fid_v2(700, i))] for i in (10, 11)]


_FIDS = st.integers(0, (1 << 63) - 1) | st.integers(0, 12)
_NAMES = ["a", "b", "c", "d"]


@st.composite
def _cases(draw: st.DrawFn) -> tuple[pa.RecordBatch, dict[str, reference.Feature]]:
    """A batch, maybe a slice, and the same as the reference has it."""
    rows = draw(st.integers(0, 6))
    start = draw(st.integers(0, rows))
    columns: dict[str, Rows] = {}
    features: dict[str, reference.Feature] = {}
    for name in draw(st.lists(st.sampled_from(_NAMES), min_size=1, unique=True)):
        feature = reference.Feature(draw(st.sampled_from(["t0", "t1"])), draw(st.integers(1, 5)), None)
        kind = draw(st.sampled_from(["own", "own", "null", "shared", "absent"]))
        if kind != "absent":
            entries: st.SearchStrategy[list[int] | None] = st.none() | st.lists(_FIDS, max_size=5)
            if kind == "own":
                columns[name] = draw(st.lists(entries, min_size=rows, max_size=rows))
            else:
                columns[name] = [None if kind == "null" else draw(entries)] * rows
            feature.rows = [fids or [] for fids in columns[name][start:]]
            feature.shared = kind == "shared" and start < rows
        features[name] = feature
    columns["other"] = [[] for _ in range(rows)]
    shared = tuple(name for name, feature in features.items() if feature.shared)
    return _batch(columns, shared).slice(start), features


def _configs_of(features: dict[str, reference.Feature]) -> pb.FeatureConfigs:
    return _configs({name: (feature.table, [feature.dims]) for name, feature in features.items()})


@settings(max_examples=300, deadline=None)
@given(case=_cases(), ps_num=st.integers(1, 5), unique=st.booleans(), version=st.integers(1, 5))
def test_a_batch_is_sharded_as_the_reference_does_it(
    case: tuple[pa.RecordBatch, dict[str, reference.Feature]], ps_num: int, unique: bool, version: int
) -> None:
    batch, features = case
    expected = reference.shard(features, ps_num, unique, version)
    sharded = shard_fids(batch, _configs_of(features), ps_num, unique, version)
    assert sharded.nfl_offset.tolist() == expected.nfl_offset
    assert sharded.feature_offset.tolist() == expected.feature_offset
    assert sharded.fid_offset.tolist() == expected.fid_offset
    for block, fids in expected.fid_lists.items():
        assert sharded.fids_of(*block).tolist() == fids
        assert sharded.row_splits_of(*block).tolist() == expected.row_splits[block]
    sizes = dict(zip(sharded.layout.block_names, sharded.emb_size.tolist(), strict=True))
    assert sizes == expected.emb_size
    assert sharded.rows.schema.names == ["other"]


def _scattered(sharded: ShardedFids, embed: np.ufunc) -> list[list[list[np.ndarray]]]:
    """What a trainer does: looks up each block, then takes embeddings by offset, [feature][row][fid]."""
    flat = []
    for block, (table, shard) in enumerate(sharded.layout.block_names):
        first, last = sharded.layout.cell_splits[block : block + 2]
        splits = sharded.row_splits_of(table, shard)
        fids = sharded.fids_of(table, shard)
        for cell in range(first, last):
            width = sharded.layout.dims[sharded.layout.cell_features[cell]]
            flat += [embed(fid, width) for fid in fids[splits[cell - first] : splits[cell - first + 1]]]
    buffer = np.concatenate([np.zeros(0), *flat])
    offsets = sharded.flat_offsets()
    found = []
    for f, width in enumerate(sharded.layout.dims):
        start, stop = (int(each) & ~(1 << 31) for each in sharded.nfl_offset[f : f + 2])
        bounds = sharded.feature_offset[start : stop + 1]
        entries = [
            [buffer[o : o + width] for o in offsets[first:last]]
            for first, last in zip(bounds[:-1], bounds[1:], strict=True)
        ]
        found.append(entries * sharded.batch_size if int(sharded.nfl_offset[f]) >> 31 else entries)
    return found


def _embedding(fid: int, width: int) -> np.ndarray:
    return fid % 1009 + np.arange(width) / 64


@settings(deadline=None)
@given(case=_cases(), ps_num=st.integers(1, 5), unique=st.booleans(), version=st.integers(3, 5))
def test_embeddings_find_back_to_their_rows(
    case: tuple[pa.RecordBatch, dict[str, reference.Feature]], ps_num: int, unique: bool, version: int
) -> None:
    batch, features = case
    sharded = shard_fids(batch, _configs_of(features), ps_num, unique, version)
    found = _scattered(sharded, _embedding)
    for name, rows in zip(sorted(features), found, strict=True):
        feature = features[name]
        expected = feature.rows if feature.rows is not None else [[]] * batch.num_rows
        assert [[each.tolist() for each in row] for row in rows] == [
            [_embedding(fid, feature.dims).tolist() for fid in row] for row in expected
        ]


@settings(deadline=None)
@given(st.lists(_FIDS, min_size=1, max_size=50), st.integers(1, 100))
def test_a_fid_goes_to_the_shard_that_feeds_and_tables_give_it(fids: list[int], ps_num: int) -> None:
    sharded = shard_fids(_batch({"a": [fids]}), _configs({"a": ("t", [1])}), ps_num, version=1)
    assert (sharded.fid_offset >> np.uint64(32)).tolist() == shard_of(np.array(fids), ps_num).tolist()


def test_many_fids_of_one_feature_are_told_apart() -> None:
    fids = (np.arange(20_000) * 7919 % 5003).tolist()
    sharded = shard_fids(_batch({"a": [fids]}), _configs({"a": ("t", [1])}), 3, unique=True)
    firsts = list(dict.fromkeys(fids))
    for shard in range(3):
        assert sharded.fids_of("t", shard).tolist() == [fid for fid in firsts if fid % 3 == shard]


def test_the_input_stays_as_it_is() -> None:
    batch = _vector_batch()
    shard_fids(batch, CONFIGS, 2)
    assert batch.equals(_vector_batch())


def test_a_column_of_anything_else_is_refused_by_name() -> None:
    batch = pa.record_batch({"a": pa.array([[1.0]])})
    with pytest.raises(ValueError, match="column a: holds list<.*double.*> and no fids"):
        shard_fids(batch, CONFIGS)
    field = record_batch.fid_field("a")
    with pytest.raises(ValueError, match="column a: a null among the values"):
        shard_fids(pa.RecordBatch.from_arrays([pa.array([[None]], field.type)], schema=pa.schema([field])), CONFIGS)
    twice = pa.RecordBatch.from_arrays([pa.array([[1]], field.type)] * 2, schema=pa.schema([field, field]))
    with pytest.raises(ValueError, match="column a: there are 2 of this name"):
        shard_fids(twice, CONFIGS)


def test_a_block_of_more_floats_than_an_offset_can_count_is_refused_by_name() -> None:
    batch = _batch({"a": [list(range(5000))]})
    with pytest.raises(ValueError, match="table t needs 5242880000 floats on shard 0"):
        shard_fids(batch, _configs({"a": ("t", [1 << 20])}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_pb.ShardFidsConfig(), "shard.feature_configs=: no feature is named"),
        (config_pb.ShardFidsConfig(feature_configs=CONFIGS, ps_num=-1), "shard.ps_num=-1: out of range"),
        (config_pb.ShardFidsConfig(feature_configs=CONFIGS, version=6), "shard.version=6: no such layout"),
        (config_pb.ShardFidsConfig(feature_configs=_configs({"a": ("", [1])})), "shard.feature_configs.a.table=: "),
        (
            config_pb.ShardFidsConfig(feature_configs=_configs({"a": ("t", [0])})),
            r"shard.feature_configs.a.slice_dims=\[0\]: no width",
        ),
        (
            config_pb.ShardFidsConfig(
                feature_configs=pb.FeatureConfigs(
                    feature_configs={"a": pb.FeatureConfig(table="t", slice_dims=[1], pooling_type=pb.FIRSTN)}
                )
            ),
            "shard.feature_configs.a.max_sequence_length=0: FIRSTN has a length",
        ),
    ],
)
def test_a_wrong_setting_is_named(config: config_pb.ShardFidsConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardFids(config, StepContext(id="shard"))


def test_the_step_makes_one_row_of_a_batch_and_none_of_an_empty_one() -> None:
    batch = with_provenance(_vector_batch())
    config = config_pb.ShardFidsConfig(feature_configs=CONFIGS, ps_num=2, unique=True)
    counts: Counter[str] = Counter()
    row = ShardFids(config).process(batch, counts)
    assert counts == {"fids_in": 7, "fids_out": 5}
    assert row.num_rows == 1
    assert row.column("rows.__SOURCE_OFFSET__").to_pylist() == [[0, 1]]
    assert row.column("sharded.emb_size").to_pylist() == [[7, 4, 2, 2]]
    nothing = ShardFids(config).process(batch.slice(2), counts)
    assert (nothing.num_rows, nothing.schema.names) == (0, row.schema.names)


def test_no_settings_mean_one_server_and_layout_5() -> None:
    layout = ShardLayout(CONFIGS, 0, 0)
    assert (layout.ps_num, layout.version) == (1, 5)
