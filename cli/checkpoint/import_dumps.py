"""`millrace checkpoint import`: the tables of a Monolith checkpoint become the first checkpoint of a model."""

import argparse
import json
from pathlib import Path

from millrace.cli.common import tensorflow_import
from millrace.runtime.errors import UserError

EXAMPLE = """
millrace checkpoint import --task millrace.examples.feed_ranking:FeedRanking --model-dir /tmp/imported \\
  --table user=/tmp/monolith/user --table item=/tmp/monolith/item
"""
DESCRIPTION = (
    "Writes a checkpoint at step 0 whose tables hold the entries of Monolith's EntryDump files, optimizer\n"
    "state included; `millrace train --online --model-dir DIR` goes on from it. Dense weights get their first values.\n"
    "Tables that no --table names are empty."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--task, --table, --model-dir and --json."""
    parser.add_argument("--task", required=True, metavar="MODULE:CLASS", help="the model, as package.module:ClassName")
    parser.add_argument(
        "--table",
        action="append",
        type=_table,
        required=True,
        metavar="NAME=PATH",
        help="table of the task, and its file, or the folder of its files <anything>-00000-of-00002 and so on; of a "
        "folder with files of several tables those that begin with NAME- are read; once per table",
    )
    parser.add_argument(
        "--model-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="the trainer's folder; it must not hold a checkpoint yet",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the number of EntryDump records read per table as one JSON object"
    )


def run(arguments: argparse.Namespace) -> int:
    """Imports; returns the exit code."""
    files = _files(arguments.table)
    with tensorflow_import():
        import tensorflow as tf

        from millrace.training.state.import_dumps import import_checkpoint
        from millrace.training.task import load_task

        tf.config.list_physical_devices()  # it writes lines of its own to stderr
    records = import_checkpoint(load_task(arguments.task), files, arguments.model_dir)
    if arguments.json:
        print(json.dumps({"model_dir": str(arguments.model_dir), "records": records}))
    else:
        print("\n".join(f"{table}: {count:,} entries" for table, count in records.items()))
    return 0


def _table(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=PATH, such as item=/tmp/monolith/item")
    return name, Path(path)


def _files(tables: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for name, folder in tables:
        if name in files:
            raise UserError("--table", name, "given twice", "name one folder per table")
        if folder.is_file():
            files[name] = [folder]
        elif folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.is_file())
            # A folder may hold the files of several tables: those that bear this table's name are meant.
            files[name] = [path for path in found if path.name.startswith(f"{name}-")] or found
        else:
            raise UserError(
                "--table", f"{name}={folder}", "there is no such file or folder", "name what holds its files"
            )
    return files
