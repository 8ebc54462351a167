"""`millrace export`: writes the newest checkpoint as a SavedModel, without a trainer."""

import argparse
import json
from pathlib import Path

from millrace.cli.common import add_command
from millrace.runtime.errors import UserError

_EXAMPLE = "millrace export --task millrace.examples.feed_ranking:FeedRanking --model-dir /tmp/feed --json"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "export",
        "Writes the newest checkpoint of --model-dir as a standalone SavedModel below its exports/ folder. It is not "
        "announced: a running trainer announces its own exports.",
        _EXAMPLE,
        _run,
    )
    parser.add_argument("--task", required=True, metavar="MODULE:CLASS", help="the model, as package.module:ClassName")
    parser.add_argument("--model-dir", required=True, type=Path, metavar="DIR", help="folder of the trainer")
    parser.add_argument("--json", action="store_true", help="print version, step, path and size as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from millrace.training.task import load_task

    task = load_task(arguments.task)
    if not (arguments.model_dir / "checkpoints").is_dir():
        raise UserError("--model-dir", arguments.model_dir, "holds no checkpoints", "name the folder of a trainer")

    from millrace.training.publish.exporter import export_checkpoint

    export = export_checkpoint(task, arguments.model_dir)
    if arguments.json:
        fields = {"version": export.version, "global_step": export.global_step, "size_bytes": export.size_bytes}
        print(json.dumps(fields | {"path": str(export.path)}))
    else:
        print(f"version {export.version} of step {export.global_step}: {export.path} ({export.size_bytes:,} bytes)")
    return 0
