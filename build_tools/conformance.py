"""Counts the specification's vectors that tests assert, and fails when one is lost.

A vector is `whole` when a test marked `covers(id)` (Python) or `COVERS(id)` (GoogleTest) exists and runs, `part` when
all its tests say `part=`, `exempt` when tests/conformance/exempt.tsv gives a reason, and `missing` otherwise.
tests/conformance/ids.tsv has the last accepted state of every id; exit code 1 means that an id fell below it.
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_STATES = ("whole", "part", "exempt", "missing")  # the best first
_CC_BINARIES = {"embedding": "embedding_test", "records": "records_test"}  # folder of tests/cc -> its binary
_REMEDY = "install GoogleTest (build_tools/install_extras), then run `make conformance`, which builds them"


class ConformanceError(Exception):
    """What was found cannot be counted; the text says what to do."""


@dataclass(frozen=True)
class Marker:
    """One test's claim to assert a vector: all of it, or the `part` that it names."""

    vector: str
    test: str  # path::name, without parameters
    part: str = ""


@dataclass(frozen=True)
class Standing:
    """The state of a vector and how many tests assert it: deleting one of two tests is a loss as well."""

    state: str
    tests: int = 0

    def below(self, other: "Standing") -> bool:
        mine, others = _STATES.index(self.state), _STATES.index(other.state)
        return mine > others or (mine == others and self.tests < other.tests)


class _Collected:
    """A plugin of pytest that keeps the markers of the collected tests."""

    def __init__(self, root: Path) -> None:
        self.root, self.markers, self.notes = root, set[Marker](), set[str]()

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "covers: see tests/conformance/covers.py")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            test = item.nodeid.split("[")[0]
            for mark in item.iter_markers("covers"):
                if _never_passes(item):
                    self.notes.add(f"{test} is skipped or expected to fail: it does not count")
                    continue
                self.markers.update(Marker(vector, test, mark.kwargs.get("part", "")) for vector in mark.args)


def _never_passes(item: pytest.Item) -> bool:
    """A condition that is a text counts as met: pytest evaluates it when the test runs, which is too late here."""
    skips = [condition for mark in item.iter_markers("skipif") for condition in (*mark.args, *_keyword(mark))]
    return any(item.iter_markers("skip")) or any(item.iter_markers("xfail")) or any(map(bool, skips))


def _keyword(mark: pytest.Mark) -> list[Any]:
    return [mark.kwargs["condition"]] if "condition" in mark.kwargs else []


def python_markers(root: Path) -> tuple[set[Marker], set[str]]:
    """(markers, notes) of the tests that pytest collects below root/tests."""
    files = [str(path) for path in sorted((root / "tests").rglob("test_*.py")) if "covers(" in path.read_text("utf-8")]
    if not files:
        return set(), set()
    collected = _Collected(root)
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", f"--rootdir={root}"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = pytest.main([*options, *files], plugins=[collected])
    if code != pytest.ExitCode.OK:
        raise ConformanceError(f"pytest cannot collect the tests:\n{output.getvalue()}")
    return collected.markers, collected.notes


def cc_markers(root: Path) -> tuple[set[Marker], set[str]]:
    """(markers, notes) of the C++ tests that the built binaries list."""
    markers, notes = set[Marker](), set[str]()
    for folder, name in _CC_BINARIES.items():
        sources = sorted((root / "tests/cc" / folder).rglob("*_test.cc"))
        marked = [path for path in sources if re.search(r"^COVERS\(", path.read_text("utf-8"), re.MULTILINE)]
        if not marked:
            continue
        binary = root / "build/cmake" / name
        if not binary.exists():
            raise ConformanceError(f"{binary} is not there, so no C++ test can be counted: {_REMEDY}")
        stale = [path for path in marked if path.stat().st_mtime > binary.stat().st_mtime]
        if stale:
            raise ConformanceError(f"{binary} is older than {stale[0]}: run `make conformance`, which builds it anew")
        listed = _listed_tests(binary)
        for path in marked:
            _read_cc(path, path.relative_to(root).as_posix(), listed, markers, notes)
    return markers, notes


def _listed_tests(binary: Path) -> dict[tuple[str, int], str]:
    """(path from the root, line) -> name of each test that is compiled into `binary` and not disabled."""
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "tests.json"
        command = [str(binary), "--gtest_list_tests", f"--gtest_output=json:{listing}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        suites = json.loads(listing.read_text("utf-8"))["testsuites"]
    found = {}
    for suite in suites:
        for test in suite["testsuite"]:
            name = f"{suite['name']}.{test['name']}"
            if "DISABLED_" not in name:
                path = test["file"].replace("\\", "/")
                found[path[path.rindex("tests/cc/") :], test["line"]] = name
    return found


def _read_cc(
    path: Path, relative: str, listed: dict[tuple[str, int], str], markers: set[Marker], notes: set[str]
) -> None:
    """Adds the markers of one source file whose test is among `listed`."""
    pending: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        marker = re.fullmatch(r"COVERS\((.*)\)", line)
        if marker:
            pending += re.findall(r'"([^"]*)"', marker[1])
        elif pending:
            if not re.match(r"TEST(_F|_P)?\(", line):
                raise ConformanceError(f"{relative}:{number}: no test stands below COVERS({', '.join(pending)})")
            name = listed.get((relative, number))
            if name is None:
                notes.add(f"{relative}:{number} is disabled or not compiled: it does not count")
            else:
                markers.update(Marker(vector, f"{relative}::{name}") for vector in pending)
            pending = []
    if pending:
        raise ConformanceError(f"{relative}: no test stands below COVERS({', '.join(pending)})")


def read_table(path: Path, columns: int) -> Iterator[list[str]]:
    """The rows of a tab-separated file, without its header; a missing file has none."""
    lines = path.read_text("utf-8").splitlines()[1:] if path.exists() else []
    for number, line in enumerate(lines, 2):
        row = line.split("\t")
        if len(row) != columns or not all(cell.strip() for cell in row):
            raise ConformanceError(f"{path}:{number}: wanted {columns} cells, separated by tabs, none of them empty")
        yield row


def standings(ids: Iterable[str], markers: set[Marker], exempt: dict[str, str]) -> dict[str, Standing]:
    """The standing of each of `ids`. Raises for a marker or an exemption of an id that is not among them."""
    by_vector: dict[str, set[Marker]] = defaultdict(set)
    for marker in markers:
        by_vector[marker.vector].add(marker)
    ids = list(ids)
    known = set(ids)
    for vector in sorted({*by_vector, *exempt} - known):
        where = sorted(marker.test for marker in by_vector[vector]) or ["exempt.tsv"]
        raise ConformanceError(f"{where[0]}: the specification has no vector {vector}")
    for vector in sorted(exempt.keys() & by_vector.keys()):
        raise ConformanceError(f"{vector} is exempt and covered: delete its line in exempt.tsv or its markers")
    found = {}
    for vector in ids:
        whole = [marker for marker in by_vector[vector] if not marker.part]
        counted = whole or by_vector[vector]
        state = "whole" if whole else "part" if counted else "exempt" if vector in exempt else "missing"
        found[vector] = Standing(state, len(counted))
    return found


def report(now: dict[str, Standing], markers: set[Marker], exempt: dict[str, str]) -> str:
    """One line per area with its four counts, then the ids that are not whole."""
    areas: dict[str, list[str]] = defaultdict(list)
    for vector in now:
        areas[vector.split(":")[0]].append(vector)
    lines = [f"{'area':<8}" + "".join(f"{state:>9}" for state in _STATES)]
    for area, vectors in {**areas, "all": list(now)}.items():
        counts = [sum(now[vector].state == state for vector in vectors) for state in _STATES]
        lines.append(f"{area:<8}" + "".join(f"{count:>9}" for count in counts))
    parts = {marker.vector: marker.part for marker in sorted(markers, key=lambda m: m.test) if marker.part}
    lines += [f"part: {vector}: {parts[vector]}" for vector in now if now[vector].state == "part"]
    lines += [f"exempt: {vector}: {exempt[vector]}" for vector in now if now[vector].state == "exempt"]
    for area, vectors in areas.items():
        missing = [vector.split(":")[1] for vector in vectors if now[vector].state == "missing"]
        if missing:
            lines.append(f"missing: {area}: {' '.join(missing)}")
    return "\n".join(lines)


def as_json(now: dict[str, Standing], markers: set[Marker], lost: list[str]) -> dict[str, Any]:
    tests: dict[str, list[dict[str, str]]] = {vector: [] for vector in now}
    for marker in sorted(markers, key=lambda m: m.test):
        tests[marker.vector].append({"test": marker.test} | ({"part": marker.part} if marker.part else {}))
    ids = {vector: {"state": standing.state, "tests": tests[vector]} for vector, standing in now.items()}
    return {"ids": ids, "lost": lost}


def _ids(before: dict[str, Standing], vectors: Path, update: bool) -> list[str]:
    """The ids to count: those of the specification where it lies beside the checkout, else those of ids.tsv."""
    if not vectors.exists():
        return list(before)
    ids = [line.split("\t", 1)[0] for line in vectors.read_text("utf-8").splitlines() if line]
    if set(ids) != set(before) and not update:
        differing = " ".join(sorted(set(ids) ^ set(before)))
        raise ConformanceError(f"{vectors} and tests/conformance/ids.tsv differ in {differing}: run with UPDATE=1")
    return ids


def _losses(before: dict[str, Standing], now: dict[str, Standing]) -> list[str]:
    missing = Standing("missing")
    fallen = [vector for vector in before if now.get(vector, missing).below(before[vector])]
    return [
        f"{vector}: was {before[vector].state} by {before[vector].tests} tests, "
        f"is {now.get(vector, missing).state} by {now.get(vector, missing).tests}"
        for vector in fallen
    ]


def _run(arguments: argparse.Namespace) -> int:
    root: Path = arguments.root.resolve()
    folder = root / "tests/conformance"
    before = {row[0]: Standing(row[1], int(row[2])) for row in read_table(folder / "ids.tsv", 3)}
    exempt = {row[0]: row[1] for row in read_table(folder / "exempt.tsv", 2)}
    vectors = arguments.vectors or root.parent / "shared/spec/vectors.tsv"
    ids = _ids(before, vectors, arguments.update)
    in_cc, cc_notes = cc_markers(root)
    in_python, python_notes = python_markers(root)
    markers = in_cc | in_python
    now = standings(ids, markers, exempt)
    lost = _losses(before, now)
    if arguments.json:
        print(json.dumps(as_json(now, markers, lost), indent=1))
    else:
        print(report(now, markers, exempt))
    for note in sorted(cc_notes | python_notes):
        print(f"conformance: {note}", file=sys.stderr)
    for loss in lost:
        print(f"conformance: lost: {loss}", file=sys.stderr)
    if lost and not arguments.allow_loss:
        return 1
    if arguments.update:
        rows = ["id\tstate\ttests", *(f"{vector}\t{now[vector].state}\t{now[vector].tests}" for vector in now)]
        (folder / "ids.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    elif lost or now != before:
        print("conformance: the state in tests/conformance/ids.tsv is older: run with UPDATE=1", file=sys.stderr)
    return 1 if lost and not arguments.update else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print each id with its state and its tests")
    parser.add_argument("--update", action="store_true", help="write tests/conformance/ids.tsv anew")
    parser.add_argument("--allow-loss", action="store_true", help="with --update: accept what was lost")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the checkout (default: this one)")
    parser.add_argument("--vectors", type=Path, help="default: ../shared/spec/vectors.tsv beside the checkout")
    try:
        return _run(parser.parse_args())
    except ConformanceError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
