"""Settings of one run of the loop."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PARTS = ("kill", "rollback", "poison")
"""In the order in which they happen."""


@dataclass(frozen=True)
class LoopOptions:
    """Settings of one run.

    Args:
      runner: Beam runner of the feed, `prism` or `flink`.
      recipe: file of steps that the feed runs on its rows; None: no steps.
      report: folder for the report.
      state: folder for the run's servers, model and logs.
      window_seconds: an impression without an action is a negative after this time.
      seconds: how long events flow, and longer until all parts have happened.
      drain_seconds: how long nothing may move after the last event before rows on their way count as lost.
      parts: what happens while events flow, of `PARTS`.
      delays: rows by which a model learns late, one point of the curve of AUC against delay each.
    """

    runner: str = "prism"
    recipe: Path | None = None
    report: Path = Path("demo-report")
    state: Path = Path(".state/demo")
    window_seconds: float = 5.0
    export_seconds: float = 8.0
    checkpoint_seconds: float = 10.0
    probe_interval_seconds: float = 0.5
    seconds: float = 100.0
    drain_seconds: float = 60.0
    parts: Sequence[str] = PARTS
    delays: Sequence[int] = field(default=(256, 1024, 8192, 33_000))
