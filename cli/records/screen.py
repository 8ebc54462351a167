"""Progress on stderr, tables and small charts for the actions of `millrace records`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from millrace.pipelines.records.source import ReadProgress

_LEVELS = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH = 30
_PIPE_WIDTH = 160  # columns of a file or pipe: as wide as the widest table, so that nothing is cut off


@contextmanager
def progress(description: str, total: int | None) -> "Iterator[ReadProgress]":
    """A line on stderr, if that is a terminal: how much of `total` is read, and how many rows those are.

    Args:
      total: None or 0 where nobody knows it, as of standard input.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"))
    stderr = Console(file=sys.stderr)
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(description, total=total or None, rows=0)
        rows = before = 0

        def advance(done: int, more: int) -> None:
            nonlocal rows, before
            rows = more if done < before else rows + more  # less than before: a second pass has begun
            before = done
            bar.update(line, completed=done, rows=rows)

        yield advance


def console() -> Console:
    """Standard output; 160 columns wide where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Group:
    """A titled table. The first column and columns whose names begin with a blank are text; the others are numbers."""
    made = Table(header_style="", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        is_text = index == 0 or name.startswith(" ")
        made.add_column(name, justify="left" if is_text else "right", no_wrap=index == 0)
    for row in rows:
        made.add_row(*map(Text, row))
    return Group(Text(f"\n{title}", style="bold"), made)


def count(number: int, unit: str = "record") -> str:
    """`1 record`, `2 records`."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def spark(counts: Sequence[int]) -> str:
    """One character per count, whose height is its share of the largest count; a blank for 0."""
    most = max(counts, default=0)
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // most)] if count else " " for count in counts)


def bars(counts: Mapping[str, int], limit: int = 10) -> list[list[str]]:
    """(value, count, share, bar) of the most frequent values."""
    total, most = sum(counts.values()), max(counts.values(), default=0)
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [[value, f"{n:,}", f"{n / total:.1%}", "█" * max(1, round(_BAR_WIDTH * n / most))] for value, n in shown]
