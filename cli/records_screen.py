"""What `millrace records` shows beside its results: progress on stderr, tables and small charts."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.record_access import Progress as Advance

_LEVELS = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH = 30
_PIPE_WIDTH = 160


@contextmanager
def progress(description: str, total: int) -> "Iterator[Advance]":
    """A line on stderr, if that is a terminal: how much of `total` is read, and how many rows that were."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"))
    stderr = Console(file=sys.stderr)
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(description, total=total, rows=0)
        rows = 0

        def advance(done: int, more: int) -> None:
            nonlocal rows
            rows = rows + more if done > more else more
            bar.update(line, completed=done, rows=rows)

        yield advance


def console() -> Console:
    """Standard output; wide where nobody looks at its width."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text, and so are those whose name begins with a blank; others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        is_text = index == 0 or name.startswith(" ")
        made.add_column(name, justify="left" if is_text else "right", no_wrap=index == 0)
    for row in rows:
        made.add_row(*row)
    return made


def spark(counts: Sequence[int]) -> str:
    """One character a count, its height the share of the largest; a blank for none."""
    most = max(counts, default=0)
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // most)] if count else " " for count in counts)


def bars(counts: Mapping[str, int], limit: int = 10) -> list[list[str]]:
    """(value, count, share, bar) of the most frequent values."""
    total, most = sum(counts.values()), max(counts.values(), default=0)
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [[value, f"{n:,}", f"{n / total:.1%}", "█" * max(1, round(_BAR_WIDTH * n / most))] for value, n in shown]
