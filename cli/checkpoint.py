"""`millrace checkpoint inspect|verify|dump`: looks into table files without a trainer."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from cli.common import add_command
from runtime.errors import UserError

_EXAMPLE = """
millrace checkpoint inspect /tmp/feed/checkpoints
millrace checkpoint verify  /tmp/feed/checkpoints
millrace checkpoint dump    /tmp/feed/checkpoints --limit 3
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers, "checkpoint", "Inspects, verifies or dumps the embedding tables of a checkpoint.", _EXAMPLE, _run
    )
    parser.add_argument(
        "action",
        choices=("inspect", "verify", "dump"),
        help="inspect: one line a table; verify: read every byte, exit code 1 on damage; dump: one JSON line an entry",
    )
    parser.add_argument("path", type=Path, help="a table file, or a folder with some at any depth")
    parser.add_argument("--limit", type=int, default=-1, help="dump: at most this many entries a table (default: all)")
    parser.add_argument("--json", action="store_true", help="inspect, verify: one JSON line a table")


def table_files(path: Path) -> list[Path]:
    """Table files at or below `path`.

    Raises:
      UserError: there are none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.table"))
    if not files:
        raise UserError("path", path, "no table files (*.table)", "give a table file or the folder of a checkpoint")
    return files


def _run(arguments: argparse.Namespace) -> int:
    files = table_files(arguments.path)
    import tensorflow as tf

    from ops import library

    read = library.load().millrace_read_table_file
    damaged = 0
    for path in files:
        try:
            file = read(path=str(path), limit=arguments.limit if arguments.action == "dump" else 0)
        except tf.errors.OpError as error:
            damaged += 1
            _report({"file": str(path), "ok": False, "problem": _clean(error.message)}, arguments)
            continue
        if arguments.action == "dump":
            for line in _entries(file):
                print(line)
            continue
        dim, state_floats, count = file.numbers.numpy().tolist()
        facts = {"file": str(path), "ok": True, "table": file.table.numpy().decode(), "entries": count, "dim": dim}
        facts |= {"optimizer": file.optimizer.numpy().decode(), "state_floats": state_floats}
        _report(facts | {"bytes": path.stat().st_size}, arguments)
    return 1 if damaged else 0


def _clean(message: str) -> str:
    """Without TensorFlow's frame around the library's own words."""
    return message.rpartition("}} ")[2].partition(" [Op:")[0]


def _report(facts: dict[str, object], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(facts))
    elif not facts["ok"]:
        print(f"DAMAGED  {facts['problem']}")
    elif arguments.action == "verify":
        print(f"ok       {facts['file']}: {facts['entries']} entries")
    else:
        print(
            f"{facts['table']}: {facts['entries']:,} entries, dim {facts['dim']}, {facts['optimizer']} "
            f"(+{facts['state_floats']} floats an entry), {facts['bytes']:,} bytes, {facts['file']}"
        )


def _entries(file: object) -> Iterator[str]:
    table = file.table.numpy().decode()  # type: ignore[attr-defined]
    columns = (file.ids.numpy(), file.timestamps.numpy(), file.values.numpy())  # type: ignore[attr-defined]
    for fid, timestamp, values in zip(*columns, strict=True):
        entry = {"table": table, "fid": int(fid), "slot": int(fid) >> 48 & 0x7FFF, "timestamp": int(timestamp)}
        yield json.dumps(entry | {"values": [float(str(value)) for value in values]})
