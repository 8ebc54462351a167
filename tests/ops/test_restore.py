"""What a restore makes of the files: other tables, other numbers of shards, other segments."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import (
    Adagrad,
    Adam,
    Constant,
    Fp16,
    GroupAdagrad,
    PooledFeature,
    RandomUniform,
    Segment,
    Sgd,
    TableConfig,
    Zeros,
)
from tests.conformance.covers import covers
from tests.fakes.stores import open_store


def _table(name: str = "t") -> TableConfig:
    return TableConfig(name, 1, Sgd(1.0), Zeros())


def _filled(*names: str) -> EmbeddingStore:
    """Table i holds ids 1 and 2 with weights 10 i + 1 and 10 i + 2."""
    store = open_store(*map(_table, names))
    for i, name in enumerate(names):
        store.assign(name, [1, 2], [[10.0 * i + 1], [10.0 * i + 2]])
    return store


def _column(store: EmbeddingStore, table: str, ids: list[int]) -> list[float]:
    return store.lookup(table, ids).numpy()[:, 0].tolist()


@covers("emb:H16")
def test_what_came_after_a_save_is_gone_once_it_is_restored(tmp_path: Path) -> None:
    store = _filled("t")
    store.save(tmp_path)
    store.apply_gradients("t", [1, 3], [[5.0], [5.0]])
    store.restore(tmp_path)
    assert _column(store, "t", [1, 2, 3]) == [1, 2, 0]
    assert store.size("t") == 2
    assert store.steal_touched() == {}


@covers("emb:H17")
def test_a_folder_without_table_files_is_refused(tmp_path: Path) -> None:
    store = _filled("t")
    for folder in (tmp_path, tmp_path / "unknown"):
        with pytest.raises(FileNotFoundError, match="no table files"):
            store.restore(folder)
    assert store.size("t") == 2


@covers("emb:H18")
def test_a_table_takes_no_files_of_one_whose_name_begins_with_its_own(tmp_path: Path) -> None:
    names = "table1", "table10", "table1.shard-00000-of-00001"
    _filled(*names).save(tmp_path)
    restored = open_store(*map(_table, names))
    restored.restore(tmp_path)
    assert [_column(restored, name, [1, 2]) for name in names] == [[1, 2], [11, 12], [21, 22]]
    assert restored.sizes() == dict.fromkeys(names, 2)


@covers("emb:H21")
def test_a_serving_table_that_skips_zeros_stores_none() -> None:
    serving = TableConfig("t", 1, None, Zeros(), compressor=Fp16(), serving=True, skip_zero=True)
    store = open_store(serving)
    ids = np.arange(3000)
    store.assign("t", ids, np.ones((3000, 1)))
    store.assign("t", ids, (ids % 2)[:, None])
    np.testing.assert_array_equal(store.contains("t", ids), ids % 2 == 1)
    np.testing.assert_array_equal(store.lookup("t", ids)[:, 0], ids % 2)


@covers("emb:H21")
@pytest.mark.parametrize("with_state", [True, False])
def test_a_serving_table_that_skips_zeros_restores_none(tmp_path: Path, with_state: bool) -> None:
    training = open_store(_table())
    ids = np.arange(3000)
    training.assign("t", ids, (ids % 2)[:, None])
    training.save(tmp_path, with_state)
    store = open_store(TableConfig("t", 1, None, Zeros(), serving=True, skip_zero=True))
    store.restore(tmp_path)
    np.testing.assert_array_equal(store.contains("t", ids), ids % 2 == 1)


@covers("emb:H23")
def test_a_partial_restore_takes_the_tables_that_both_sides_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _filled("slot0", "slot1", "slot2").save(tmp_path)
    other = open_store(_table("slot0"), _table("slot2"), _table("slot3"))
    other.assign("slot3", [7], [[7.0]])
    other.restore(tmp_path, partial=True)
    assert _column(other, "slot0", [1, 2]) == [1, 2]
    assert _column(other, "slot2", [1, 2]) == [21, 22]
    assert other.size("slot3") == 0
    assert "table 'slot1' of the files is not one of the store's: passed over" in caplog.text
    assert "table 'slot3' has no file: it starts empty" in caplog.text


# A table that features share has a name of its own and files are found by it, so no list of members is hashed to one.
def test_a_table_that_features_share_keeps_its_entries_when_another_feature_joins(tmp_path: Path) -> None:
    store = _filled("shared")
    store.save(tmp_path)
    features = [PooledFeature(name, "shared") for name in ("slot0", "slot1", "slot2")]
    wider = open_store(_table("shared"))
    wider.restore(tmp_path)
    pooled = wider.pooled_lookup(features, [[1], [2], [1]], [[0, 1]] * 3)
    assert [tensor.numpy().tolist() for tensor in pooled] == [[[1.0]], [[2.0]], [[1.0]]]


def test_a_table_too_many_or_too_few_is_refused_unless_the_restore_is_partial(tmp_path: Path) -> None:
    _filled("a", "b").save(tmp_path)
    for names, problem in ((["a"], "has no table 'b'"), (["a", "b", "c"], "no file for table 'c' of store")):
        other = open_store(*map(_table, names))
        other.assign("a", [9], [[9.0]])
        with pytest.raises(tf.errors.InvalidArgumentError, match=problem):
            other.restore(tmp_path)
        assert other.dump("a")[0].tolist() == [9]


@covers("emb:H34")
@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_what_three_shards_saved_is_restored_on_any_number(tmp_path: Path, num_shards: int) -> None:
    tables = [
        TableConfig("wide", segments=(Segment(2, Adam(), RandomUniform()), Segment(1, Sgd()))),
        TableConfig("narrow", 1, Adagrad(), Zeros()),
    ]
    ids = np.array([*range(-40, 40), 1 << 48, -(1 << 63), (1 << 63) - 1])
    whole = open_store(*tables)
    parts = [open_store(*tables) for _ in range(3)]
    for table in tables:
        gradients = np.random.default_rng(table.dim).normal(size=(len(ids), table.dim))
        whole.apply_gradients(table.name, ids, gradients, timestamp=1000)
        for shard, part in enumerate(parts):
            own = ids % 3 == shard
            part.apply_gradients(table.name, ids[own], gradients[own], timestamp=1000)
    for shard, part in enumerate(parts):
        part.save(tmp_path, shard=shard, num_shards=3)
    for shard in range(num_shards):
        restored = open_store(*tables)
        restored.restore(tmp_path, shard, num_shards)
        own = ids[ids % num_shards == shard]
        for table in tables:
            assert restored.dump(table.name)[0].tolist() == sorted(own.tolist())
            entries, _ = restored.lookup_entries(table.name, own)
            expected, _ = whole.lookup_entries(table.name, own)
            np.testing.assert_array_equal(entries.values, expected.values)
            np.testing.assert_array_equal(entries.timestamps, expected.timestamps)


def test_files_of_a_missing_shard_are_no_whole_snapshot(tmp_path: Path) -> None:
    store = _filled("t")
    store.save(tmp_path, shard=0, num_shards=2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 't' are no whole snapshot: shard 1 is missing"):
        store.restore(tmp_path)
    store.save(tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no whole snapshot: some are of . shards, some of ."):
        store.restore(tmp_path)
    assert store.size("t") == 2
    for number in (2, 3):
        with pytest.raises(tf.errors.InvalidArgumentError, match="shard must be below num_shards"):
            store.restore(tmp_path, shard=number, num_shards=2)


def test_files_that_were_left_half_written_are_passed_over(tmp_path: Path) -> None:
    store = _filled("t")
    (path,) = store.save(tmp_path)
    Path(f"{path}.tmp-1234").write_bytes(Path(path).read_bytes()[:10])
    store.restore(tmp_path)
    assert store.size("t") == 2


_WIDE = TableConfig("t", segments=(Segment(1, Sgd()), Segment(2, Adagrad()), Segment(3, GroupAdagrad(), Constant(0.5))))


@covers("emb:H36")
@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ((Segment(1, Sgd()), Segment(3, Adagrad()), Segment(3, GroupAdagrad())), "segment 1 dim 2, expected 3"),
        ((Segment(1, Adam()), *_WIDE.segments[1:]), "segment 0 optimizer sgd, expected adam"),
        ((*_WIDE.segments[:2], Segment(3, Adagrad())), "segment 2 optimizer group_adagrad, expected adagrad"),
        (_WIDE.segments[:2], "segments 3, expected 2"),
        ((Segment(6, Adagrad()),), "segments 3, expected 1"),
    ],
)
def test_other_segments_are_refused_by_name_and_nothing_changes(
    tmp_path: Path, segments: tuple[Segment, ...], problem: str
) -> None:
    store = open_store(_table("a"), _WIDE)
    store.assign("a", [1], [[1.0]])
    store.assign("t", [1], np.ones((1, 6)))
    store.save(tmp_path)
    other = open_store(_table("a"), TableConfig("t", segments=segments))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"t.shard.*: table 't' has in {problem}|has {problem}"):
        other.restore(tmp_path)
    assert other.sizes() == {"a": 0, "t": 0}


def test_segments_can_be_moved_dropped_and_added(tmp_path: Path) -> None:
    store = open_store(_WIDE)
    store.apply_gradients("t", [1, 2], np.arange(12.0).reshape(2, 6), timestamp=1000)
    store.save(tmp_path)
    old = store.lookup_entries("t", [1, 2])[0].values  # weights 1 + 2 + 3, state 0 + 2 + 1
    segments = Segment(3, GroupAdagrad()), Segment(2, Adam(), Constant(0.25)), Segment(1, Sgd())
    other = open_store(TableConfig("t", segments=segments))
    other.restore(tmp_path, segments_from={"t": [2, None, 0]})
    entries, found = other.lookup_entries("t", [1, 2])
    assert found.all() and entries.timestamps.tolist() == [1000, 1000]
    np.testing.assert_array_equal(entries.values[:, :6], np.hstack([old[:, 3:6], [[0.25] * 2] * 2, old[:, :1]]))
    fresh = np.array([0, 0, 0, 0, 0.9, 0.99], np.float32)
    np.testing.assert_array_equal(entries.values[:, 6:], np.hstack([old[:, 8:9], [fresh] * 2]))


@pytest.mark.parametrize("sources", [[0, 1], [0, 1, 3], [1, 0, 2]])
def test_a_map_of_segments_that_does_not_fit_is_refused(tmp_path: Path, sources: list[int]) -> None:
    store = open_store(_WIDE)
    store.save(tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table 't' has"):
        store.restore(tmp_path, segments_from={"t": sources})


def test_an_export_does_not_restore_a_table_that_trains(tmp_path: Path) -> None:
    store = open_store(_WIDE)
    store.assign("t", [1], np.ones((1, 6)))
    store.save(tmp_path, with_state=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"optimizer none \(weights only\), expected sgd"):
        store.restore(tmp_path)
    fixed = open_store(TableConfig("t", segments=tuple(Segment(s.dim, None) for s in _WIDE.segments)))
    fixed.restore(tmp_path)
    assert fixed.lookup("t", [1]).numpy().tolist() == [[1] * 6]
