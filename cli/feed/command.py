"""`millrace feed`: live or stored events to training batches, on any Beam runner."""

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.cli.common import (
    FRAME_HEADERS,
    add_command,
    add_kafka_flags,
    add_process_flags,
    announce_ready,
    frame_options,
    kafka_connection,
    stop_on_signals,
    topics,
)
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings, RecordFiles, RecordFormat
    from millrace.transforms.feed.config import FeedConfig

_EXAMPLE = """\
millrace feed --task millrace.examples.feed_ranking:FeedRanking --runner prism
millrace feed --task millrace.examples.movies:MovieRanking --runner flink --parallelism=2
millrace feed --task millrace.examples.feed_ranking:FeedRanking --recipe examples/recipes/full.yaml
millrace feed --task millrace.examples.movies:MovieRanking --runner direct --output-parquet rows \\
  --start earliest --until end"""

_DESCRIPTION = """\
Joins impressions with the actions on them, runs the steps of a recipe, and writes training batches to the topic
train.<model>; what cannot be read goes to feed.dead-letter. Unbounded on Prism, Flink or Dataflow; with --until or
files, bounded, on Direct as well. `millrace feed backfill --help` tells of stored events in hourly folders.
Flags that are not listed here go to Beam as they are."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(subparsers, "feed", _DESCRIPTION, _EXAMPLE, _run)
    parser.set_defaults(accepts_unknown=True)
    add_row_flags(parser)
    source = add_source_flags(parser)
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
    source.add_argument("--output-parquet", type=Path, metavar="DIR", help="Parquet in place of the train topic")
    parser.add_argument(
        "--runner",
        default="prism",
        metavar="prism|flink|direct|dataflow",
        help="what runs the pipeline (default: prism)",
    )
    add_common_flags(parser)


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="PACKAGE.MODULE:CLASS", help="the task to feed; needed")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--recipe", type=Path, metavar="FILE", help="steps that rows go through, YAML or JSON")
    rows.add_argument("--allowed-lateness-seconds", type=float, help="how long a row is remembered after its window")
    rows.add_argument(
        "--routed-actions",
        metavar="REASONS",
        help="actions that leave by the side, some of late,orphan,before_impression,duplicate,superseded,ignored "
        "(default: late)",
    )
    rows.add_argument("--window-seconds", type=float, help="how long a row waits for an action (default: the task's)")
    rows.add_argument("--negative-rate", type=float, help="share of negatives kept (default: the task's)")
    rows.add_argument("--seed", type=int, help="of the sampling (default: 0)")
    rows.add_argument("--audit", action="store_true", help="add the feature that counts applications of each row")


def add_source_flags(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    source = parser.add_argument_group("source")
    source.add_argument("--group", metavar="NAME", help="consumer group of committed offsets (default: feed-<model>)")
    source.add_argument("--impression-files", metavar="PATTERN", help="JSON lines in place of Kafka")
    source.add_argument("--action-files", metavar="PATTERN", help="JSON lines in place of Kafka")
    source.add_argument(
        "--records",
        metavar="FORMAT",
        help="read records, which are not joined, in place of events: example, example_batch, instance, arrow ...",
    )
    source.add_argument("--records-topic", metavar="TOPIC", help="topic of the records")
    source.add_argument("--record-files", metavar="PATTERN", help="files of records in place of a topic")
    source.add_argument(
        "--frames",
        metavar="HEADERS",
        help=f"headers of framed records, some of {', '.join(FRAME_HEADERS)} (default: a Kafka value is one record, "
        "and files have sort-id)",
    )
    return source


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--join-shards", type=int, default=1, help="keys of the join (default: 1)")
    tuning.add_argument("--feed-shards", type=int, default=4, help="partitions of a new train topic (default: 4)")
    tuning.add_argument("--splits", type=int, default=1, help="Kafka readers (default: 1)")
    tuning.add_argument("--poll-seconds", type=float, default=0.1, help="rest of an idle reader (default: 0.1)")
    tuning.add_argument("--timer-seconds", type=float, default=0.2, help="period of the join's timer (default: 0.2)")
    tuning.add_argument(
        "--max-pending-rows",
        type=int,
        metavar="ROWS",
        help="rows that a join shard holds in memory; the oldest beyond that lie in files (default: all in memory)",
    )
    tuning.add_argument(
        "--spill-dir", type=Path, metavar="DIR", help="of these files, on a local disk; /tmp may lie in memory"
    )
    tuning.add_argument(
        "--max-drop-ratio",
        type=float,
        default=0.5,
        help="stop when a larger share of a partition's newest records cannot be read; 1: never (default: 0.5)",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".state/feed"), metavar="DIR", help="logs and checkpoints of the runner"
    )
    add_kafka_flags(parser)
    add_process_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    options = feed_options(arguments)
    stop = stop_on_signals()
    from millrace.pipelines.feed.launch import FeedFailedError, run_feed
    from millrace.pipelines.kafka.process import HEARTBEAT
    from millrace.runtime.telemetry import MetricsEndpoint, setup_logging

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


def feed_options(arguments: argparse.Namespace) -> "FeedOptions":
    from millrace.pipelines.feed.options import FeedOptions, Tuning
    from millrace.training.task import load_task

    if not arguments.task:
        raise UserError("--task", "", "missing", "name the task as PACKAGE.MODULE:CLASS")
    names = ("window_seconds", "allowed_lateness_seconds", "negative_rate", "seed")
    overrides: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.routed_actions is not None:
        overrides["routed_actions"] = tuple(filter(None, arguments.routed_actions.split(",")))
    config = load_task(arguments.task).feed_config(audit=arguments.audit, **overrides)
    return FeedOptions(
        config,
        _source(arguments, config.model),
        recipe=_recipe(arguments.recipe, config),
        runner=arguments.runner,
        beam_flags=tuple(arguments.unknown),
        work_folder=arguments.work_dir,
        tuning=Tuning(
            arguments.join_shards,
            arguments.feed_shards,
            arguments.splits,
            arguments.poll_seconds,
            arguments.timer_seconds,
            arguments.max_drop_ratio,
            arguments.max_pending_rows,
            arguments.spill_dir,
        ),
        parquet=arguments.output_parquet,
    )


def _source(arguments: argparse.Namespace, model: str) -> "FileSettings | KafkaSettings | RecordFiles":
    from millrace.pipelines.feed.options import FileSettings, KafkaSettings, RecordFiles

    format = _record_format(arguments)
    if format and arguments.record_files:
        return RecordFiles(arguments.record_files, format)
    if arguments.impression_files or arguments.action_files:
        if not (arguments.impression_files and arguments.action_files):
            raise UserError("--impression-files", arguments.impression_files, "only one kind of file", "give both")
        return FileSettings(arguments.impression_files, arguments.action_files)
    return KafkaSettings(
        kafka_connection(arguments, check=False),
        topics(arguments),
        getattr(arguments, "start", "earliest"),
        getattr(arguments, "until", "end"),
        arguments.group or f"{arguments.topic_prefix}feed-{model}",
        (arguments.records_topic, format) if format else None,
    )


def _record_format(arguments: argparse.Namespace) -> "RecordFormat | None":
    """What --records and --frames say; None without them."""
    from millrace.pipelines.feed.options import RecordFormat
    from millrace.pipelines.files.format import check_format

    if not arguments.records:
        for flag in ("records_topic", "record_files", "frames"):
            if getattr(arguments, flag):
                raise UserError("--records", "", "missing", f"say of which format the records of --{flag} are")
        return None
    if bool(arguments.records_topic) == bool(arguments.record_files):
        raise UserError("--records-topic", arguments.records_topic or "", "or --record-files", "give one of them")
    check_format(arguments.records, "--records", files=bool(arguments.record_files))
    return RecordFormat(arguments.records, frame_options(arguments.frames))


def _recipe(path: Path | None, config: "FeedConfig") -> bytes:
    """The recipe as a message, checked; empty without one."""
    if path is None:
        return b""
    from millrace.pipelines.feed.rows_stage import RowsStageFactory
    from millrace.transforms.recipe.chain import TransformChain

    recipe = TransformChain.read(str(path)).config.SerializeToString()
    try:
        RowsStageFactory(config, recipe)
    except UserError as error:
        raise UserError("--recipe", path, error.problem, error.remedy) from error
    return recipe
