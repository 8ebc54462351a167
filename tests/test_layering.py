"""Imports point one way, read from the import statements of every source file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.source_trees import FOLDERS, ROOT, sources

# Package -> what it may import of ours, beside itself. `runtime` is a leaf.
_MAY_IMPORT = {
    "runtime": set(),
    "protos": set(),
    "ops": {"runtime", "protos"},
    "transforms": {"runtime", "protos", "ops"},
    "training": {"runtime", "protos", "ops", "transforms"},
    "pipelines": {"runtime", "protos", "ops", "transforms", "training"},
    "serving": {"runtime", "protos", "ops", "transforms", "training"},
    "cli": {"runtime", "protos", "ops", "transforms", "training", "pipelines", "serving", "examples"},
    "examples": {"runtime", "protos", "ops", "transforms", "training"},
}

_TENSORFLOW = {"tensorflow", "keras", "tensorflow_serving"}
_CLIENT_MAKERS = {"AdminClient", "Consumer", "DeserializingConsumer", "Producer", "SerializingProducer"}
_IMPORTERS = {"import_module", "__import__"}
_LOADERS = {"load_op_library", "load_library", "CDLL", "PyDLL", "LoadLibrary", "cdll", "pydll"}


def _sources(package: str) -> list[Path]:
    return [path for path in sources() if path.parts[0] == package]


def _is_text(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, str, int]]:
    """(module, imported name or "", line) of every import among `nodes`, statements and calls with the name as text."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _IMPORTERS:
            yield from ((arg.value, "", node.lineno) for arg in node.args[:1] if _is_text(arg))


def _at_module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run at import: all but the bodies of functions and of `if TYPE_CHECKING`."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        todo.extend(ast.iter_child_nodes(node))


def _folder(module: str) -> str:
    """`transforms` of `millrace.transforms.batch.fid`; empty for what is not ours."""
    top, _, rest = module.partition(".")
    return rest.split(".")[0] if top == "millrace" else ""


def _names(tree: ast.Module) -> set[str]:
    """Every name and attribute that the file uses."""
    nodes = list(ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("package", sorted(_MAY_IMPORT))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = [
        f"{path}:{line} imports {module}"
        for path in _sources(package)
        for module, member, line in _imports(ast.walk(sources()[path]))
        if (top := _folder(f"{module}.{member}")) in _MAY_IMPORT and top != package and top not in _MAY_IMPORT[package]
    ]
    assert wrong == []


def test_product_code_imports_no_test_code() -> None:
    wrong = [
        f"{path}:{line} imports {module}"
        for path in sources()
        for module, _, line in _imports(ast.walk(sources()[path]))
        if module.split(".")[0] in {"tests", "pytest", "hypothesis", "_pytest"}
    ]
    assert wrong == []


def test_transforms_import_no_tensorflow_and_nothing_that_needs_it() -> None:
    """Followed through our own modules: a Beam worker must not pay seconds for an import that it does not use."""
    todo = [".".join(("millrace", *path.with_suffix("").parts)) for path in _sources("transforms")]
    seen: set[str] = set()
    wrong = []
    while todo:
        name = todo.pop().removesuffix(".__init__")
        if name in seen:
            continue
        seen.add(name)
        path = Path(name.removeprefix("millrace.").replace(".", "/") + ".py")
        path = path if path in sources() else path.with_suffix("") / "__init__.py"
        if path not in sources():
            continue
        tree = sources()[path]
        nodes = ast.walk(tree) if name.startswith("millrace.transforms") else _at_module_level(tree)
        for module, member, line in _imports(iter(nodes)):
            if module.split(".")[0] in _TENSORFLOW:
                wrong.append(f"{path}:{line} imports {module}")
            elif _folder(module):
                todo += [module, f"{module}.{member}"] if member else [module]
    assert wrong == []


def test_only_ops_library_loads_a_shared_object() -> None:
    loaders = [str(path) for path in sources() if _names(sources()[path]) & _LOADERS]
    assert set(loaders) <= {
        "ops/library.py",
        "ops/record_library.py",
        "runtime/child_process.py",  # libc
        "runtime/memory.py",  # libc
    }


def test_only_runtime_makes_kafka_and_zookeeper_clients() -> None:
    wrong = []
    for path in sources():
        if path.parts[0] == "runtime":
            continue
        for module, member, line in _imports(ast.walk(sources()[path])):
            top = module.split(".")[0]
            if top == "kazoo" or (top == "confluent_kafka" and (not member or member in _CLIENT_MAKERS)):
                wrong.append(f"{path}:{line} imports {module}.{member}")
    assert wrong == []


def test_every_package_of_the_repository_is_covered() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(_MAY_IMPORT) | {"millrace"}
    assert set(FOLDERS) == set(_MAY_IMPORT)
    links = {path.name: path.readlink() for path in (ROOT / "millrace").iterdir() if path.is_symlink()}
    assert links == {name: Path("..") / name for name in _MAY_IMPORT}


def test_init_files_hold_one_docstring_line() -> None:
    wrong = [
        str(path)
        for path in sources()
        if path.name == "__init__.py" and [type(node) for node in sources()[path].body] != [ast.Expr]
    ]
    # Modellers write code outside of this repository: they import from one place that stays.
    assert wrong == ["training/task/__init__.py"]


def test_the_one_init_file_with_names_only_re_exports_them() -> None:
    tree = sources()[Path("training/task/__init__.py")]
    imported = sorted(name for _, name, _ in _imports(iter(tree.body)))
    (exported,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert exported == imported
    assert [type(node) for node in tree.body if not isinstance(node, ast.ImportFrom)] == [ast.Expr, ast.Assign]


# Wing of ops/cc -> the wings whose headers it may include, beside its own. `records` itself holds the C interface.
_EMBEDDING = ["embedding/base", "embedding/rules", "embedding/table", "embedding/snapshot"]
_RECORDS = ["embedding/base", "records", "records/wire", "records/arrow", "records/decode", "records/encode"]
_MAY_INCLUDE = {
    **{wing: set(_EMBEDDING[:place]) for place, wing in enumerate(_EMBEDDING)},
    **{wing: set(_RECORDS[:place]) for place, wing in enumerate(_RECORDS[1:], 1)},
    "records/json": set(_RECORDS[:4]),
    "records/rows": set(_RECORDS[:4]),
    "kernels": set(_EMBEDDING),
}


def test_a_wing_of_the_cpp_code_includes_only_what_lies_below_it() -> None:
    files = [path for path in (ROOT / "ops/cc").rglob("*") if path.suffix in {".h", ".cc"}]
    wrong = []
    for path in files:
        wing = str(path.parent.relative_to(ROOT / "ops/cc"))
        for included in re.findall(r'^#include "ops/cc/([^"]+)/[^/"]+"', path.read_text("utf-8"), re.MULTILINE):
            if included != wing and included not in _MAY_INCLUDE[wing]:
                wrong.append(f"{path.relative_to(ROOT)} includes a header of {included}")
    assert files and wrong == []


def test_no_folder_of_cpp_code_has_more_than_twenty_modules() -> None:
    modules: dict[Path, set[str]] = {}
    for path in (*(ROOT / "ops/cc").rglob("*"), *(ROOT / "tests/cc").rglob("*")):
        if path.suffix in {".h", ".cc"}:
            modules.setdefault(path.parent, set()).add(path.stem)  # a header and its source are one
    assert {str(folder): len(names) for folder, names in modules.items() if len(names) > 20} == {}
