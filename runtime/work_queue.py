"""A queue of files that readers share: patterns are matched one at a time, as readers need more, and progress is saved.

All files of all patterns may be too many to list at once, and readers are not equally fast: each takes the next file
when it has finished one. What is saved says which files are still to come and how far each file in work was read.
"""

import glob
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

Position = tuple[int, ...]
"""Position in a file, as its reader defines it; empty at the beginning."""

_VERSION = 1


class Work(NamedTuple):
    """A file to read from `position` on: empty, or what its reader last reported; `ticket` tells two works apart."""

    path: str
    position: Position = ()
    ticket: int = 0


class WorkQueue:
    """First the files of the first pattern, in lexical order, then those of the next; safe to use from many threads.

    Args:
      patterns: in order; one that matches nothing is passed over.
      match: gives the files of a pattern.
    """

    def __init__(self, patterns: Sequence[str], match: Callable[[str], Sequence[str]] = glob.glob) -> None:
        self._patterns, self._match = deque(patterns), match
        self._waiting: deque[Work] = deque()
        self._in_work: dict[int, Work] = {}
        self._ticket = 0
        self._lock = threading.Lock()

    def take(self) -> Work | None:
        """The next file; None, now and for ever, when there is none."""
        with self._lock:
            while not self._waiting and self._patterns:
                self._waiting.extend(Work(path) for path in sorted(self._match(self._patterns[0])))
                self._patterns.popleft()  # only now: a match that fails is tried again
            if not self._waiting:
                return None
            self._ticket += 1
            work = self._waiting.popleft()._replace(ticket=self._ticket)
            self._in_work[work.ticket] = work
            return work

    def report(self, work: Work, position: Position) -> None:
        """The file was read up to `position`."""
        with self._lock:
            if work.ticket not in self._in_work:
                raise ValueError(f"{work.path} is not in work")
            self._in_work[work.ticket] = work._replace(position=position)

    def finish(self, work: Work) -> None:
        """The file was read to its end."""
        with self._lock:
            if self._in_work.pop(work.ticket, None) is None:
                raise ValueError(f"{work.path} is not in work")

    def save(self) -> bytes:
        """What is left to do, for `restore`; files in work are part of it."""
        with self._lock:
            files = [(work.path, work.position) for work in (*self._in_work.values(), *self._waiting)]
            return json.dumps({"version": _VERSION, "patterns": [*self._patterns], "files": files}).encode()

    def restore(self, data: bytes) -> None:
        """Goes on from what `save` gave: files that were in work come first. ValueError for anything else."""
        try:
            saved = json.loads(data)
            version, patterns = saved["version"], deque(str(pattern) for pattern in saved["patterns"])
            files = deque(Work(str(path), tuple(map(int, position))) for path, position in saved["files"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"not the state of a work queue: {error}") from error
        if version != _VERSION:
            raise ValueError(f"state of a work queue of version {version}, expected {_VERSION}")
        with self._lock:
            self._patterns, self._waiting, self._in_work = patterns, files, {}


class WorkReader(Generic[Item]):
    """Iterates over the items of the files that a queue gives, and reports how far it came.

    Args:
      read: (path, position) -> (item, position behind it) of the file from that position on.
    """

    def __init__(self, queue: WorkQueue, read: Callable[[str, Position], Iterator[tuple[Item, Position]]]) -> None:
        self._queue, self._read = queue, read

    def __iter__(self) -> Iterator[Item]:
        while (work := self._queue.take()) is not None:
            for item, position in self._read(work.path, work.position):
                self._queue.report(work, position)  # before it is given: whoever saves then has it
                yield item
            self._queue.finish(work)
