"""Which checkpoints stay: the newest few, the first of each period for good, and those that a file names."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint; `saved_at` in Unix seconds."""

    path: Path
    saved_at: float


@dataclass(frozen=True)
class Retention:
    """Which of several checkpoints may be deleted. It keeps no state: what is on disk decides, also after a restart.

    Args:
      max_to_keep: newest checkpoints to keep, exempt ones not counted.
      keep_every_seconds: the first checkpoint of each period of this length stays for good, beside the newest ones.
        Periods are counted from the Unix epoch: 86400 gives days in UTC. None: none stays for good.

    Raises:
      ValueError: a number is not positive.
    """

    max_to_keep: int = 3
    keep_every_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, not {self.max_to_keep}")
        if self.keep_every_seconds is not None and not self.keep_every_seconds > 0:
            raise ValueError(f"keep_every_seconds must be more than 0, not {self.keep_every_seconds}")

    def superfluous(self, saved: Sequence[Saved], exempt: Collection[Path] = ()) -> list[Path]:
        """What may be deleted, oldest first.

        Args:
          saved: all checkpoints on disk, oldest first.
          exempt: paths that stay whatever the rule says.
        """
        candidates = [each for each in saved if each.path not in exempt]
        stay = {each.path for each in candidates[-self.max_to_keep :]} | self._kept_for_good(candidates)
        return [each.path for each in candidates if each.path not in stay]

    def _kept_for_good(self, candidates: Sequence[Saved]) -> set[Path]:
        if self.keep_every_seconds is None:
            return set()
        first: dict[float, Path] = {}
        for each in candidates:
            first.setdefault(each.saved_at // self.keep_every_seconds, each.path)
        return set(first.values())


def read_exempt(path: Path) -> frozenset[Path]:
    """Resolved paths of the checkpoints that `path` exempts from deletion and that exist; empty without the file.

    Args:
      path: a JSON list of checkpoint folders, absolute or relative to the file's folder.

    Raises:
      ValueError: the file holds something else; the message names it.
    """
    try:
        names = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return frozenset()
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must hold a list of checkpoint folders")
    return frozenset(folder for name in names if (folder := (path.parent / name).resolve()).exists())
