"""`millrace feed backfill`: makes training rows of stored events, in a folder per hour or file pattern."""

import argparse
import json
import logging
import time
from pathlib import Path

from millrace.cli.common import add_command, stop_on_signals
from millrace.cli.feed.flags import add_common_flags, add_row_flags, add_source_flags, feed_options
from millrace.runtime.errors import UserError

_EXAMPLE = """\
millrace feed backfill --task millrace.examples.feed_ranking:FeedRanking --output-parquet rows \\
  --from 2026013100 --to 2026020100
millrace feed backfill --task millrace.examples.feed_ranking:FeedRanking --workers 4 --output-parquet rows \\
    --impression-files '/tmp/feed/{DATE(2026013100, 2026013123)}/impressions*' \\
    --action-files '/tmp/feed/{DATE(2026013100, 2026013123)}/actions*'"""

_DESCRIPTION = """\
Makes training rows of stored events with the graph of the live feed, in units: one per hour of a topic, or one per
expansion of a file pattern. The folder of a unit appears in the output folder when it is complete, with the marker
_SUCCESS. Started again, the command runs the units that are not complete. _SUCCESS in the output folder itself says
that all units are complete."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(subparsers, "feed backfill", _DESCRIPTION, _EXAMPLE, _run)
    parser.set_defaults(accepts_unknown=True)
    add_row_flags(parser)
    source = add_source_flags(parser)
    source.add_argument("--from", dest="first", metavar="YYYYMMDDHH", help="first hour to read from the topics, in UTC")
    source.add_argument("--to", dest="end", metavar="YYYYMMDDHH", help="hour after the last one to read")
    source.add_argument(
        "--output-parquet", type=Path, required=True, metavar="DIR", help="folder that holds the folders of the units"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="units that run at the same time, one process each (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the counters as JSON")
    parser.add_argument(
        "--runner",
        default="direct",
        metavar="direct|prism|flink|dataflow",
        help="what runs each unit (default: direct)",
    )
    add_common_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    options = feed_options(arguments)
    stop = stop_on_signals()
    from millrace.pipelines.feed.backfill import Backfill, file_units, hour_units, parse_hour, run_backfill
    from millrace.pipelines.feed.launch import FeedFailedError
    from millrace.pipelines.feed.options import KafkaSettings
    from millrace.runtime.telemetry import setup_logging

    setup_logging("backfill", arguments.log_level)
    logger = logging.getLogger("millrace.backfill")
    if isinstance(options.source, KafkaSettings):
        first, end = (_needed(arguments, name) for name in ("first", "end"))
        units = tuple(hour_units(options, parse_hour(first, "--from"), parse_hour(end, "--to")))
    else:
        units = tuple(file_units(options))
    backfill = Backfill(units, arguments.output_parquet, arguments.workers)
    began = time.monotonic()

    def tell(name: str, done: int, count: int) -> None:
        left = (time.monotonic() - began) / max(1, done) * (count - done)
        logger.info("%s is done, %d of %d, about %.0f s left", name, done, count, left)

    try:
        counters = run_backfill(backfill, stop, tell)
    except FeedFailedError as error:
        logger.error("a unit failed; complete units stay: %s", error)
        return 1
    if arguments.json:
        print(json.dumps(counters, sort_keys=True))
    counts = " ".join(f"{name}={value}" for name, value in sorted(counters.items()))
    logger.info("%s after %.1f s: %s", "stopped" if stop.is_set() else "ended", time.monotonic() - began, counts)
    return 0


def _needed(arguments: argparse.Namespace, name: str) -> str:
    flag = {"first": "--from", "end": "--to"}[name]
    if not getattr(arguments, name):
        raise UserError(flag, "", "missing", "give the hour as YYYYMMDDHH, or name event files")
    return str(getattr(arguments, name))
