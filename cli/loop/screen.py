"""The live screen: processes, figures and the course of AUC."""

from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

_SPARKS = "▁▂▃▄▅▆▇█"
_HISTORY = 60


class Screen:
    """Shows processes, figures and the course of AUC; where stderr is no terminal, one line every five seconds.

    Args:
      read: returns {"phase": str, "processes": {name: state}, "figures": {name: value}, "auc": [..]}.
    """

    def __init__(self, read: Callable[[], Mapping[str, object]], console: Console) -> None:
        self._read, self._console = read, console
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live screen."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Called every few seconds by the run; prints a line where there is no live screen."""
        if not self._console.is_terminal:
            view = self._read()
            figures = view["figures"]
            assert isinstance(figures, dict)
            self.say("  " + "  ".join(f"{name} {value}" for name, value in figures.items()))

    def _render(self) -> RenderableType:
        view = self._read()
        processes, figures, auc = view["processes"], view["figures"], view["auc"]
        assert isinstance(processes, dict) and isinstance(figures, dict) and isinstance(auc, list)
        left = Table.grid(padding=(0, 2))
        for name, state in processes.items():
            left.add_row(name, f"[green]{state}" if state == "running" else f"[red]{state}")
        right = Table.grid(padding=(0, 2))
        for name, value in figures.items():
            right.add_row(name, f"[bold]{value}")
        columns = Table.grid(padding=(0, 6))
        columns.add_row(left, right)
        return Panel(Group(columns, f"AUC  {sparkline(auc)}"), title=f"millrace demo: {view['phase']}", width=92)


def sparkline(values: list[float], low: float = 0.5, high: float = 0.85) -> str:
    """The last minute of `values` as one line of blocks between `low` and `high`."""
    recent = values[-_HISTORY:]
    steps = len(_SPARKS) - 1
    return "".join(_SPARKS[round(min(max((v - low) / (high - low), 0.0), 1.0) * steps)] for v in recent)
