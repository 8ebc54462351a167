"""`millrace checkpoint import` and `export --format entry-dump`: Monolith's tables come in, and go out again."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from millrace.cli import main
from millrace.cli.checkpoint.export import ExportOptions, export_table, file_name
from millrace.examples.feed_ranking import FeedRanking
from millrace.ops.embedding_table import Cut, EmbeddingStore
from millrace.ops.table_files import read_header
from millrace.protos.embedding_table_pb2 import EntryDump
from millrace.training.state.checkpoint import newest_manifest

TASK = "millrace.examples.feed_ranking:FeedRanking"
AssertUserError = Callable[..., str]


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """Folder `items` with the EntryDump file of the task's table `item`: three entries after two updates."""
    store = EmbeddingStore(list(FeedRanking().tables()), os.urandom(4).hex())
    for timestamp in (1000, 2000):
        store.apply_gradients("item", (2 << 48) + np.array([5, 6, 7]), np.full((3, 8), 0.5), timestamp=timestamp)
    store.save(tmp_path / "tables")
    files = [header for path in (tmp_path / "tables").glob("item.*.table") if (header := read_header(path))]
    folder = tmp_path / "items"
    folder.mkdir()
    with open(folder / file_name("item", "entry-dump"), "wb") as output:
        assert export_table(files, output, ExportOptions("entry-dump"), lambda _: None) == 3
    return folder


def _tables_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    store = EmbeddingStore(list(FeedRanking().tables()), os.urandom(4).hex())
    store.restore(folder)
    entries = {name: next(iter(store.entries(name)), None) for name in ("item", "user")}
    return {name: (e.ids, e.values) for name, e in entries.items() if e is not None}


def test_an_imported_table_has_the_entries_with_their_optimizer_state(
    dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = tmp_path / "model"
    line = ["checkpoint", "import", "--task", TASK, "--model-dir", str(model_dir), "--table", f"item={dumps}", "--json"]
    assert main.main(line) == 0
    assert json.loads(capsys.readouterr().out) == {"model_dir": str(model_dir), "records": {"item": 3}}
    newest = newest_manifest(model_dir)
    assert newest is not None and newest[1].global_step == 0 and newest[1].model_name == "feed"
    imported, original = _tables_of(newest[0] / "tables"), _tables_of(tmp_path / "tables")
    assert list(imported) == ["item"]
    order, expected = np.argsort(imported["item"][0]), np.argsort(original["item"][0])
    assert imported["item"][0][order].tolist() == original["item"][0][expected].tolist()
    assert np.array_equal(imported["item"][1][order], original["item"][1][expected])


def test_a_folder_may_hold_the_files_of_several_tables(
    dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dumps / file_name("user", "entry-dump")).write_bytes(b"of another table")
    for number, path in enumerate((dumps, dumps / file_name("item", "entry-dump"))):
        line = ["checkpoint", "import", "--task", TASK, "--model-dir", str(tmp_path / f"model{number}")]
        assert main.main([*line, "--table", f"item={path}"]) == 0
        assert capsys.readouterr().out == "item: 3 entries\n"


def test_a_folder_with_checkpoints_is_not_overwritten(
    dumps: Path, tmp_path: Path, assert_user_error: AssertUserError
) -> None:
    (tmp_path / "model" / "checkpoints" / "7").mkdir(parents=True)
    line = ("checkpoint", "import", "--task", TASK, "--model-dir", str(tmp_path / "model"), "--table", f"item={dumps}")
    assert_user_error(*line, mentions=["--model-dir", "checkpoints already"])


@pytest.mark.parametrize(
    ("table", "mentions"),
    [
        ("item", ["NAME=PATH"]),
        ("nothing={dumps}", ["nothing", "no such table", "user_bias"]),
        ("item=/nonexistent", ["no such file or folder"]),
        ("user={dumps}", ["user", "slots [2], the features of the table have [1]"]),
        ("user_bias={dumps}", ["user_bias", "weights, expected 1"]),
        ("item={empty}", ["no file is named"]),
    ],
)
def test_a_wrong_table_is_one_line(
    table: str, mentions: list[str], dumps: Path, tmp_path: Path, assert_user_error: AssertUserError
) -> None:
    (tmp_path / "empty").mkdir()
    given = table.format(dumps=dumps, empty=tmp_path / "empty")
    line = ("checkpoint", "import", "--task", TASK, "--model-dir", str(tmp_path / "model"), "--table", given)
    assert_user_error(*line, mentions=mentions)


def test_a_time_stamp_out_of_range_is_one_line(dumps: Path, tmp_path: Path, assert_user_error: AssertUserError) -> None:
    path = dumps / file_name("item", "entry-dump")
    (entry,) = next(iter(tf.data.TFRecordDataset(str(path)).batch(1))).numpy()
    dump = EntryDump.FromString(entry)
    dump.last_update_ts_sec = -5
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(dump.SerializeToString())
    line = ("checkpoint", "import", "--task", TASK, "--model-dir", str(tmp_path / "model"), "--table", f"item={dumps}")
    error = assert_user_error(*line, mentions=["--table", "timestamps must be seconds"])
    assert "function_node" not in error and not (tmp_path / "model").exists()


def test_a_disk_that_is_full_is_one_line_and_the_command_can_be_repeated(
    dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["checkpoint", "import", "--task", TASK, "--model-dir", str(tmp_path / "m"), "--table", f"item={dumps}"]

    def fail(*_: object) -> None:
        raise tf.errors.InternalError(None, None, "{{function_node x}} cannot write y: No space left on device [Op:X]")

    with monkeypatch.context() as patch:
        patch.setattr(Cut, "write", fail)
        assert main.main(line) == 2
    assert "--model-dir" in (error := capsys.readouterr().err) and "y: No space left on device; free" in error
    assert main.main(line) == 0
