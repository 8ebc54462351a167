"""Folders below which models may lie, so that whoever reaches the control port cannot load any file of the host."""

from collections.abc import Sequence
from pathlib import Path

from millrace.serving.server.errors import ExportError


class ModelRoots:
    """Decides by path, after following symbolic links.

    Args:
      roots: folders; none allows every path.
    """

    def __init__(self, roots: Sequence[str] = ()) -> None:
        self._roots = [Path(root).resolve() for root in roots]

    def problem(self, path: str | Path) -> str | None:
        """Why nothing below `path` may be loaded; None when it may."""
        resolved = Path(path).resolve()
        if not self._roots or any(resolved.is_relative_to(root) for root in self._roots):
            return None
        return f"'{path}' is not below a --model-root ({', '.join(map(str, self._roots))})"

    def check(self, path: str | Path) -> None:
        """Raises ExportError when nothing below `path` may be loaded."""
        if problem := self.problem(path):
            raise ExportError(problem)
