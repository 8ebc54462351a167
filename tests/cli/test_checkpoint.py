"""`millrace checkpoint` on good and damaged table files."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cli import checkpoint
from ops.embedding_table import EmbeddingStore, Sgd, TableConfig, Zeros
from runtime.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = EmbeddingStore([TableConfig("items", 2, Sgd(1.0), Zeros()), TableConfig("users", 1)], os.urandom(4).hex())
    store.assign("items", [(3 << 48) | 9, 7], [[0.1, 2.0], [3.0, 4.0]], timestamp=1000)
    store.apply_gradients("users", np.arange(5), np.ones((5, 1)))
    store.save(tmp_path / "1200" / "tables")
    return tmp_path


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    checkpoint.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["checkpoint", *arguments])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


def test_inspect_finds_tables_at_any_depth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", str(folder), "--json") == 0
    items, users = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (items["table"], items["entries"], items["dim"], items["optimizer"]) == ("items", 2, 2, "sgd")
    assert (users["table"], users["entries"], users["state_floats"]) == ("users", 5, 1)
    assert _run("inspect", str(folder)) == 0
    assert "items: 2 entries, dim 2, sgd" in capsys.readouterr().out


def test_dump_prints_entries_by_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "1200" / "tables" / "items-00000-of-00001.table"
    assert _run("dump", str(path)) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {"table": "items", "fid": 7, "slot": 0, "timestamp": 1000, "values": [3.0, 4.0]}
    assert (second["fid"], second["slot"], second["values"]) == ((3 << 48) | 9, 3, [0.1, 2.0])
    assert _run("dump", str(folder), "--limit", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_verify_names_a_damaged_file_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("verify", str(folder)) == 0
    path = folder / "1200" / "tables" / "items-00000-of-00001.table"
    path.write_bytes(path.read_bytes()[:-2])
    assert _run("verify", str(folder)) == 1
    damaged, good = capsys.readouterr().out.splitlines()[-2:]
    assert damaged.startswith(f"DAMAGED  {path}, block ")
    assert good.startswith("ok ") and "users" in good


def test_a_path_without_tables_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table files"):
        _run("inspect", str(tmp_path))
