"""`make conformance` on a small tree: what counts, what does not, and that nothing is lost unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LONG_AGO = 1_000_000_000

PYTHON_TESTS = """
import pytest

@pytest.mark.covers("emb:O1", "emb:O2")
@pytest.mark.parametrize("number", [1, 2])
def test_two_vectors(number): pass

@pytest.mark.covers("emb:O2")
def test_one_of_them_again(): pass

@pytest.mark.covers("emb:O3", part="the first number")
def test_a_part(): pass
"""

CC_TESTS = """#include "tests/cc/covers.h"

COVERS("emb:H1")
TEST(Table, H1Adds) {}

COVERS("emb:H2")
TEST(Table, DISABLED_H2) {}
#if 0
COVERS("emb:H3")
TEST(Table, H3) {}
#endif
"""

# As a binary of GoogleTest lists its tests.
LISTING = """#!/bin/sh
cat > "${2#--gtest_output=json:}" <<END
{"testsuites": [{"name": "Table", "testsuite": [
  {"name": "H1Adds", "file": "/elsewhere/tests/cc/embedding/table_test.cc", "line": 4},
  {"name": "DISABLED_H2", "file": "/elsewhere/tests/cc/embedding/table_test.cc", "line": 7}]}]}
END
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout whose state is stored, with the specification beside it."""
    root = tmp_path / "checkout"
    for folder in ("tests/cc/embedding", "tests/conformance", "build/cmake"):
        (root / folder).mkdir(parents=True)
    (root / "tests/test_rules.py").write_text(PYTHON_TESTS)
    source = root / "tests/cc/embedding/table_test.cc"
    source.write_text(CC_TESTS)
    os.utime(source, (LONG_AGO, LONG_AGO))
    binary = root / "build/cmake/embedding_test"
    binary.write_text(LISTING)
    binary.chmod(0o755)
    (root / "tests/conformance/exempt.tsv").write_text("id\treason\nemb:H4\tNothing is merged.\n")
    vectors = tmp_path / "shared/spec/vectors.tsv"
    vectors.parent.mkdir(parents=True)
    vectors.write_text("".join(f"emb:{name}\ttext\n" for name in ("O1", "O2", "O3", "H1", "H2", "H3", "H4", "H5")))
    assert _run(root, "--update").returncode == 0
    return root


def _run(root: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(REPOSITORY / "build_tools/conformance.py"), "--root", str(root), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)


def _states(root: Path) -> dict[str, Any]:
    found = json.loads(_run(root, "--json").stdout)["ids"]
    return {vector: found[vector]["state"] for vector in found}


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_vector_is_whole_part_exempt_or_missing(tree: Path) -> None:
    assert _states(tree) == {
        "emb:O1": "whole",
        "emb:O2": "whole",
        "emb:O3": "part",
        "emb:H1": "whole",
        "emb:H2": "missing",
        "emb:H3": "missing",
        "emb:H4": "exempt",
        "emb:H5": "missing",
    }
    done = _run(tree)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[:2]] == [
        ["area", "whole", "part", "exempt", "missing"],
        ["emb", "3", "1", "1", "3"],
    ]
    assert "part: emb:O3: the first number" in done.stdout
    assert "exempt: emb:H4: Nothing is merged." in done.stdout
    assert "missing: emb: H2 H3 H5" in done.stdout
    assert done.stderr.count("is disabled or not compiled") == 2


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ('@pytest.mark.covers("emb:O1", "emb:O2")\n', "", "emb:O1: was whole by 1 tests, is missing by 0"),
        ('covers("emb:O1", "emb:O2")', 'covers("emb:O1", "emb:O2", part="a")', "emb:O1: was whole by 1 tests, is part"),
        ("def test_one_of_them_again", "def one_of_them_again", "emb:O2: was whole by 2 tests, is whole by 1"),
        ("def test_a_part", '@pytest.mark.skip("slow")\ndef test_a_part', "emb:O3: was part by 1 tests, is missing"),
        ("def test_a_part", "@pytest.mark.xfail\ndef test_a_part", "emb:O3: was part by 1 tests, is missing by 0"),
        ("def test_a_part", '@pytest.mark.skipif(True, reason="")\ndef test_a_part', "emb:O3: was part by 1 tests"),
        ("def test_a_part", '@pytest.mark.skipif("True")\ndef test_a_part', "emb:O3: was part by 1 tests"),
        ("def test_a_part", '@pytest.mark.skipif(condition=1, reason="")\ndef test_a_part', "emb:O3: was part by"),
    ],
)
def test_a_test_that_goes_or_no_longer_runs_is_a_loss(tree: Path, old: str, new: str, lost: str) -> None:
    _replace(tree / "tests/test_rules.py", old, new)
    done = _run(tree)
    assert done.returncode == 1
    assert f"lost: {lost}" in done.stderr


def test_a_cc_test_that_is_no_longer_compiled_is_a_loss(tree: Path) -> None:
    _replace(tree / "build/cmake/embedding_test", '"line": 4', '"line": 40')
    done = _run(tree)
    assert done.returncode == 1
    assert "lost: emb:H1: was whole by 1 tests, is missing by 0" in done.stderr


def test_an_id_in_a_comment_counts_for_nothing(tree: Path) -> None:
    _replace(tree / "tests/test_rules.py", "import pytest", "import pytest  # emb:H5 covers('emb:H5')")
    assert _states(tree)["emb:H5"] == "missing"


def test_the_stored_state_rises_by_itself_and_falls_only_when_told(tree: Path) -> None:
    state = tree / "tests/conformance/ids.tsv"
    _replace(tree / "tests/test_rules.py", ', part="the first number"', "")
    done = _run(tree)
    assert done.returncode == 0
    assert "run with UPDATE=1" in done.stderr
    assert _run(tree, "--update").returncode == 0
    assert "emb:O3\twhole\t1" in state.read_text()
    _replace(tree / "tests/test_rules.py", '@pytest.mark.covers("emb:O3")\n', "")
    assert _run(tree, "--update").returncode == 1
    assert "emb:O3\twhole\t1" in state.read_text()
    assert _run(tree, "--update", "--allow-loss").returncode == 0
    assert "emb:O3\tmissing\t0" in state.read_text()


@pytest.mark.parametrize(
    ("path", "old", "new", "problem"),
    [
        ("tests/test_rules.py", '"emb:O1"', '"emb:O9"', "the specification has no vector emb:O9"),
        ("tests/conformance/exempt.tsv", "emb:H4", "emb:H9", "the specification has no vector emb:H9"),
        ("tests/conformance/exempt.tsv", "emb:H4", "emb:O1", "emb:O1 is exempt and covered"),
        ("tests/conformance/exempt.tsv", "Nothing is merged.", " ", "wanted 2 cells"),
        ("tests/test_rules.py", "import pytest", "import nothing_of_this_name", "pytest cannot collect"),
        ("../shared/spec/vectors.tsv", "emb:H5", "emb:H6", "differ in emb:H5 emb:H6"),
    ],
)
def test_what_cannot_be_counted_is_an_error(tree: Path, path: str, old: str, new: str, problem: str) -> None:
    _replace(tree / path, old, new)
    done = _run(tree)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_cc_marker_without_a_test_below_it_is_an_error(tree: Path) -> None:
    source = tree / "tests/cc/embedding/table_test.cc"
    _replace(source, "TEST(Table, H1Adds) {}", "int h1_adds;")
    os.utime(source, (LONG_AGO, LONG_AGO))
    done = _run(tree)
    assert done.returncode == 2
    assert "table_test.cc:4: no test stands below COVERS(emb:H1)" in done.stderr


def test_cc_tests_are_never_counted_from_a_binary_that_is_absent_or_old(tree: Path) -> None:
    binary = tree / "build/cmake/embedding_test"
    os.utime(binary, (LONG_AGO - 1, LONG_AGO - 1))
    done = _run(tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is older than" in done.stderr
    binary.unlink()
    done = _run(tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not there" in done.stderr
    assert "install GoogleTest" in done.stderr


def test_a_clone_without_the_specification_beside_it_counts_the_stored_ids(tree: Path) -> None:
    (tree.parent / "shared/spec/vectors.tsv").unlink()
    assert _run(tree).returncode == 0
    assert len(_states(tree)) == 8
