"""`millrace records`: shows, counts, converts, sends and compares the records of files and topics."""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

from millrace.cli.common import RECIPES, above_zero, add_command, at_least_one
from millrace.cli.records.source import SOURCES, add_records_flags

_DESCRIPTION = f"""\
Shows, counts, converts, sends and compares records.
{SOURCES}"""

_PLACES = {"DEST": "a path"}

_EXAMPLES = {
    "head": """
millrace records head topic:train.feed -n 3 --fids
millrace records head '/data/{DATE(20260101, 20260107)}/part-*' --records instance --where rows.yaml
zcat part-3.jsonl.gz | millrace records head - --records json""",
    "stat": """
millrace records stat topic:train.feed --limit 100000
millrace records stat 'rows/*.parquet' --json""",
    "convert": f"""
millrace records convert instances.snappy --records instance rows.parquet --dead-letters bad.parquet
millrace records convert rows.parquet examples.tfrecord.gz --to example --recipe {RECIPES}/full.yaml""",
    "replay": """
millrace records replay topic:train.feed train.copy --start time:1767225600000 --rate 1000
millrace records replay topic:feed.dead-letter --from-dead-letters --reason bad_timestamp""",
    "diff": """
millrace records diff rows.parquet topic:train.feed
millrace records diff before.jsonl after.jsonl --key request_id --json""",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    examples = "\n".join(example.strip() for example in _EXAMPLES.values())
    parser = add_command(subparsers, "records", _DESCRIPTION, examples, _run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(_EXAMPLES))
    _add_head(actions)
    _add_stat(actions)
    _add_convert(actions)
    _add_replay(actions)
    _add_diff(actions)


def _run(arguments: argparse.Namespace) -> int:
    """Imports what the action needs, and only that."""
    run: Callable[[argparse.Namespace], int] = importlib.import_module(f"millrace.cli.records.{arguments.action}").run
    return run(arguments)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, description: str, *positionals: str
) -> argparse.ArgumentParser:
    parser = add_command(actions, name, description, _EXAMPLES[name], _run)
    for each in positionals:
        parser.add_argument(each.lower(), metavar=each, help=_PLACES.get(each, "a path, a pattern, topic:NAME or -"))
    return parser


def _add_head(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(actions, "head", f"Prints the first rows, one JSON object per line.\n{SOURCES}", "SOURCE")
    parser.add_argument(
        "-n", "--limit", type=at_least_one, metavar="N", help="number of rows (default: 10, in a table 3)"
    )
    parser.add_argument("--format", choices=("json", "table"), default="json", help="(default: %(default)s)")
    parser.add_argument("--columns", type=_names, metavar="NAMES", help="only these columns, with commas between them")
    parser.add_argument("--fids", action="store_true", help='show fids as "slot/signature" in place of numbers')
    parser.add_argument("--where", type=Path, metavar="FILE", help="apply the steps of this recipe to the rows first")
    add_records_flags(parser)


def _add_stat(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        actions,
        "stat",
        "Counts records, rows and dead letters, and describes each column: rows that have it, values, distinct values\n"
        f"(estimated if there are 4,096 or more), range, lengths of lists.\n{SOURCES}",
        "SOURCE",
    )
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="stop after the batch that holds the N-th row")
    parser.add_argument("--where", type=Path, metavar="FILE", help="apply the steps of this recipe to the rows first")
    parser.add_argument("--json", action="store_true", help="print the statistics as one JSON object")
    add_records_flags(parser)


def _add_convert(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        actions,
        "convert",
        "Writes all rows to one file. The end of DEST tells its format: .parquet, .avro, .arrow, .jsonl or .tfrecord\n"
        "(tf.Example, or what --to says); other files hold framed records and need --to. A further end .snappy, .zst,\n"
        ".zlib or .gz compresses a file of records. DEST appears whole or not at all: when records cannot be read and\n"
        "--dead-letters is not given, there is no DEST, and the exit code is 1.\n" + SOURCES,
        "SOURCE",
        "DEST",
    )
    parser.add_argument("--to", metavar="FORMAT", help="format of DEST, where its name does not tell")
    parser.add_argument(
        "--to-frames", metavar="HEADERS", help="headers of the framed records of DEST (default: sort-id)"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="steps that rows go through, YAML or JSON")
    parser.add_argument(
        "--save-pools",
        action="store_true",
        help="at the end write the item pools of generate_negatives to its snapshot_folder",
    )
    parser.add_argument(
        "--dead-letters", type=Path, metavar="FILE", help="Parquet file for the records that cannot be read"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    add_records_flags(parser)


def _add_replay(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        actions,
        "replay",
        "Sends records to a topic unchanged, with their keys and headers; those of a topic keep their partitions if\n"
        "both topics have as many. The rows of files of rows become Arrow blocks, or what --to says. With\n"
        "--from-dead-letters refused records go back to the topic and partition where they came from, or to TOPIC.\n"
        "Exit code 1 when a record was not delivered.\n" + SOURCES,
        "SOURCE",
    )
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="an existing topic")
    parser.add_argument("--from-dead-letters", action="store_true", help="SOURCE holds dead letters")
    parser.add_argument(
        "--reason", type=_names, default=[], metavar="REASONS", help="send only dead letters of these reasons"
    )
    parser.add_argument(
        "--to", default="arrow", metavar="FORMAT", help="format of the rows of files of rows (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=above_zero, metavar="N", help="records per second (default: as fast as possible)"
    )
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="send no more than N records")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    add_records_flags(parser)


def _add_diff(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        actions,
        "diff",
        "Compares rows: which only A has, which only B has, and which columns of the others differ. Rows are paired\n"
        "by where they come from (file or partition, offset, row), or by the columns of --key; then where they come\n"
        f"from is ignored. The exit code is 1 when they differ.\n{SOURCES}",
        "A",
        "B",
    )
    parser.add_argument("--key", type=_names, metavar="NAMES", help="columns by which rows are paired")
    parser.add_argument("--ordered", action="store_true", help="equal rows in another order count as a difference")
    parser.add_argument(
        "--limit", type=at_least_one, default=3, metavar="N", help="examples of each kind (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--records-b", metavar="FORMAT", help="format of B (default: as its name tells, else as A)")
    add_records_flags(parser)


def _names(text: str) -> list[str]:
    """argparse type: names with commas between them."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' names nothing; write NAME[,NAME]")
    return found
