"""Table files without a store: headers, damage, pages, other numbers of shards."""

import os
from pathlib import Path

import numpy as np
import pytest

from millrace.ops import table_files
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, Bf16, CountingFilter, Occurrence, Segment, Sgd, TableConfig, Zeros
from millrace.ops.table_files import FileSegment, TableFileError

ITEMS = TableConfig(
    "items", segments=(Segment(2, Adagrad(0.1), Zeros()), Segment(1, Sgd(), Zeros(), compressor=Bf16()))
)
USERS = TableConfig("users", 1, Sgd(), Zeros(), occurrence=Occurrence(CountingFilter(100), 0))
IDS = np.array([-3, -1, 0, 1, 2, 7, 1 << 48, (3 << 48) | 9])


@pytest.fixture
def store() -> EmbeddingStore:
    store = _fresh()
    store.assign("items", IDS, np.arange(24.0).reshape(8, 3), timestamp=1000)
    store.assign("users", [5], [[0.5]], timestamp=2000)
    return store


def _fresh() -> EmbeddingStore:
    return EmbeddingStore([ITEMS, USERS], f"table-files-{os.urandom(4).hex()}")


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.table"))


def test_a_header_says_what_a_file_holds(store: EmbeddingStore, tmp_path: Path) -> None:
    store.save(tmp_path, shard=1, num_shards=3)
    path = _tables(tmp_path)[0]
    file = table_files.read_header(path)
    assert (file.path, file.table, file.form, file.newest_timestamp) == (path, "items", "training", 1000)
    assert (file.shard, file.num_shards, file.part, file.num_parts) == (1, 3, 0, 1)
    assert file.segments == (FileSegment(2, "adagrad", 2, "fp32"), FileSegment(1, "sgd", 0, "bf16"))
    assert (file.dim, file.state_floats) == (3, 2)
    assert table_files.verify_file(path) == (file, 8)


def test_pages_hold_every_entry_with_its_state(store: EmbeddingStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    pages = list(table_files.pages(_tables(tmp_path)[0]))
    ids = np.concatenate([page.ids for page in pages])
    assert sorted(ids) == sorted(IDS)
    expected, found = store.lookup_entries("items", ids)
    assert found.all()
    np.testing.assert_array_equal(np.concatenate([page.values for page in pages]), expected.values)
    np.testing.assert_array_equal(np.concatenate([page.timestamps for page in pages]), expected.timestamps)


def test_pages_of_a_file_without_entries_are_none(tmp_path: Path) -> None:
    _fresh().save(tmp_path)
    assert list(table_files.pages(_tables(tmp_path)[0])) == []


def test_pages_of_serving_form_are_decompressed(store: EmbeddingStore, tmp_path: Path) -> None:
    store.assign("items", [7], [[0.1, 0.2, 1.001]])
    store.save(tmp_path, with_state=False)
    (page,) = table_files.pages(_tables(tmp_path)[0])
    assert page.values.shape == (8, 3)
    np.testing.assert_array_equal(page.values[page.ids == 7], np.array([[0.1, 0.2, 1.0]], np.float32))


@pytest.mark.parametrize("page_floats", [1, 40_000, 1 << 22])
def test_a_large_file_comes_in_pages_without_gap_or_repeat(
    page_floats: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "_PAGE_FLOATS", page_floats)
    wide = EmbeddingStore([TableConfig("wide", 64, Sgd(), Zeros())], f"table-files-{os.urandom(4).hex()}")
    ids = np.arange(10_000)
    wide.assign("wide", ids, np.repeat(ids[:, None], 64, axis=1))
    (path,) = map(Path, wide.save(tmp_path))
    pages = list(table_files.pages(path))
    assert len(pages) > 1 or page_floats > 10_000 * 64
    np.testing.assert_array_equal(np.sort(np.concatenate([page.ids for page in pages])), ids)
    for page in pages:
        np.testing.assert_array_equal(page.values, np.repeat(page.ids[:, None], 64, axis=1))
    ends = [page.end for page in pages]
    assert ends == sorted(ends) and ends[-1] <= path.stat().st_size


def test_damage_is_an_error_in_the_words_of_the_library(store: EmbeddingStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    path = _tables(tmp_path)[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(TableFileError, match=f"^{path}, end: the file ends inside it$"):
        table_files.verify_file(path)
    with pytest.raises(TableFileError, match="end: the file ends inside it"):
        list(table_files.pages(path))
    path.write_bytes(good[:20])
    with pytest.raises(TableFileError, match=f"^{path}, header: the file ends inside it$"):
        table_files.read_header(path)
    with pytest.raises(TableFileError, match="^cannot open .*: No such file or directory$"):
        table_files.read_header(tmp_path / "nothing.table")


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_resharding_puts_every_id_where_its_remainder_says(
    num_shards: int, store: EmbeddingStore, tmp_path: Path
) -> None:
    store.save(tmp_path / "1")
    written = table_files.reshard(_tables(tmp_path / "1"), tmp_path / "2", num_shards)
    assert written == _tables(tmp_path / "2")
    seen = []
    for path in written:
        file, entries = table_files.verify_file(path)
        ids = [page.ids for page in table_files.pages(path)]
        assert file.num_shards == num_shards
        assert sum(map(len, ids)) == entries
        for of_page in ids:
            assert (of_page % num_shards == file.shard).all()
            seen += of_page.tolist() if file.table == "items" else []
    assert sorted(seen) == sorted(IDS)
    other = _fresh()
    other.restore(tmp_path / "2")
    expected, actual = (each.lookup_entries("items", IDS)[0] for each in (store, other))
    np.testing.assert_array_equal(actual.values, expected.values)
    np.testing.assert_array_equal(actual.timestamps, expected.timestamps)


def test_resharding_refuses_a_set_with_a_file_missing_or_twice(store: EmbeddingStore, tmp_path: Path) -> None:
    store.save(tmp_path / "1")
    written = table_files.reshard(_tables(tmp_path / "1"), tmp_path / "2", 3)
    with pytest.raises(TableFileError, match="^the files of table 'items' are no whole snapshot: shard 1 is missing$"):
        table_files.reshard([path for path in written if path.name[:21] != "items.shard-00001-of-"], tmp_path / "3", 2)
    with pytest.raises(TableFileError, match="'items' are no whole snapshot: part 0 of shard 0 is there twice"):
        table_files.reshard([*written, written[0]], tmp_path / "3", 2)
    assert _tables(tmp_path / "3") == []


def test_resharding_refuses_files_of_different_segments(tmp_path: Path) -> None:
    for shard, dim in ((0, 1), (1, 2)):
        store = EmbeddingStore([TableConfig("t", dim, Sgd(), Zeros())], f"table-files-{os.urandom(4).hex()}")
        store.assign("t", [shard], np.ones((1, dim)))
        store.save(tmp_path / "1", shard=shard, num_shards=2)
    with pytest.raises(TableFileError, match="'t' are no whole snapshot: they differ in form or segments"):
        table_files.reshard(_tables(tmp_path / "1"), tmp_path / "2", 1)


def test_resharding_keeps_the_newest_time_stamp_of_all_files(tmp_path: Path) -> None:
    for shard, timestamp in ((0, 1000), (1, 3000)):
        store = EmbeddingStore([TableConfig("t", 1, Sgd(), Zeros())], f"table-files-{os.urandom(4).hex()}")
        store.assign("t", [shard], [[1.0]], timestamp=timestamp)
        store.save(tmp_path / "1", shard=shard, num_shards=2)
    (path,) = table_files.reshard(_tables(tmp_path / "1"), tmp_path / "2", 1)
    assert table_files.read_header(path).newest_timestamp == 3000
