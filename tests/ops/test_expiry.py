"""Age of entries: what eviction removes and what a snapshot leaves out."""

import logging
import time
from pathlib import Path

import pytest
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from tests.conformance.covers import covers
from tests.fakes.stores import open_store

_DAY = 86400
_NOW = 10_000_000


def _store(expire_days: float, slots: dict[int, float] | None = None) -> EmbeddingStore:
    return open_store(TableConfig("t", 1, Sgd(1.0), Zeros(), expire_days=expire_days, slot_expire_days=slots or {}))


def _assign(store: EmbeddingStore, times: dict[int, int]) -> None:
    """Ids with the second of their last write; weight 1 for the first, 2 for the second, ..."""
    for i, (fid, timestamp) in enumerate(times.items()):
        store.assign("t", [fid], [[i + 1.0]], timestamp)


def _restored(store: EmbeddingStore, folder: Path) -> EmbeddingStore:
    store.save(folder)
    other = open_store(*store.tables)
    other.restore(folder)
    return other


def _column(store: EmbeddingStore, ids: list[int]) -> list[float]:
    return store.lookup("t", ids).numpy()[:, 0].tolist()


@covers("emb:H11")
def test_eviction_removes_what_is_as_old_as_its_slot_allows() -> None:
    store = _store(14, {0: 0, 1: 5, 2: 6})
    ids = [1 << 48, 2 << 48, 3 << 48]
    _assign(store, dict.fromkeys(ids, 1234))
    assert store.evict(1234 + 5 * _DAY + 60).numpy().tolist() == [1]
    assert store.contains("t", ids).numpy().tolist() == [False, True, True]
    assert store.steal_touched()["t"].tolist() == [1 << 48]


def test_eviction_is_exact_to_the_second_and_spares_what_is_newer_than_the_watermark() -> None:
    store = _store(1)
    _assign(store, {1: _NOW, 2: _NOW + 1, 3: _NOW + 10 * _DAY})
    assert store.evict(_NOW + _DAY).numpy().tolist() == [1]
    assert store.contains("t", [1, 2, 3]).numpy().tolist() == [False, True, True]


def test_the_memory_of_evicted_entries_is_used_again() -> None:
    store = _store(1)
    sizes = []
    for day in range(6):
        store.assign("t", range(day * 2000, day * 2000 + 2000), [[1.0]] * 2000, timestamp=(day + 1) * _DAY)
        store.evict((day + 1) * _DAY)
        store.steal_touched()
        sizes.append(store.stats("t").memory_bytes)
    assert store.size("t") == 2000
    assert sizes[-1] <= 2 * sizes[1]


@covers("emb:H12")
@pytest.mark.parametrize(("trains", "expected"), [(False, [0, 2, 3]), (True, [0, -2, -3])])
def test_a_snapshot_leaves_out_what_is_a_day_older_than_the_newest(
    tmp_path: Path, trains: bool, expected: list[float]
) -> None:
    store = _store(1)
    times = {1: _NOW - _DAY - 1, 2: _NOW - _DAY + 1, 3: _NOW}
    if trains:
        for fid, timestamp in times.items():
            store.apply_gradients("t", [fid], [[float(fid)]], timestamp=timestamp)
    else:
        _assign(store, times)
    assert _column(_restored(store, tmp_path), [1, 2, 3]) == expected
    assert store.size("t") == 3


@covers("emb:H13")
@pytest.mark.parametrize("timestamp", [0, 1, _NOW])
def test_what_expires_at_once_is_never_saved(tmp_path: Path, timestamp: int) -> None:
    store = _store(0)
    _assign(store, dict.fromkeys([1, 2, 3], timestamp))
    assert _restored(store, tmp_path).size("t") == 0


@covers("emb:H14")
@pytest.mark.parametrize("timestamp", [0, 100])
def test_entries_of_one_time_are_all_saved(tmp_path: Path, timestamp: int) -> None:
    store = _store(1)
    _assign(store, dict.fromkeys([1, 2, 3], timestamp))
    assert _column(_restored(store, tmp_path), [1, 2, 3]) == [1, 2, 3]


@covers("emb:H15")
def test_slots_expire_by_themselves_also_after_a_second_save(tmp_path: Path) -> None:
    store = _store(3600, {1: 0, 2: 1})
    ids = [1 << 48, 2 << 48]
    _assign(store, dict.fromkeys(ids, 100))
    for i in range(2):
        store = _restored(store, tmp_path / str(i))
        assert _column(store, ids) == [0, 2]


def test_restored_entries_keep_their_age_in_a_serving_table_too(tmp_path: Path) -> None:
    store = _store(1)
    _assign(store, {1: _NOW - _DAY + 1, 2: _NOW})
    store.save(tmp_path, with_state=False)
    serving = open_store(store.tables[0].for_serving())
    serving.restore(tmp_path)
    assert serving.evict(_NOW).numpy().tolist() == [0]
    assert serving.evict(_NOW + 1).numpy().tolist() == [1]
    assert serving.contains("t", [1, 2]).numpy().tolist() == [False, True]
    assert serving.stats("t").newest_timestamp == _NOW


def test_a_write_of_the_future_does_not_make_a_snapshot_leave_the_others_out(tmp_path: Path) -> None:
    store = _store(30)
    now = int(time.time())
    store.assign("t", range(100), [[1.0]] * 100, timestamp=now)
    store.assign("t", [100], [[1.0]], timestamp=now + 31 * _DAY)
    assert _restored(store, tmp_path).size("t") == 101


@pytest.mark.parametrize(("watermark", "ids"), [(_NOW, [1, 2, 3]), (_NOW + _DAY, [2, 3]), (_NOW + 5 * _DAY, [3])])
def test_what_a_snapshot_leaves_out_is_counted_back_from_the_watermark_of_the_cut(
    tmp_path: Path, watermark: int, ids: list[int]
) -> None:
    store = _store(1)
    _assign(store, {1: _NOW, 2: _NOW + 1, 3: _NOW + 10 * _DAY})
    store.cut(watermark).write(tmp_path / "cut")
    store.save(tmp_path / "saved", watermark=watermark)
    for folder in ("cut", "saved"):
        other = open_store(*store.tables)
        other.restore(tmp_path / folder)
        assert other.dump("t")[0].tolist() == ids
    with pytest.raises(tf.errors.InvalidArgumentError, match="watermark must be seconds, below"):
        store.cut(1 << 32)


def test_a_snapshot_logs_what_it_leaves_out_and_warns_where_it_is_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = _store(1)
    store.assign("t", range(99), [[1.0]] * 99, timestamp=_NOW)
    _assign(store, {99: _NOW - _DAY})
    store.save(tmp_path / "few", watermark=_NOW)
    store.save(tmp_path / "all", watermark=_NOW + 2 * _DAY)
    tf.train.Checkpoint(store=store).save(str(tmp_path / "checkpoint"))
    levels = [(record.levelname, record.getMessage()) for record in caplog.records if "left out" in record.getMessage()]
    assert [level for level, _ in levels] == ["INFO", "WARNING", "INFO"]
    assert "table t left out 1 of 100 entries" in levels[0][1]
    assert "table t left out 100 of 100 entries" in levels[1][1]
    assert "check the time stamps" in levels[1][1]


def test_now_is_the_time_of_this_machine() -> None:
    store = _store(1)
    before = int(time.time())
    store.assign("t", [1], [[1.0]])
    assert before <= store.stats("t").newest_timestamp <= time.time()
    store.assign("t", [2], [[1.0]], timestamp=before - _DAY)
    assert store.evict().numpy().tolist() == [1]
    assert store.contains("t", [1, 2]).numpy().tolist() == [True, False]
