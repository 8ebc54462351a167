"""`millrace records convert`: all rows of a source in another format."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from millrace.cli.records.screen import count, progress
from millrace.cli.records.source import dest_settings, is_topic, open_source, read_chain
from millrace.pipelines.files.containers import DEAD_LETTER
from millrace.pipelines.records.convert import BadRecordsError, Conversion, Converted
from millrace.runtime.errors import UserError
from millrace.transforms.recipe.chain import TransformChain


def run(arguments: argparse.Namespace) -> int:
    def make_chain() -> TransformChain | None:
        return read_chain(arguments.recipe)

    make_chain()  # wrong steps show before anything is read
    settings = dest_settings(arguments, arguments.dest)
    if is_topic(arguments.dest):
        raise UserError(
            "DEST", arguments.dest, "is a topic", "convert to a file and send it with `millrace records replay`"
        )
    if arguments.dead_letters is not None and _same_file(arguments.dead_letters, arguments.dest):
        raise UserError("--dead-letters", arguments.dead_letters, "is DEST as well", "name another file")
    source = open_source(arguments, arguments.source)
    if DEAD_LETTER in (settings.format, source.settings.format):
        raise UserError("--records", DEAD_LETTER, "dead letters are no rows", "send them again with `records replay`")
    try:
        with progress("converting", source.size) as advance:
            conversion = Conversion(source, make_chain, arguments.dead_letters, advance)
            converted = conversion.to_file(arguments.dest, settings)
            if arguments.save_pools:
                conversion.save_pools()
    except BadRecordsError as error:
        refused = f"{count(error.refused.counts.total())} cannot be read, so nothing was written: {error}"
        print(f"millrace records: {refused}; --dead-letters FILE sets them apart", file=sys.stderr)
        return 1
    except OSError as error:
        # The file for dead letters fails here as well: the path says which one it is.
        path = error.filename2 or error.filename
        problem = f"cannot be written ({error.strerror or error}{f': {path}' if path else ''})"
        raise UserError("DEST", arguments.dest, problem, "choose another place") from error
    print(json.dumps(_facts(converted)) if arguments.json else _describe(converted, arguments.dest))
    return 0


def _same_file(dead_letters: Path, dest: str) -> bool:
    return "://" not in dest and dead_letters.resolve() == Path(dest).resolve()


def _facts(converted: Converted) -> dict[str, Any]:
    rows = {"rows_read": converted.rows_read, "rows_written": converted.rows_written}
    return rows | {"dead_letters": converted.refused.as_json()}


def _describe(converted: Converted, dest: str) -> str:
    refused = f"\n{count(converted.refused.counts.total())} cannot be read: {converted.refused}"
    refused = refused if converted.refused.counts else ""
    return f"{dest}: {converted.rows_written:,} rows of {converted.rows_read:,}{refused}"
