"""`millrace records diff`: how the rows of two sources differ."""

import argparse
import json
from typing import Any

from millrace.cli.records.screen import console, count, progress, table
from millrace.cli.records.source import open_source
from millrace.pipelines.files.format import format_of_path
from millrace.pipelines.records.diff import Difference, RecordDiff
from millrace.transforms.batch.provenance import PROVENANCE

_EXIT_DIFFERENT = 1


def run(arguments: argparse.Namespace) -> int:
    a = open_source(arguments, arguments.a)
    b = open_source(arguments, arguments.b, arguments.records_b or format_of_path(arguments.b))
    with progress("comparing", None) as advance:
        difference = RecordDiff(a, b, arguments.key or tuple(PROVENANCE), advance).run(arguments.limit)
    differs = not difference.equal or (arguments.ordered and difference.same_order is False)
    if arguments.json:
        print(json.dumps(_facts(difference) | {"equal": not differs}))
    else:
        _show(difference, arguments.a, arguments.b)
    return _EXIT_DIFFERENT if differs else 0


def _facts(difference: Difference) -> dict[str, Any]:
    dead_letters = [each.as_json() for each in difference.refused]
    sides = {"rows": difference.rows, "only": difference.only, "dead_letters": dead_letters}
    facts: dict[str, Any] = {
        f"{name}_{side}": fact for name, pair in sides.items() for side, fact in zip("ab", pair, strict=True)
    }
    examples = [
        {side: json.loads(text) for side, text in zip("ab", each, strict=True) if text is not None}
        for each in difference.examples
    ]
    columns = dict(difference.columns.most_common())
    order = {"changed": difference.changed, "columns": columns, "same_order": difference.same_order}
    return facts | order | {"examples": examples}


def _show(difference: Difference, a: str, b: str) -> None:
    out = console()
    rows = [
        ["rows", *(f"{n:,}" for n in difference.rows)],
        ["not in the other", *(f"{n:,}" for n in difference.only)],
        ["changed", *[f"{difference.changed:,}"] * 2],
    ]
    out.print(table("A and B", ("", a, b), rows))
    for name, refused in zip((a, b), difference.refused, strict=True):
        if refused.counts:
            out.print(f"\n{name}: {count(refused.counts.total())} cannot be read: {refused}", markup=False)
    if difference.columns:
        counts = [[name, f"{n:,}"] for name, n in difference.columns.most_common()]
        out.print(table("changed columns", ("column", "rows"), counts))
    if difference.examples:
        out.print()
    for each in difference.examples:
        for mark, text in zip("-+", each, strict=True):
            if text is not None:
                out.print(f"{mark} {text}", markup=False, highlight=False, soft_wrap=True)
    if difference.equal:
        order = "in the same order" if difference.same_order else "in another order"
        out.print(f"\nthe rows are equal, {order}", highlight=False)
