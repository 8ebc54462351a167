"""Nothing is built for tests alone: every public definition of the product is used by the product.

What is kept for later work stands in `tests/handed_on.tsv`: each line is a file, with `:Name` where it is part of one,
and the reason.
"""

import ast
import collections
import functools
import importlib
import re
from pathlib import Path

from tests.source_trees import ROOT, sources

_HANDED_ON = ROOT / "tests" / "handed_on.tsv"
# Names that a file other than Python uses: Beam YAML, and the entry point of the command.
_OTHER_USERS = ("pipelines/beam_yaml.yaml", "pyproject.toml")
# The page of pipelines that users write: the names in its blocks of code are used.
# tests/pipelines/test_beam_doc.py runs them.
_PAGE_OF_PIPELINES = "docs/beam.md"
# What a user names on the command line (`--task package.module:Class`), or calls from his own code.
_USERS_OWN = ("examples/", "training/task/__init__.py")
# What a user writes into the declaration of a table.
_DECLARED_BY_USERS = {"ops/initializer.py:batch_softmax_initializer"}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _handed_on() -> dict[str, str]:
    lines = [line for line in _HANDED_ON.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("\t") for line in lines)


def _uses(tree: ast.AST) -> collections.Counter[str]:
    """How often each name is read, as a name, an attribute, a keyword or a string; lists of exports do not count."""
    counts: collections.Counter[str] = collections.Counter()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            counts[node.id] += 1
        elif isinstance(node, ast.Attribute):
            counts[node.attr] += 1
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            counts[node.value] += 1
        elif isinstance(node, ast.keyword) and node.arg:
            counts[node.arg] += 1
        todo += ast.iter_child_nodes(node)
    return counts


def _public_definitions() -> list[tuple[Path, str, _Definition]]:
    """(file, qualified name, node) of functions, classes and methods."""
    found: list[tuple[Path, str, _Definition]] = []
    for path, tree in sources().items():
        if str(path).startswith(_USERS_OWN):
            continue
        for node in tree.body:
            if isinstance(node, _Definition) and not node.name.startswith("_"):
                found.append((path, node.name, node))
                if isinstance(node, ast.ClassDef):
                    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                    found += [(path, f"{node.name}.{m.name}", m) for m in methods if not m.name.startswith("_")]
    return found


def _answers_a_library(path: Path, name: str) -> bool:
    """Whether `name` is a method that a class of a library calls, such as `expand` of a Beam transform."""
    class_name, _, method = name.partition(".")
    if not method:
        return False
    module = importlib.import_module(".".join(("millrace", *path.with_suffix("").parts)))
    bases = getattr(module, class_name).__mro__
    return any(hasattr(base, method) for base in bases if not base.__module__.startswith("millrace"))


@functools.cache
def _unused() -> list[str]:
    total: collections.Counter[str] = collections.Counter()
    for tree in sources().values():
        total += _uses(tree)
    for other in _OTHER_USERS:
        total += collections.Counter(re.findall(r"\w+", (ROOT / other).read_text("utf-8")))
    for block in re.findall(r"```python\n(.*?)```", (ROOT / _PAGE_OF_PIPELINES).read_text("utf-8"), re.S):
        total += _uses(ast.parse(block))
    return [
        f"{path}:{name}"
        for path, name, node in _public_definitions()
        if total[node.name] - _uses(node)[node.name] <= 0 and not _answers_a_library(path, name)
    ]


def _covers(entry: str, unused: str) -> bool:
    return unused == entry or unused.startswith((f"{entry}:", f"{entry}."))


def test_no_public_definition_is_used_by_tests_alone() -> None:
    kept = [*_handed_on(), *_DECLARED_BY_USERS]
    assert [name for name in _unused() if not any(_covers(entry, name) for entry in kept)] == []


def test_what_is_handed_on_exists_is_unused_and_has_a_reason() -> None:
    unused = _unused()
    for entry, reason in _handed_on().items():
        assert (ROOT / entry.partition(":")[0]).is_file(), entry
        assert any(_covers(entry, name) for name in unused), f"{entry} is used: take it off the list"
        assert len(reason.split()) >= 4, f"{entry}: say why it is kept"
