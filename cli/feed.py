"""`millrace feed`: live or stored events to training batches, on any Beam runner."""

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cli.common import (
    add_command,
    add_kafka_flags,
    add_process_flags,
    announce_ready,
    kafka_connection,
    stop_on_signals,
    topics,
)
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipelines.options import FeedOptions

_EXAMPLE = """\
millrace feed --task examples.feed_ranking:FeedRanking --runner prism
millrace feed --task examples.movies:MovieRanking --runner flink --parallelism=2
millrace feed --task examples.movies:MovieRanking --runner direct --start earliest --until end --output-parquet rows"""

_DESCRIPTION = """\
Joins impressions with the actions on them and writes training batches to the topic train.<model>; what cannot be read
goes to feed.dead-letter. Unbounded on Prism, Flink or Dataflow; with --until or files, bounded, on Direct as well.
Flags that are not listed here go to Beam as they are."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(subparsers, "feed", _DESCRIPTION, _EXAMPLE, _run)
    parser.set_defaults(accepts_unknown=True)
    parser.add_argument("--task", required=True, metavar="PACKAGE.MODULE:CLASS", help="the task to feed")
    parser.add_argument(
        "--runner",
        default="prism",
        metavar="prism|flink|direct|dataflow",
        help="what runs the pipeline (default: prism)",
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("--window-seconds", type=float, help="how long a row waits for an action (default: the task's)")
    rows.add_argument("--negative-rate", type=float, help="share of negatives kept (default: the task's)")
    rows.add_argument("--seed", type=int, help="of the sampling (default: 0)")
    rows.add_argument("--audit", action="store_true", help="add the feature that counts applications of each row")
    source = parser.add_argument_group("source")
    source.add_argument(
        "--start",
        default="group",
        metavar="POSITION",
        help="earliest, latest, group (where the consumer group is, else earliest), time:MILLISECONDS, or JSON like "
        '{"impressions": {"0": 17}, "actions": {"0": 4}} (default: group)',
    )
    source.add_argument(
        "--until",
        metavar="POSITION",
        help="stop there: `end` (as it is now), time:MILLISECONDS or JSON; default: never",
    )
    source.add_argument("--group", metavar="NAME", help="consumer group of committed offsets (default: feed-<model>)")
    source.add_argument("--impression-files", metavar="PATTERN", help="JSON lines in place of Kafka")
    source.add_argument("--action-files", metavar="PATTERN", help="JSON lines in place of Kafka")
    source.add_argument("--output-parquet", type=Path, metavar="DIR", help="Parquet in place of the train topic")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--join-shards", type=int, default=1, help="keys of the join (default: 1)")
    tuning.add_argument("--feed-shards", type=int, default=4, help="partitions of a new train topic (default: 4)")
    tuning.add_argument("--splits", type=int, default=1, help="Kafka readers (default: 1)")
    tuning.add_argument("--poll-seconds", type=float, default=0.1, help="rest of an idle reader (default: 0.1)")
    tuning.add_argument("--timer-seconds", type=float, default=0.2, help="period of the join's timer (default: 0.2)")
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".state/feed"), metavar="DIR", help="logs and checkpoints of the runner"
    )
    add_kafka_flags(parser)
    add_process_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    stop = stop_on_signals()
    from pipelines.kafka_io import HEARTBEAT
    from pipelines.launch import FeedFailedError, run_feed
    from runtime.telemetry import MetricsEndpoint, setup_logging

    setup_logging("feed", arguments.log_level)
    logger = logging.getLogger("millrace.feed")
    endpoint = MetricsEndpoint(arguments.metrics_port, HEARTBEAT.reason)
    began = time.monotonic()
    try:
        counters = run_feed(
            options,
            stop,
            lambda: announce_ready(arguments, metrics=endpoint.address),
            lambda text: logger.info("%s", text),
        )
    except FeedFailedError as error:
        logger.error("the feed failed: %s", error)
        return 1
    finally:
        endpoint.close()
    counts = " ".join(f"{name}={value}" for name, value in sorted(counters.items()))
    logger.info("ended after %.1f s: %s", time.monotonic() - began, counts)
    return 0


def _options(arguments: argparse.Namespace) -> "FeedOptions":
    from pipelines.options import FeedOptions, FileSettings, KafkaSettings, Tuning
    from training.task import load_task

    names = ("window_seconds", "negative_rate", "seed")
    overrides = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    config = load_task(arguments.task).feed_config(audit=arguments.audit, **overrides)
    source: FileSettings | KafkaSettings
    if arguments.impression_files or arguments.action_files:
        if not (arguments.impression_files and arguments.action_files):
            raise UserError("--impression-files", arguments.impression_files, "only one kind of file", "give both")
        source = FileSettings(arguments.impression_files, arguments.action_files)
    else:
        group = arguments.group or f"{arguments.topic_prefix}feed-{config.model}"
        source = KafkaSettings(
            kafka_connection(arguments, check=False), topics(arguments), arguments.start, arguments.until, group
        )
    return FeedOptions(
        config,
        source,
        arguments.output_parquet,
        arguments.runner,
        tuple(arguments.unknown),
        arguments.work_dir,
        Tuning(
            arguments.join_shards,
            arguments.feed_shards,
            arguments.splits,
            arguments.poll_seconds,
            arguments.timer_seconds,
        ),
    )
