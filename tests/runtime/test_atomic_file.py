"""Files that are whole or absent."""

import threading
from pathlib import Path

import pytest

from millrace.runtime import atomic_file


def test_a_reader_sees_the_old_or_the_new_content_only(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    contents = {size: str(size % 10) * size for size in (10, 100_000)}
    atomic_file.write_text(path, contents[10])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents.values():
                atomic_file.write_text(path, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {path.read_text() for _ in range(300)}
    finally:
        stop.set()
        writer.join(10.0)
    assert seen <= set(contents.values())
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    atomic_file.write_text(path, "old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_file.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_whole_tree_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    atomic_file.sync_tree(tmp_path)
