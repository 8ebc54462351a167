"""`millrace checkpoint inspect|verify|reshard|export|import`: works on table files without a trainer."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from millrace.cli.checkpoint import import_dumps
from millrace.cli.common import add_command, at_least_one, tensorflow_import
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.ops.table_files import TableFile

_EXAMPLES = {
    "inspect": "millrace checkpoint inspect /tmp/feed/checkpoints --slots",
    "verify": "millrace checkpoint verify /tmp/feed/checkpoints",
    "reshard": "millrace checkpoint reshard /tmp/feed/checkpoints/1200/tables --num-shards 4 --output /tmp/four-shards",
    "export": """
millrace checkpoint export /tmp/feed/checkpoints/1200/tables --limit 3
millrace checkpoint export /tmp/feed/checkpoints/1200/tables --format parquet --with-state --output /tmp/tables
millrace checkpoint export /tmp/feed/checkpoints/1200/tables --format entry-dump --output /tmp/dumps
""",
    "import": import_dumps.EXAMPLE,
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "checkpoint",
        "Works on the embedding tables of a checkpoint or an export, without a trainer.",
        "\n".join(example.strip() for example in _EXAMPLES.values()),
        _inspect,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="inspect|verify|reshard|export|import")
    inspect = _add_action(
        actions, "inspect", "Says what each table holds. Exit code 1 when a file is damaged.", _inspect
    )
    inspect.add_argument("--slots", action="store_true", help="count the entries of each slot too")
    inspect.add_argument("--json", action="store_true", help="one JSON object per table")
    verify = _add_action(
        actions, "verify", "Reads every byte. Exit code 1 when a file is damaged: it names file and block.", _verify
    )
    verify.add_argument("--json", action="store_true", help="one JSON object per file")
    _add_reshard(actions)
    _add_export(actions)
    importing = add_command(actions, "import", import_dumps.DESCRIPTION, _EXAMPLES["import"], import_dumps.run)
    import_dumps.add_flags(importing)


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    description: str,
    run: Callable[[argparse.Namespace], int],
    path_help: str = "a table file, or a folder with some at any depth",
) -> argparse.ArgumentParser:
    parser = add_command(actions, name, description, _EXAMPLES[name], run)
    parser.add_argument("path", type=Path, metavar="PATH", help=path_help)
    return parser


def _add_reshard(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_action(
        actions,
        "reshard",
        "Writes the tables of a snapshot anew for another number of parameter servers: shard s gets the ids with\n"
        "floormod(id, N) == s. State of occurrence filters is left out: they start empty.",
        _reshard,
        "the folder of one snapshot, with all of its files",
    )
    parser.add_argument("--num-shards", type=at_least_one, required=True, metavar="N", help="number of shards")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder, new or without table files")
    parser.add_argument("--json", action="store_true", help="print the written files as one JSON object")


def _add_export(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add_action(
        actions,
        "export",
        "Writes the entries of each table in columns: fid, slot, timestamp (Unix seconds), segment_0, segment_1, ...\n"
        "In CSV the columns of a segment are segment_0_0, segment_0_1, ...\n"
        "entry-dump: one TFRecord file per table with Monolith's EntryDump records, always with optimizer state.",
        _export,
        "a table file, or the folder of one snapshot",
    )
    parser.add_argument(
        "--format",
        choices=("json", "csv", "parquet", "entry-dump"),
        default="json",
        help="json: one line per entry (default)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for one file per table (default: stdout, for json alone)"
    )
    parser.add_argument("--with-state", action="store_true", help="optimizer state too: state_0, state_1, ...")
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="at most N entries per table (default: all)")
    parser.add_argument("--json", action="store_true", help="with --output: print the written files as one JSON object")


def _table_files(path: Path) -> list[Path]:
    """Table files at or below `path`.

    Raises:
      UserError: there are none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.table"))
    if not files:
        raise UserError("path", path, "no table files (*.table)", "give a table file or the folder of a checkpoint")
    return files


def _files_of_one_snapshot(path: Path) -> list[Path]:
    files = _table_files(path)
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise UserError("path", path, f"holds {len(folders)} snapshots: {', '.join(folders)}", "name one of them")
    return files


def _check_output(folder: Path | None) -> None:
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError("--output", folder, "is no folder", "name a folder, which may be new")


@contextmanager
def _progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; to be called with how many more of the `total` bytes are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(description, total=total)
        yield lambda done: bar.advance(line, done)


def _reader() -> ModuleType:
    """millrace.ops.table_files, with TensorFlow's search for devices done: it writes lines of its own to stderr."""
    with tensorflow_import():
        import tensorflow as tf

        from millrace.ops import table_files

        tf.config.list_physical_devices()
    return table_files


def _size(files: Sequence[Path]) -> int:
    """Bytes of the files; UserError when one is gone: a trainer removes its old checkpoints."""
    try:
        return sum(file.stat().st_size for file in files)
    except FileNotFoundError as error:
        raise UserError("path", error.filename, "it was removed meanwhile", "run the command again") from error


def _verified(files: Sequence[Path]) -> "list[tuple[Path, TableFile | None, int, str]]":
    """(file, its header, number of entries, "") of each file, or (file, None, 0, what is wrong with it)."""
    reader = _reader()
    results: list[tuple[Path, TableFile | None, int, str]] = []
    with _progress("reading", _size(files)) as advance:
        for file in files:
            size = _size([file])
            try:
                results.append((file, *reader.verify_file(file), ""))
            except reader.TableFileError as error:
                results.append((file, None, 0, str(error)))
            advance(size)
    return results


def _verify(arguments: argparse.Namespace) -> int:
    results = _verified(_table_files(arguments.path))
    checkpoints = _verified_manifests(arguments.path)
    for folder, problem in checkpoints.items():
        if arguments.json:
            print(json.dumps({"checkpoint": str(folder), "ok": not problem, "problem": problem}))
        else:
            print(f"DAMAGED  {problem}" if problem else f"ok       {folder}: every file is as its manifest says")
    for file, header, entries, problem in results:
        if arguments.json:
            facts = {"file": str(file), "ok": header is not None, "entries": entries, "problem": problem}
            print(json.dumps(facts))
        else:
            print(f"DAMAGED  {problem}" if header is None else f"ok       {file}: {entries:,} entries")
    return 1 if any(header is None for _, header, _, _ in results) or any(checkpoints.values()) else 0


def _verified_manifests(path: Path) -> dict[Path, str]:
    """{folder of a checkpoint at, above or below `path`: what is wrong with its files, empty when nothing is}."""
    from millrace.training.state.checkpoint import CheckpointError, verify_checkpoint

    folder = path if path.is_dir() else path.parent
    found = [*folder.rglob("manifest.json"), *folder.parent.glob("manifest.json")]
    problems = {}
    for manifest in sorted(set(found)):
        try:
            verify_checkpoint(manifest.parent)
            problems[manifest.parent] = ""
        except (CheckpointError, OSError) as error:
            problems[manifest.parent] = str(error)
    return problems


def _inspect(arguments: argparse.Namespace) -> int:
    tables: dict[tuple[Any, ...], list[tuple[TableFile, int]]] = {}
    damaged = []
    for file, header, entries, problem in _verified(_table_files(arguments.path)):
        if header is None:
            damaged.append({"file": str(file), "problem": problem})
        else:
            kind = (file.parent, header.table, header.form, header.num_shards, header.segments)
            tables.setdefault(kind, []).append((header, entries))
    for of_table in tables.values():
        facts = _facts(of_table)
        if arguments.slots:
            facts["slots"] = _slot_counts([header.path for header, _ in of_table])
        print(json.dumps(facts) if arguments.json else _describe(facts))
    for facts in damaged:
        print(json.dumps(facts) if arguments.json else f"DAMAGED  {facts['problem']}")
    return 1 if damaged else 0


def _facts(of_table: "list[tuple[TableFile, int]]") -> dict[str, Any]:
    """Of the files of one table in one folder, each with its number of entries."""
    first = of_table[0][0]
    files = []
    for file, entries in of_table:
        place = {"shard": file.shard, "part": file.part, "num_parts": file.num_parts}
        files.append({"file": file.path.name, **place, "entries": entries, "bytes": file.path.stat().st_size})
    return {
        "table": first.table,
        "folder": str(first.path.parent),
        "entries": sum(entries for _, entries in of_table),
        "dim": first.dim,
        "form": first.form,
        "newest_timestamp": max(file.newest_timestamp for file, _ in of_table),
        "bytes": _size([file.path for file, _ in of_table]),
        "num_shards": first.num_shards,
        "segments": [dataclasses.asdict(segment) for segment in first.segments],
        "files": files,
    }


def _slot_counts(files: Sequence[Path]) -> dict[int, int]:
    """{slot: entries}, ascending."""
    import numpy as np

    from millrace.ops.table_files import pages
    from millrace.transforms.batch.fid import MAX_SLOT, slot_v2

    counts = np.zeros(MAX_SLOT + 1, np.int64)
    with _progress("counting", _size(files)) as advance:
        for file in files:
            for page in pages(file):
                counts += np.bincount(slot_v2(page.ids), minlength=len(counts))
            advance(file.stat().st_size)
    return {int(slot): int(counts[slot]) for slot in np.flatnonzero(counts)}


def _describe(facts: dict[str, Any]) -> str:
    newest = datetime.fromtimestamp(facts["newest_timestamp"], UTC)
    lines = [
        f"{facts['table']}: {facts['entries']:,} entries, dim {facts['dim']}, {facts['form']} form, "
        f"{facts['bytes']:,} bytes, newest {newest:%Y-%m-%d %H:%M:%S} UTC, in {facts['folder']}"
    ]
    for i, segment in enumerate(facts["segments"]):
        state = f"{segment['optimizer']} (+{segment['state_floats']} floats per entry)"
        lines.append(f"  segment {i}: dim {segment['dim']}, {state}, {segment['compressor']}")
    for file in facts["files"]:
        place = f"shard {file['shard']} of {facts['num_shards']}, part {file['part']} of {file['num_parts']}"
        lines.append(f"  {place}: {file['entries']:,} entries, {file['bytes']:,} bytes, {file['file']}")
    lines += [f"  slot {slot}: {entries:,} entries" for slot, entries in facts.get("slots", {}).items()]
    return "\n".join(lines)


def _reshard(arguments: argparse.Namespace) -> int:
    files = _files_of_one_snapshot(arguments.path)
    _check_output(arguments.output)
    if any(arguments.output.glob("*.table")):
        raise UserError("--output", arguments.output, "holds table files already", "name another folder")
    reader = _reader()
    try:
        with _progress("writing", None):
            written = reader.reshard(files, arguments.output, arguments.num_shards)
    except reader.TableFileError as error:
        for file in arguments.output.glob("*.table"):  # there were none: another attempt may use the folder
            file.unlink()
        if str(arguments.output) in str(error):  # what cannot be written, and not what was read
            remedy = "free space there, or name another folder"
            raise UserError("--output", arguments.output, str(error), remedy) from error
        raise UserError("path", arguments.path, str(error), "give the folder of a whole snapshot") from error
    if arguments.json:
        print(json.dumps({"num_shards": arguments.num_shards, "files": [str(file) for file in written]}))
    else:
        print("\n".join(map(str, written)))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.output is None and arguments.format != "json":
        raise UserError("--output", "", f"not given, and {arguments.format} needs it", "name a folder")
    _check_output(arguments.output)
    files = _files_of_one_snapshot(arguments.path)
    reader = _reader()
    from millrace.cli.checkpoint.export import ExportOptions, export_table, file_name, new_file

    options = ExportOptions(arguments.format, arguments.with_state, arguments.limit)
    written = []
    try:
        tables: dict[str, list[TableFile]] = {}
        for file in map(reader.read_header, files):
            tables.setdefault(file.table, []).append(file)
        if arguments.output is None:
            for of_table in tables.values():
                export_table(of_table, sys.stdout, options, progress=lambda _: None)
            return 0
        arguments.output.mkdir(parents=True, exist_ok=True)
        with _progress("exporting", _size(files)) as advance:
            for table, of_table in tables.items():
                path = arguments.output / file_name(table, arguments.format)
                with new_file(path, text=arguments.format == "json") as output:
                    entries = export_table(of_table, output, options, advance)
                written.append({"table": table, "file": str(path), "entries": entries})
    except reader.TableFileError as error:
        raise UserError("path", arguments.path, str(error), "see `millrace checkpoint verify`") from error
    except OSError as error:
        if arguments.output is None:
            raise  # stdout is not ours to name
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError("--output", arguments.output, problem, "free space there, or name another folder") from error
    if arguments.json:
        print(json.dumps({"format": arguments.format, "files": written}))
    else:
        print("\n".join(f"{facts['table']}: {facts['entries']:,} entries, {facts['file']}" for facts in written))
    return 0
