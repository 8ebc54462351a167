"""`millrace records stat`: prints counts and statistics of the columns of a source."""

import argparse
import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from millrace.cli.records.screen import bars, console, progress, spark, table
from millrace.cli.records.source import open_source, read_chain
from millrace.pipelines.records.stats import LENGTHS, RecordStats
from millrace.transforms.batch import record_batch


def run(arguments: argparse.Namespace) -> int:
    """Reads the source and prints its statistics, as tables or with --json as one object; returns exit code 0."""
    chain = read_chain(arguments.where)
    source = open_source(arguments, arguments.source)
    if chain is not None:
        source = source.with_features(chain.required_features())
    stats = RecordStats()
    with progress("reading", source.size) as advance, closing(source.parts()) as parts:
        for part in parts:
            if chain is not None and part.rows.num_rows:
                part = part._replace(rows=chain.process(part.rows))
            stats.add(part)
            advance(part.done, part.rows.num_rows)
            if arguments.limit and stats.rows >= arguments.limit:
                break
    facts = {"source": source.name} | stats.as_json()
    if arguments.json:
        print(json.dumps(facts))
    else:
        _show(facts)
    return 0


def _show(facts: dict[str, Any]) -> None:
    out = console()
    size = f", {facts['bytes']:,} bytes" if facts["bytes"] else ""
    out.print(f"{facts['source']}: {facts['records']:,} records{size}, {facts['rows']:,} rows", highlight=False)
    for name, seconds in (("req_time", 1.0), ("event_time_ms", 0.001)):
        if name in facts["times"]:
            first, last = (_time(facts["times"][name][end] * seconds) for end in ("min", "max"))
            out.print(f"{name}: {first} to {last}", highlight=False)
    dead = facts["dead_letters"]
    if dead:
        rows = [[reason, f"{each['records']:,}", each["first"]] for reason, each in dead.items()]
        out.print(table("cannot be read", ("reason", "records", " the first"), rows))
    if facts["partitions"]:
        rows = [_partition(number, each) for number, each in facts["partitions"].items()]
        out.print(table("partitions", ("partition", "records", "first offset", "last offset", "newest"), rows))
    if facts["features"]:
        names = ("column", " type", "rows", "values", "distinct", " range", f" lengths {LENGTHS[0]} to {LENGTHS[-1]}")
        rows = [_feature(name, each, facts["rows"]) for name, each in facts["features"].items()]
        out.print(table("columns", names, rows))
    for head, counts in enumerate(facts["labels"]):
        out.print(table(f"{record_batch.LABEL} {head}", ("label", "rows", "", " "), bars(counts)))
    if facts["actions"]:
        out.print(table("actions", ("action", "times", "", " "), bars(facts["actions"])))


def _time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _partition(number: str, facts: dict[str, Any]) -> list[str]:
    newest = _time(facts["last_ms"] / 1000) if "last_ms" in facts else ""
    return [number, f"{facts['records']:,}", f"{facts['first']:,}", f"{facts['last']:,}", newest]


def _feature(name: str, facts: dict[str, Any], rows: int) -> list[str]:
    numbers = [f"{facts[each]:,}" for each in ("values", "distinct")]
    share = facts["rows"] / max(rows, 1)  # a source may have columns and no rows
    return [name, _short(facts["type"]), f"{share:.1%}", *numbers, _range(facts), _lengths(facts)]


def _short(type: str) -> str:
    """`fid[]` for `list<fid>`."""
    return f"{_short(type[5:-1])}[]" if type.startswith("list<") else type


def _range(facts: dict[str, Any]) -> str:
    if "slots" in facts:
        low, high = facts["slots"]["min"], facts["slots"]["max"]
        return "" if low is None else f"slot {low}" if low == high else f"slots {low} to {high}"
    return f"{_number(facts['min'])} to {_number(facts['max'])}" if "min" in facts else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _lengths(facts: dict[str, Any]) -> str:
    return spark(list(facts["lengths"].values())) if "lengths" in facts else ""
