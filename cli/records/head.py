"""`millrace records head`: the first rows of a source."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
from rich.table import Table
from rich.text import Text

from millrace.cli.records.screen import console, count
from millrace.cli.records.source import open_source, read_chain
from millrace.pipelines.files.containers import DEAD_LETTER
from millrace.pipelines.records.source import DeadLetterCounts, RecordSource
from millrace.runtime.errors import UserError
from millrace.transforms.codecs.json_writer import FidText, json_lines, json_values
from millrace.transforms.recipe.chain import TransformChain

_JSON_ROWS, _TABLE_ROWS = 10, 3
_MAX_NAME = 40  # of a column that is shown whole: beyond that a name takes the space of the values


def run(arguments: argparse.Namespace) -> int:
    chain = read_chain(arguments.where)
    source = open_source(arguments, arguments.source)
    if chain is not None:
        source = source.with_features(chain.required_features())
    as_table = arguments.format == "table"
    limit = arguments.limit or (_TABLE_ROWS if as_table else _JSON_ROWS)
    refused = DeadLetterCounts()
    fids: FidText = "slots" if arguments.fids else "unsigned"
    shown = []
    for batch in _first_rows(source, chain, limit, refused):
        rows = _chosen(batch, arguments.columns)
        if as_table:
            shown.append(rows)
        else:
            sys.stdout.writelines(f"{line}\n" for line in json_lines(rows, fids).to_pylist())
    if as_table:
        console().print(_table(shown, fids))
    if refused.counts:
        print(
            f"{count(refused.counts.total())} before the end of these rows cannot be read: {refused}", file=sys.stderr
        )
    return 0


def _first_rows(
    source: RecordSource, chain: TransformChain | None, limit: int, refused: DeadLetterCounts
) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows; counts in `refused` the records before them that cannot be read."""
    with closing(source.parts()) as parts:
        for part in parts:
            rows = part.rows
            if source.settings.format == DEAD_LETTER:
                rows = part.dead
            else:
                refused.add(part.dead)
            if chain is not None and rows.num_rows:
                rows = chain.process(rows)
            yield rows.slice(0, limit)
            limit -= min(limit, rows.num_rows)
            if not limit:
                return


def _chosen(rows: pa.RecordBatch, names: list[str] | None) -> pa.RecordBatch:
    if names is None or not rows.num_rows:
        return rows
    if not any(name in rows.schema.names for name in names):
        raise UserError("--columns", ",".join(names), "no such column", f"choose of {', '.join(rows.schema.names)}")
    return rows.select([name for name in names if name in rows.schema.names])


def _table(batches: list[pa.RecordBatch], fids: FidText) -> Table:
    """A table with one line per column of the rows: a person looks at few rows, which have many columns."""
    cells: dict[str, dict[int, str]] = {}
    shown = 0
    for batch in batches:
        for field, column in zip(batch.schema, batch.columns, strict=True):
            texts = json_values(field, column, fids).to_pylist()
            cells.setdefault(field.name, {}).update(enumerate((text or "" for text in texts), shown))
        shown += batch.num_rows
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("column", no_wrap=True, min_width=min(_MAX_NAME, max(map(len, cells), default=0)))
    for number in range(shown):
        made.add_column(f"row {number + 1}", overflow="ellipsis", no_wrap=True)
    for name, values in cells.items():
        made.add_row(name, *(Text(values.get(row, "")) for row in range(shown)))
    return made
