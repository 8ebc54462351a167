"""`millrace feed`: makes training batches of live or stored events, on any Beam runner."""

import argparse
import logging
import threading
import time
from pathlib import Path

from millrace.cli.common import (
    RECIPES,
    add_command,
    announce_ready,
    kafka_connection,
    metrics_endpoint,
    stop_on_signals,
    topics,
)
from millrace.cli.feed.flags import add_common_flags, add_row_flags, add_source_flags, feed_options

_EXAMPLE = f"""\
millrace feed --task millrace.examples.feed_ranking:FeedRanking --runner prism
millrace feed --task millrace.examples.movies:MovieRanking --runner flink --parallelism=2
millrace feed --task millrace.examples.feed_ranking:FeedRanking --recipe {RECIPES}/full.yaml
millrace feed --task millrace.examples.movies:MovieRanking --runner direct --output-parquet rows \\
  --start earliest --until end"""

_DESCRIPTION = """\
Joins impressions with the actions on them, runs the steps of a recipe, and writes training batches to the topic
train.<model>. Records that cannot be read go to the topic feed.dead-letter. A feed of topics runs for ever, on Prism,
Flink or Dataflow; with --until, or with files, it ends and runs on Direct as well. `millrace feed backfill` makes
hourly folders of stored events. Flags that are not listed here go to Beam as they are."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(subparsers, "feed", _DESCRIPTION, _EXAMPLE, _run)
    parser.set_defaults(accepts_unknown=True)
    add_row_flags(parser)
    source = add_source_flags(parser)
    source.add_argument(
        "--start",
        default="group",
        metavar="POSITION",
        help="where to begin: earliest, latest, group (the offsets of the consumer group, else earliest), "
        "time:MILLISECONDS, or JSON like "
        '{"impressions": {"0": 17}, "actions": {"0": 4}} (default: group)',
    )
    source.add_argument(
        "--until",
        metavar="POSITION",
        help="where to stop: end (as it is now), time:MILLISECONDS or JSON as for --start (default: never)",
    )
    source.add_argument(
        "--create-topics",
        action="store_true",
        help="create the topics of events that are missing, with as many partitions as --feed-shards says",
    )
    source.add_argument(
        "--output-parquet",
        type=Path,
        metavar="DIR",
        help="write Parquet files to this folder in place of the train topic",
    )
    parser.add_argument(
        "--runner",
        default="prism",
        metavar="prism|flink|direct|dataflow",
        help="what runs the pipeline (default: prism)",
    )
    add_common_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    options = feed_options(arguments)
    stop = stop_on_signals()
    from millrace.pipelines.feed.launch import FeedFailedError, run_feed
    from millrace.pipelines.kafka.process import HEARTBEAT
    from millrace.runtime.telemetry import WAITS, setup_logging

    setup_logging("feed", arguments.log_level)
    logger = logging.getLogger("millrace.feed")
    # A reader that stands still while brokers are away would not be helped by a new start.
    endpoint = metrics_endpoint(arguments, lambda: None if WAITS.words() else HEARTBEAT.reason())
    began = time.monotonic()
    try:
        if arguments.create_topics:
            _create_event_topics(arguments, stop)
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


def _create_event_topics(arguments: argparse.Namespace, stop: threading.Event) -> None:
    from millrace.runtime.kafka_client import ensure_topic
    from millrace.runtime.outage import while_away

    connection, names = kafka_connection(arguments, stop=stop), topics(arguments)

    def ensure() -> None:
        for topic in (names.impressions, names.actions):
            ensure_topic(connection, topic, partitions=arguments.feed_shards)

    while_away(ensure, f"Kafka at {connection.bootstrap_servers}", stop)
