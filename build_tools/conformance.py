"""Counts the specification's test vectors that a test carries by id (`emb:O18` anywhere below tests/)."""

import re
import sys
from collections import defaultdict
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_VECTORS = _ROOT.parent / "shared" / "spec" / "vectors.tsv"
_TEST_SUFFIXES = (".py", ".cc", ".h")


def ids_in_tests(folder: Path, wanted: set[str]) -> set[str]:
    """Those of `wanted` that a test source below `folder` names."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        if path.suffix in _TEST_SUFFIXES:
            found.update(re.findall(r"\b[a-z]+:[A-Za-z0-9._-]*[A-Za-z0-9]", path.read_text("utf-8")))
    return found & wanted


def main() -> int:
    if not _VECTORS.exists():
        print(f"conformance: {_VECTORS} is not there; it lies beside the checkout", file=sys.stderr)
        return 2
    ids = [line.split("\t", 1)[0] for line in _VECTORS.read_text("utf-8").splitlines() if line]
    covered = ids_in_tests(_ROOT / "tests", set(ids))
    by_specification: dict[str, list[str]] = defaultdict(list)
    for vector in ids:
        by_specification[vector.split(":")[0]].append(vector)
    for name, vectors in by_specification.items():
        missing = [vector.split(":", 1)[1] for vector in vectors if vector not in covered]
        print(f"{name:<6} {len(vectors) - len(missing):>4} / {len(vectors):<4} missing: {' '.join(missing) or 'none'}")
    print(f"{'all':<6} {len(covered):>4} / {len(ids)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
