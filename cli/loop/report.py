"""The report of one run: `summary.json` for scripts, `report.html` (self-contained) for people."""

import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from millrace.runtime import atomic_file

_INK, _GRID = "#1f2933", "#d9dee4"
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#2f6fb2", "#d9822b", "#3c8f5a", "#c23b3b", "#7b8794"
_MUST_BE_ZERO = ("rows_lost", "rows_duplicated", "rows_unknown", "predictions_failed")
_WIDTH, _HEIGHT = 7.2, 2.7  # inches; two plots fit side by side on a laptop screen
_MARK_COLORS = {
    "kill": _RED, "back": _GREEN, "rollback": _ORANGE, "held": _ORANGE, "release": _GREEN, "poison": _RED,
    "alarm": _RED, "resume": _ORANGE, "released": _GREEN,
}  # fmt: skip
_HOLDS = {"rollback": "released", "alarm": "released"}  # marks between which nothing newer is served: first, last
_LABEL_EVERY = 0.03  # of the width of a plot: labels of marks that are nearer to each other would overlap


@dataclass
class RunRecord:
    """The figures of one run.

    `samples`: one dict per second with `t` (seconds since the start) and any of `auc`, `log_loss`, `events_per_s`,
    `fed_rows_per_s`, `trained_rows_per_s`, `predictions_per_s`, `version`, `deltas_applied`.
    `marks`: dicts with `t`, `kind` (`version`, or one of `_MARK_COLORS`) and `label`.
    `delay_curve`: dicts with `delay_rows` (None: without ids) and `auc`.
    `unfinished`: what did not come to its end, one line each; figures that need it are missing.
    """

    title: str
    summary: dict[str, object]
    samples: list[dict[str, float]] = field(default_factory=list)
    marks: list[dict[str, object]] = field(default_factory=list)
    freshness_ms: list[float] = field(default_factory=list)
    delay_curve: list[dict[str, float | None]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        """What did not come to its end, and guarantees of the loop that this run did not keep, one line each."""
        broken = [*self.unfinished]
        broken += [f"{name}={self.summary.get(name)}" for name in _MUST_BE_ZERO if self.summary.get(name)]
        expected = self.summary.get("dead_letters_expected")
        if expected is not None and self.summary.get("dead_letters") != expected:
            broken.append(f"dead_letters={self.summary.get('dead_letters')} but {expected} bad records were sent")
        return broken + self._broken_holds()

    def _broken_holds(self) -> list[str]:
        """What a rollback or the guard let through."""
        rollback, guard = (self.summary.get(name) for name in ("rollback", "guard"))
        broken = []
        if isinstance(rollback, dict) and rollback.get("held") is False:
            broken.append("rollback: predictions changed while the model was held")
        if isinstance(guard, dict) and guard.get("deltas_after_alarm"):
            broken.append(f"guard: deltas_after_alarm={guard['deltas_after_alarm']}")
        return broken


def write_report(record: RunRecord, folder: Path) -> None:
    """Writes `summary.json` and `report.html` into `folder`; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_file.write_text(folder / "report.html", render(record))
    atomic_file.write_text(folder / "summary.json", json.dumps(record.summary, indent=2) + "\n")


def render(record: RunRecord) -> str:
    """The page as one string: style, tiles and inline SVG, nothing to fetch."""
    plots = [
        (
            "plot-auc",
            "Learning",
            "Predict-then-train, so every score was made before its label was seen.",
            _draw_learning,
        ),
        (
            "plot-freshness",
            "Freshness",
            "From an action on a never-seen item to a moved score at the server.",
            _draw_freshness,
        ),
        ("plot-throughput", "Throughput", "Rows per second at each stage.", _draw_throughput),
        (
            "plot-timeline",
            "Versions and deltas",
            "What reached the server. Shaded: servers are held, by an operator or by the trainer's guard.",
            _draw_timeline,
        ),
    ]
    if record.delay_curve:
        caption = "Same data, same model: only how many rows late it learns differs."
        plots.append(("plot-delay", "What a delay costs", caption, _draw_delay_curve))
    figures = "\n".join(_figure(record, *plot) for plot in plots)
    rows = "\n".join(
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(_plain(v))}</td></tr>" for k, v in record.summary.items()
    )
    return _PAGE.substitute(title=html.escape(record.title), tiles=_tiles(record.summary), figures=figures, rows=rows)


def _tiles(summary: dict[str, object]) -> str:
    freshness = summary.get("freshness_ms")
    freshness = freshness if isinstance(freshness, dict) else {}
    lost_twice = f"{_plain(summary.get('rows_lost'))} / {_plain(summary.get('rows_duplicated'))}"
    oracle = summary.get("auc_oracle")
    tiles = [
        ("AUC, last third", _plain(summary.get("auc_model")), f"best reachable {_plain(oracle)}" if oracle else ""),
        ("Freshness p50", f"{_plain(freshness.get('p50'))} ms", f"p99 {_plain(freshness.get('p99'))} ms"),
        ("Rows lost / doubled", lost_twice, f"of {_plain(summary.get('rows_trained'))} trained"),
        (
            "Failed predictions",
            _plain(summary.get("predictions_failed")),
            f"of {_plain(summary.get('predictions_ok'))}",
        ),
        ("Versions", _plain(summary.get("versions_published")), f"{_plain(summary.get('deltas_applied'))} deltas"),
    ]
    return "\n".join(
        f'<div class="tile"><span>{html.escape(name)}</span><b>{html.escape(value)}</b><i>{html.escape(note)}</i></div>'
        for name, value, note in tiles
    )


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _figure(record: RunRecord, name: str, title: str, caption: str, draw: Callable[[RunRecord, Figure], None]) -> str:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    draw(record, figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg id="{name}" role="img" aria-label="{html.escape(title)}"', 1)
    return f"<figure><h2>{html.escape(title)}</h2><p>{html.escape(caption)}</p>{svg}</figure>"


def _axes(figure: Figure, x_label: str, y_label: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _series(record: RunRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, values); NaN, a gap in the line, where a process gave no value."""
    return np.array([s["t"] for s in record.samples]), np.array([s.get(name, np.nan) for s in record.samples], float)


def _draw_marks(record: RunRecord, axes: Axes, with_labels: bool = False) -> None:
    """Dashed lines where something happened to the loop, and shades where servers were held."""
    seconds = max([float(sample["t"]) for sample in record.samples], default=1.0)
    next_label, hold = 0.0, None
    for mark in record.marks:
        kind, at = str(mark["kind"]), float(str(mark["t"]))
        if kind not in _MARK_COLORS:
            continue
        axes.axvline(at, color=_MARK_COLORS[kind], linewidth=1, linestyle="--")
        if kind in _HOLDS:
            hold = at, _HOLDS[kind]
        elif hold is not None and kind == hold[1]:
            axes.axvspan(hold[0], at, color=_ORANGE, alpha=0.12, linewidth=0)
            hold = None
        if with_labels:
            next_label = max(at, next_label)
            where = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
            axes.annotate(str(mark["label"]), (next_label, 1.0), color=_MARK_COLORS[kind], fontsize=7, **where)
            next_label += _LABEL_EVERY * seconds


def _draw_learning(record: RunRecord, figure: Figure) -> None:
    axes = _axes(figure, "seconds", "rolling AUC")
    axes.plot(*_series(record, "auc"), color=_BLUE, label="model, AUC")
    oracle = record.summary.get("auc_oracle")
    if isinstance(oracle, float):
        axes.axhline(oracle, color=_GREY, linestyle=":", label="best reachable AUC")
    axes.set_ylim(0.45, 0.9)
    loss_axes = axes.twinx()
    loss_axes.plot(*_series(record, "log_loss"), color=_ORANGE, linewidth=1, label="log loss")
    loss_axes.set_ylabel("log loss", color=_ORANGE)
    loss_axes.spines["top"].set_visible(False)
    _draw_marks(record, axes)
    handles = axes.get_legend_handles_labels()
    more = loss_axes.get_legend_handles_labels()
    axes.legend(handles[0] + more[0], handles[1] + more[1], frameon=False, fontsize=7, loc="lower right")


def _draw_freshness(record: RunRecord, figure: Figure) -> None:
    axes = _axes(figure, "milliseconds (log scale)", "probes")
    if not record.freshness_ms:
        axes.text(0.5, 0.5, "no probe finished", transform=axes.transAxes, ha="center")
        return
    values = np.array(record.freshness_ms)
    bins = np.logspace(np.log10(max(values.min(), 1.0)), np.log10(values.max() + 1.0), 40)
    axes.hist(values, bins=bins, color=_BLUE)
    axes.set_xscale("log")
    for quantile, color in ((50, _GREEN), (99, _ORANGE)):
        at = float(np.percentile(values, quantile))
        axes.axvline(at, color=color, linewidth=1.2, label=f"p{quantile} {at:,.0f} ms")
    axes.legend(frameon=False, fontsize=8)


def _draw_throughput(record: RunRecord, figure: Figure) -> None:
    axes = _axes(figure, "seconds", "a second")
    lines = (
        ("events_per_s", "events read by the feed", _GREY),
        ("fed_rows_per_s", "rows fed", _ORANGE),
        ("trained_rows_per_s", "rows trained", _BLUE),
        ("predictions_per_s", "predict requests", _GREEN),
    )
    for name, label, color in lines:
        axes.plot(*_series(record, name), color=color, label=label, linewidth=1.2)
    axes.set_ylim(bottom=0)
    _draw_marks(record, axes)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _draw_timeline(record: RunRecord, figure: Figure) -> None:
    axes = _axes(figure, "seconds", "deltas applied")
    axes.plot(*_series(record, "deltas_applied"), color=_BLUE, label="deltas applied")
    for index, mark in enumerate(m for m in record.marks if m["kind"] == "version"):
        axes.axvline(float(str(mark["t"])), color=_GREY, linewidth=1, label="a new version" if index == 0 else None)
    axes.set_ylim(bottom=0)
    served_axes = axes.twinx()
    seconds, versions = _series(record, "version")
    known = np.unique(versions[np.isfinite(versions)])
    number = np.where(np.isfinite(versions), np.searchsorted(known, versions) + 1.0, np.nan)
    served_axes.step(seconds, number, color=_INK, linewidth=1.2, where="post", label="version served")
    served_axes.set_ylabel("version served, by age")
    served_axes.set_ylim(bottom=0)
    served_axes.spines["top"].set_visible(False)
    _draw_marks(record, axes, with_labels=True)
    handles, more = axes.get_legend_handles_labels(), served_axes.get_legend_handles_labels()
    axes.legend(handles[0] + more[0], handles[1] + more[1], frameon=False, fontsize=7, loc="lower right")


def _draw_delay_curve(record: RunRecord, figure: Figure) -> None:
    axes = _axes(figure, "rows late (log scale)", "AUC, last third")
    points = [(p["delay_rows"], p["auc"]) for p in record.delay_curve if p["delay_rows"] is not None]
    axes.plot([d for d, _ in points], [a for _, a in points], "o-", color=_BLUE, label="learns that many rows late")
    for delay, auc in points:
        axes.annotate(f"{auc:.3f}", (delay, auc), textcoords="offset points", xytext=(4, 6), fontsize=8, color=_INK)
    for point in record.delay_curve:
        if point["delay_rows"] is None:
            axes.axhline(point["auc"], color=_GREY, linestyle=":", label=f"without ids {point['auc']:.3f}")
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.2)
    axes.legend(frameon=False, fontsize=8)


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body{font:15px/1.45 system-ui,sans-serif;color:#1f2933;background:#f5f7f9;margin:0;padding:24px 32px}
h1{font-size:22px;margin:0 0 16px}h2{font-size:15px;margin:0}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin-bottom:16px}
.tile{background:#fff;border-radius:8px;padding:12px 18px;min-width:140px;display:flex;flex-direction:column}
.tile b{font-size:24px}.tile span,.tile i,figure p{color:#52606d;font-size:13px;font-style:normal;margin:0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:12px}
figure{background:#fff;border-radius:8px;margin:0;padding:14px 16px}figure svg{width:100%;height:auto}
table{background:#fff;border-radius:8px;margin-top:16px;padding:10px;border-spacing:0}
th,td{text-align:left;padding:3px 14px;font-size:13px;font-weight:400}th{color:#52606d}
</style></head><body><h1>$title</h1>
<div class="tiles">$tiles</div>
<div class="plots">$figures</div>
<table>$rows</table>
</body></html>
""")
