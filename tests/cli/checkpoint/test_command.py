"""`millrace checkpoint` on good and damaged table files."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import MessageToJson

from millrace.cli import main
from millrace.cli.checkpoint import command
from millrace.ops import table_files
from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.table_config import Adagrad, Ftrl, Segment, Sgd, TableConfig, Zeros
from millrace.protos.checkpoint_pb2 import CheckpointManifest
from millrace.runtime.checksum import crc32c_of_file
from millrace.runtime.errors import UserError

SLOT_3 = (3 << 48) | 9
TABLES = [
    TableConfig("items", segments=(Segment(2, Adagrad(0.1), Zeros()), Segment(1, Sgd(), Zeros()))),
    TableConfig("users", 1, Ftrl(), Zeros()),
]
ITEMS = "items.shard-00000-of-00001.part-00000-of-00001.table"


def _store() -> EmbeddingStore:
    return EmbeddingStore(TABLES, os.urandom(4).hex())


def test_verify_reads_what_the_manifest_of_a_checkpoint_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _store()
    store.assign("items", [7], [[3.0, 4.0, 5.0]], timestamp=1000)
    checkpoint = tmp_path / "7"
    store.save(checkpoint / "tables")
    (checkpoint / "dense").write_bytes(b"weights")
    files = [CheckpointManifest.File(path="dense", size_bytes=7, crc32c=crc32c_of_file(checkpoint / "dense"))]
    manifest = CheckpointManifest(format_version=1, model_name="m", files=files)
    (checkpoint / "manifest.json").write_text(MessageToJson(manifest, preserving_proto_field_name=True))
    assert _run("verify", tmp_path) == 0
    assert f"ok       {checkpoint}: every file is as its manifest says" in capsys.readouterr().out
    (checkpoint / "dense").write_bytes(b"Weights")
    assert _run("verify", checkpoint / "tables") == 1
    assert f"DAMAGED  {checkpoint / 'dense'} is corrupt" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of one checkpoint with tables `items`, two entries, and `users`, five of them."""
    store = _store()
    store.assign("items", [SLOT_3, 7], [[0.1, 2.0, -1.5], [3.0, 4.0, 5.0]], timestamp=1000)
    store.apply_gradients("users", np.arange(5), np.ones((5, 1)), timestamp=2000)
    store.save(tmp_path / "checkpoints" / "1200" / "tables")
    return tmp_path / "checkpoints"


def _run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["checkpoint", *map(str, arguments)])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


def _json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_inspect_finds_tables_at_any_depth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", folder, "--json", "--slots") == 0
    items, users = _json_lines(capsys)
    path = folder / "1200" / "tables" / ITEMS
    assert (items["table"], items["folder"]) == ("items", str(path.parent))
    assert (items["entries"], items["dim"], items["form"], items["newest_timestamp"]) == (2, 3, "training", 1000)
    assert items["segments"] == [
        {"dim": 2, "optimizer": "adagrad", "state_floats": 2, "compressor": "fp32"},
        {"dim": 1, "optimizer": "sgd", "state_floats": 0, "compressor": "fp32"},
    ]
    assert items["bytes"] == path.stat().st_size
    place = {"shard": 0, "part": 0, "num_parts": 1}
    assert items["files"] == [{"file": ITEMS, **place, "entries": 2, "bytes": path.stat().st_size}]
    assert items["slots"] == {"0": 1, "3": 1}
    assert (users["table"], users["entries"], users["slots"]) == ("users", 5, {"0": 5})


def test_inspect_tells_a_person_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", folder, "--slots") == 0
    text = capsys.readouterr().out
    assert "items: 2 entries, dim 3, training form, " in text
    assert "newest 1970-01-01 00:16:40 UTC" in text
    assert "  segment 0: dim 2, adagrad (+2 floats per entry), fp32\n" in text
    assert "  shard 0 of 1, part 0 of 1: 2 entries, " in text and ITEMS in text
    assert "  slot 3: 1 entries\n" in text


def test_inspect_adds_up_the_files_of_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("reshard", folder, "--num-shards", "2", "--output", tmp_path / "two") == 0
    capsys.readouterr()
    assert _run("inspect", tmp_path / "two", "--json") == 0
    _, users = _json_lines(capsys)
    assert (users["entries"], users["num_shards"]) == (5, 2)
    assert [(file["shard"], file["entries"]) for file in users["files"]] == [(0, 3), (1, 2)]


def test_verify_names_file_and_block_of_damage_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("verify", folder) == 0
    path = folder / "1200" / "tables" / ITEMS
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert _run("verify", folder) == 1
    damaged, good = capsys.readouterr().out.splitlines()
    assert damaged == f"DAMAGED  {path}, block 0: checksum does not match"
    assert good.startswith("ok ") and good.endswith(": 5 entries") and "users" in good
    assert _run("verify", folder, "--json") == 1
    damaged_facts, good_facts = _json_lines(capsys)
    assert (damaged_facts["file"], damaged_facts["ok"]) == (str(path), False)
    assert damaged_facts["problem"] == f"{path}, block 0: checksum does not match"
    assert (good_facts["ok"], good_facts["entries"]) == (True, 5)


def test_inspect_shows_the_good_tables_beside_a_damaged_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "1200" / "tables" / ITEMS
    path.write_bytes(path.read_bytes()[:-2])
    assert _run("inspect", folder) == 1
    text = capsys.readouterr().out
    assert "users: 5 entries" in text
    assert f"DAMAGED  {path}, end: the file ends inside it" in text


def test_reshard_works_from_all_files_and_restores_to_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("reshard", folder, "--num-shards", "3", "--output", tmp_path / "three", "--json") == 0
    (facts,) = _json_lines(capsys)
    assert facts["num_shards"] == 3
    assert facts["files"] == sorted(str(path) for path in (tmp_path / "three").iterdir())
    assert _run("reshard", tmp_path / "three", "--num-shards", "1", "--output", tmp_path / "one") == 0
    store = _store()
    store.restore(tmp_path / "one")
    np.testing.assert_array_equal(store.lookup("items", [SLOT_3]), np.array([[0.1, 2.0, -1.5]], np.float32))
    assert store.sizes() == {"items": 2, "users": 5}


def test_reshard_refuses_an_incomplete_set_and_a_folder_in_use(folder: Path, tmp_path: Path) -> None:
    assert _run("reshard", folder, "--num-shards", "3", "--output", tmp_path / "three") == 0
    with pytest.raises(UserError, match=r"--output=.*three: holds table files already; name another folder"):
        _run("reshard", folder, "--num-shards", "2", "--output", tmp_path / "three")
    next((tmp_path / "three").glob("users.shard-00002-*")).unlink()
    with pytest.raises(UserError, match=r"path=.*three: the files of table 'users' .*: shard 2 is missing; give"):
        _run("reshard", tmp_path / "three", "--num-shards", "1", "--output", tmp_path / "one")


def test_reshard_on_a_full_disk_asks_for_room_there_and_leaves_the_folder_usable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_files: object, output: Path, _num_shards: int) -> None:
        output.mkdir()
        (output / "half.table").write_bytes(b"half")
        raise table_files.TableFileError(f"cannot write {output}/users.table: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(table_files, "reshard", fill)
        with pytest.raises(UserError, match=r"--output=.*two: .*No space left on device; free space there, or name an"):
            _run("reshard", folder, "--num-shards", "2", "--output", tmp_path / "two")
    assert _run("reshard", folder, "--num-shards", "2", "--output", tmp_path / "two") == 0


def test_export_prints_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "1200" / "tables" / ITEMS
    assert _run("export", path) == 0
    entries = {line["fid"]: line for line in _json_lines(capsys)}
    assert entries[SLOT_3] == {
        "table": "items",
        "fid": SLOT_3,
        "slot": 3,
        "timestamp": 1000,
        "segment_0": [0.1, 2.0],
        "segment_1": [-1.5],
    }
    assert _run("export", path, "--with-state") == 0
    assert {line["fid"]: line["state_0"] for line in _json_lines(capsys)} == {SLOT_3: [0.1, 0.1], 7: [0.1, 0.1]}
    assert _run("export", folder, "--limit", "1") == 0
    assert [line["table"] for line in _json_lines(capsys)] == ["items", "users"]


def test_export_writes_parquet_with_a_list_a_segment(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("export", folder, "--format", "parquet", "--with-state", "--output", tmp_path / "out", "--json") == 0
    (facts,) = _json_lines(capsys)
    assert [(each["table"], each["entries"]) for each in facts["files"]] == [("items", 2), ("users", 5)]
    items = pq.read_table(facts["files"][0]["file"])
    assert items.schema == pa.schema(
        [
            ("fid", pa.int64()),
            ("slot", pa.int16()),
            ("timestamp", pa.int64()),
            ("segment_0", pa.list_(pa.float32(), 2)),
            ("segment_1", pa.list_(pa.float32(), 1)),
            ("state_0", pa.list_(pa.float32(), 2)),
        ]
    )
    rows = {row["fid"]: row for row in items.to_pylist()}
    assert rows[7] | {"state_0": None} == {
        "fid": 7,
        "slot": 0,
        "timestamp": 1000,
        "segment_0": [3.0, 4.0],
        "segment_1": [5.0],
        "state_0": None,
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["items.parquet", "users.parquet"]


def test_export_writes_csv_with_a_column_a_float(folder: Path, tmp_path: Path) -> None:
    assert _run("export", folder, "--format", "csv", "--output", tmp_path) == 0
    assert (tmp_path / "items.csv").read_text().splitlines()[0].replace('"', "") == (
        "fid,slot,timestamp,segment_0_0,segment_0_1,segment_1_0"
    )
    rows = {row["fid"]: row for row in pa_csv.read_csv(tmp_path / "items.csv").to_pylist()}
    assert np.float32(rows[SLOT_3]["segment_0_0"]) == np.float32(0.1)
    assert rows[7]["segment_1_0"] == 5.0


@pytest.mark.parametrize("file_format", ["json", "csv", "parquet"])
def test_export_of_many_pages_and_shards_holds_each_entry_once(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "_PAGE_FLOATS", 100)
    store = EmbeddingStore([TableConfig("wide", 64, Sgd(), Zeros())], os.urandom(4).hex())
    ids = np.arange(9_000)
    store.assign("wide", ids, np.repeat(ids[:, None], 64, axis=1))
    store.save(tmp_path / "1")
    assert _run("reshard", tmp_path / "1", "--num-shards", "2", "--output", tmp_path / "2") == 0
    assert _run("export", tmp_path / "2", "--format", file_format, "--output", tmp_path / "3") == 0
    path = tmp_path / "3" / f"wide.{file_format}"
    if file_format == "json":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        fids, last = [row["fid"] for row in rows], [row["segment_0"][63] for row in rows]
    elif file_format == "csv":
        table = pa_csv.read_csv(path)
        fids, last = table["fid"].to_pylist(), table["segment_0_63"].to_pylist()
    else:
        table = pq.read_table(path)
        fids, last = table["fid"].to_pylist(), [row[63] for row in table["segment_0"].to_pylist()]
        assert pq.ParquetFile(path).num_row_groups > 1
    assert sorted(fids) == ids.tolist()
    assert last == fids


def test_export_of_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    _store().save(tmp_path / "1")
    assert _run("export", tmp_path / "1", "--format", "parquet", "--output", tmp_path / "2") == 0
    table = pq.read_table(tmp_path / "2" / "items.parquet")
    assert (table.num_rows, table.column_names[-2:]) == (0, ["segment_0", "segment_1"])


def test_export_of_a_damaged_file_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    path = folder / "1200" / "tables" / ITEMS
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="block 0: checksum does not match; see `millrace checkpoint verify`"):
        _run("export", folder, "--format", "parquet", "--output", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_export_cannot_do_is_a_user_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--output=: not given, and parquet needs it; name a folder"):
        _run("export", folder, "--format", "parquet")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output=.*file: is no folder"):
        _run("export", folder, "--output", tmp_path / "file")
    _store().save(folder / "1300" / "tables")
    with pytest.raises(UserError, match=r"path=.*: holds 2 snapshots: .*1200/tables, .*1300/tables; name one of them"):
        _run("export", folder)


def test_a_path_without_tables_is_a_user_error(tmp_path: Path) -> None:
    for action in ("inspect", "verify", "export"):
        with pytest.raises(UserError, match="no table files"):
            _run(action, tmp_path)


@pytest.mark.parametrize("action", ["inspect", "verify", "reshard", "export"])
def test_help_of_an_action_ends_in_examples_of_it_that_parse(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main._parse(["checkpoint", action, "--help"])
    examples = capsys.readouterr().out.rpartition("Example:\n")[2].splitlines()
    assert examples
    for line in examples:
        assert main._parse(line.split()[1:]).action == action
