"""`millrace records diff`: how the rows of two sources differ."""

import argparse
import json
from typing import Any

from cli.records_screen import console, progress, table
from cli.records_source import open_source
from pipelines.record_diff import PROVENANCE, Comparison, Difference

_EXIT_DIFFERENT = 1


def run(arguments: argparse.Namespace) -> int:
    a = open_source(arguments, arguments.a)
    b = open_source(arguments, arguments.b, arguments.records_b)
    with progress("comparing", a.size) as advance:
        difference = Comparison(a, b, arguments.key or PROVENANCE, advance).run(arguments.limit)
    differs = not difference.equal or (arguments.ordered and difference.same_order is False)
    if arguments.json:
        print(json.dumps(_facts(difference) | {"equal": not differs}))
    else:
        _show(difference, arguments.a, arguments.b)
    return _EXIT_DIFFERENT if differs else 0


def _facts(difference: Difference) -> dict[str, Any]:
    sides = {"rows": difference.rows, "dead_letters": difference.dead_letters, "only": difference.only}
    facts: dict[str, Any] = {
        f"{name}_{side}": count for name, pair in sides.items() for side, count in zip("ab", pair, strict=True)
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
        ["rows", *(f"{count:,}" for count in difference.rows)],
        ["not in the other", *(f"{count:,}" for count in difference.only)],
        ["changed", *[f"{difference.changed:,}"] * 2],
    ]
    if any(difference.dead_letters):
        rows.append(["records that cannot be read", *(f"{count:,}" for count in difference.dead_letters)])
    out.print(table("", ("", a, b), rows))
    if difference.columns:
        counts = [[name, f"{count:,}"] for name, count in difference.columns.most_common()]
        out.print(table("\nchanged columns", ("column", "rows"), counts))
    if difference.examples:
        out.print()
    for each in difference.examples:
        for mark, text in zip("-+", each, strict=True):
            if text is not None:
                out.print(f"{mark} {text}", markup=False, highlight=False, soft_wrap=True)
    if difference.equal:
        order = "in the same order" if difference.same_order else "in another order"
        out.print(f"\nthe rows are equal, {order}", highlight=False)
