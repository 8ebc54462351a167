"""Prints constraints.txt: what pyproject.toml needs, directly or not, in the versions that are installed here."""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_HEADER = """\
# Every package of the development environment, pinned: `pip install --no-deps -r constraints.txt`.
# After a change of pyproject.toml's dependencies: `make lock`."""

# Packages whose version here does not fit a newer Python: name -> (the first such Python, its version there).
# apache-beam[gcp] asks for another google-apitools on 3.13.
_NEWER_PYTHONS = {"google-apitools": ("3.13", "0.5.35")}


def roots(pyproject: Path) -> list[str]:
    """Requirements of the project, its extras and its build."""
    table = tomllib.loads(pyproject.read_text("utf-8"))
    extras = [text for texts in table["project"]["optional-dependencies"].values() for text in texts]
    return [*table["project"]["dependencies"], *extras, *table["build-system"]["requires"]]


def closure(requirements: list[str]) -> dict[str, str]:
    """{canonical name: installed version} of `requirements` and all that they need; exits when one is missing."""
    pinned: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"lock: {requirement} is not installed; pip install it, then run this again")
        if not requirement.specifier.contains(found.version, prereleases=True):
            sys.exit(f"lock: {requirement} is asked for, {found.version} is installed")
        pinned[name] = found.version
        for needed in map(Requirement, found.requires or []):
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return pinned


def main() -> None:
    pinned = closure(roots(Path(__file__).resolve().parents[1] / "pyproject.toml"))
    print(_HEADER)
    for name, version in sorted(pinned.items()):
        if name not in _NEWER_PYTHONS:
            print(f"{name}=={version}")
            continue
        python, other = _NEWER_PYTHONS[name]
        print(f'{name}=={version}; python_version < "{python}"')
        print(f'{name}=={other}; python_version >= "{python}"')


if __name__ == "__main__":
    main()
