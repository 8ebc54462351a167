"""Folders with many modules are cut into wings; imports between the wings of a folder point one way."""

import ast
from pathlib import Path

import pytest

from tests.source_trees import FOLDERS, ROOT, own_imports, sources

# Folder -> its wings, each of which may import those before it. "" are the modules of the folder itself.
_WINGS = {
    "transforms": (
        "batch", "frames", "codecs", "steps", "steps/filters", "steps/labels", "steps/features", "steps/negatives",
        "steps/sharding", "recipe", "feed", "beam",
    ),
    "training": ("task", "stream", "step", "state", "publish", "online", ""),
    "pipelines": ("files", "kafka", "feed", "records", "traffic", ""),
    "serving": ("deltas", "server", "agent", "client"),
}  # fmt: skip
# Wings of transforms that do not import each other although the order would allow it: what is done with rows knows no
# file format, and a recipe knows nothing of events.
_APART = {("steps", "codecs"), ("recipe", "codecs"), ("recipe", "frames"), ("feed", "recipe"), ("feed", "frames")}
# The modules of cli/ itself are both below its wings (`common`) and above them (`demo`); its wings stand side by side.
_SIDE_BY_SIDE = {"cli": ("feed", "records", "checkpoint", "loop")}
_MOST_MODULES = 20  # a reader takes in a folder of this size at a glance


def _wing(path: Path) -> str:
    return str(Path(*path.parts[1:-1])) if len(path.parts) > 2 else ""


@pytest.mark.parametrize("folder", sorted(_WINGS))
def test_every_wing_has_its_place_in_the_order(folder: str) -> None:
    found = {_wing(path) for path in sources() if path.parts[0] == folder and path.name != "__init__.py"}
    assert found == set(_WINGS[folder])


@pytest.mark.parametrize("folder", sorted(_WINGS))
def test_a_wing_imports_only_those_before_it(folder: str) -> None:
    order = _WINGS[folder]
    wrong = [
        f"{path}:{line} imports {imported}"
        for path, tree in sources().items()
        if path.parts[0] == folder and _wing(path) in order
        for imported, line in own_imports(tree)
        if imported.parts[0] == folder
        and imported.name != "__init__.py"
        and order.index(_wing(imported)) > order.index(_wing(path))
    ]
    assert wrong == []


def test_steps_know_no_format_and_the_feed_no_recipe() -> None:
    wrong = [
        f"{path}:{line} imports {imported}"
        for path, tree in sources().items()
        if path.parts[0] == "transforms"
        for imported, line in own_imports(tree)
        if imported.parts[0] == "transforms" and (path.parts[1], imported.parts[1]) in _APART
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", sorted(_SIDE_BY_SIDE))
def test_wings_that_stand_side_by_side_do_not_import_each_other(folder: str) -> None:
    wings = _SIDE_BY_SIDE[folder]
    wrong = [
        f"{path}:{line} imports {imported}"
        for path, tree in sources().items()
        if path.parts[0] == folder and _wing(path) in wings
        for imported, line in own_imports(tree)
        if imported.parts[0] == folder and _wing(imported) in wings and _wing(imported) != _wing(path)
    ]
    assert wrong == []


def test_only_the_beam_wing_of_transforms_imports_beam() -> None:
    wrong = []
    for path, tree in sources().items():
        if path.parts[0] == "transforms" and path.parts[1] != "beam":
            for node in ast.walk(tree):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(name.split(".")[0] == "apache_beam" for name in names):
                    wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


def test_no_folder_holds_more_modules_than_a_reader_takes_in() -> None:
    """A C++ header and its source are one module; the files that mark packages are none."""
    modules: dict[Path, set[str]] = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cc", ".h") and "_pb2" not in path.name and path.name != "__init__.py":
                modules.setdefault(path.parent.relative_to(ROOT), set()).add(path.stem)
    assert {str(folder): len(names) for folder, names in modules.items() if len(names) > _MOST_MODULES} == {}
