"""One noun per thing: replaced words do not come back, and no two things of the product share a public name."""

import ast
import collections
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.source_trees import ROOT, sources

_MOST_WORDS = 30  # a glossary that one reads in two minutes

# Pattern -> what is said instead. Patterns are looked for in every text file of the repository but this one.
_REPLACED = {
    r"\b[Ff]ake[ _-]?[Nn]egative": "early negative",
    r"\bpaced_by\b|\bin_process\b": "feed_id",
    r"\b[Tt]ide\b": "daily window",
    r"\bKafkaFeeder\b|\bFeedQueue\b": "TrainTopicReader, BatchQueue",
    r"\bsave_robustly\b|\bSaveListener\b": "Saver, SaveGuard",
    r"\bFEW\b": "MAX_SCANS",
    r"\b[Aa]nother door\b": "a second output",
    r"state machine a shard": "one state machine per feed shard",
    r"\bby the side\b": "to a topic (or an output) of their own",
    r"live and die together": "live and end together",
    r"\bkeeps the books\b|\btells the world\b|\bride along\b|\bdied of\b": "what happens, in plain words",
    r"\bfirst steps small\b": "limits the first updates",
}

_ALLOWED = {"CONTRIBUTING.md", "tests/test_words.py"}  # they quote what is not to be written
_PER = re.compile(
    r"\b(?:line|rows?|records?|events|requests|bytes?|floats|entry|entries|feature|element|object|message|list|times|ns|ms)"
    r" an? (?:second|record|row|entry|key|call|head|feature|message|shard|table|id|batch|column|dim|step|day)\b"
)
_TEXT = (".py", ".md", ".cc", ".h", ".proto", ".yaml", ".toml", ".txt")

# Beam's PTransforms bear the names of their steps: YAML and IDEs need both. The functions of the C++ library of records
# are named like what is made of them.
_SAME_NAME_ON_PURPOSE = ("transforms/beam/ptransforms.py", "ops/record_library.py")
# Every command has these two.
_OF_EVERY_COMMAND = {"add_parser", "add_flags", "run", "main"}


def _lines() -> Iterator[tuple[str, int, str]]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in _TEXT and name not in _ALLOWED and path.is_file() and not path.is_symlink():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield name, number, line


@pytest.fixture(scope="module")
def lines() -> list[tuple[str, int, str]]:
    return list(_lines())


@pytest.mark.parametrize("pattern", _REPLACED)
def test_a_replaced_word_does_not_come_back(pattern: str, lines: list[tuple[str, int, str]]) -> None:
    found = [f"{name}:{number}: say {_REPLACED[pattern]!r}" for name, number, line in lines if re.search(pattern, line)]
    assert found == []


def test_rates_are_said_with_per(lines: list[tuple[str, int, str]]) -> None:
    found = [f"{name}:{number}: {match[0]}" for name, number, line in lines if (match := _PER.search(line))]
    assert found == []


def test_the_glossary_has_few_words_each_once() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("\n## Words\n")[1].split("\n## ")[0]
    words = [word for row in re.findall(r"^\| ([^|]+) \|", section, re.M)[1:] for word in row.split(", ")]
    words = [word for word in words if not word.startswith("---")]
    assert len(words) == len(set(words)) <= _MOST_WORDS


def test_no_two_things_share_a_public_name() -> None:
    places: dict[str, list[str]] = collections.defaultdict(list)
    for path, tree in sources().items():
        if str(path) not in _SAME_NAME_ON_PURPOSE:
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path))
    shared = {name: found for name, found in places.items() if len(found) > 1 and name not in _OF_EVERY_COMMAND}
    assert shared == {}
