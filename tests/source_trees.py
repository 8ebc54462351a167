"""The product's Python files, parsed once per run, for tests that read the code instead of running it."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("protos", "runtime", "ops", "transforms", "training", "pipelines", "serving", "cli", "examples")


@functools.cache
def sources() -> dict[Path, ast.Module]:
    """{path below the repository: its tree} of every module but the generated ones."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in path.name]
    return {path.relative_to(ROOT): ast.parse(path.read_text("utf-8"), str(path)) for path in paths}


def own_imports(tree: ast.Module) -> Iterator[tuple[Path, int]]:
    """(file below the repository, line) of every module of ours that `tree` imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("millrace."):
            parent = Path(*(node.module or "").split(".")[1:])
            for alias in node.names:
                for path in (parent / f"{alias.name}.py", parent.with_suffix(".py"), parent / "__init__.py"):
                    if (ROOT / path).is_file():
                        yield path, node.lineno
                        break
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("millrace."):
                    yield Path(*alias.name.split(".")[1:]).with_suffix(".py"), node.lineno
