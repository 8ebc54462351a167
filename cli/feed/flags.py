"""The flags that `millrace feed` and `millrace feed backfill` share, and the options of a feed that they stand for."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.cli.common import (
    FRAME_HEADERS,
    add_kafka_flags,
    add_process_flags,
    add_tf_features_flag,
    frame_options,
    kafka_connection,
    topics,
)
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.pipelines.feed.options import FeedOptions, FileSettings, KafkaSettings, RecordFiles, RecordFormat
    from millrace.transforms.feed.config import FeedConfig


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """--task, and what rows are made of events: --recipe, --window-seconds and so on."""
    parser.add_argument("--task", metavar="PACKAGE.MODULE:CLASS", help="the task whose rows are made (required)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--recipe", type=Path, metavar="FILE", help="steps that rows pass, as YAML or JSON")
    rows.add_argument(
        "--allowed-lateness-seconds",
        type=float,
        metavar="SECONDS",
        help="how long a row is remembered after its window, so that late and repeated events are recognised",
    )
    rows.add_argument(
        "--routed-actions",
        metavar="REASONS",
        help="which actions that join no row go to the topic feed.routed-actions, some of late,orphan,"
        "before_impression,duplicate,superseded,ignored (default: late)",
    )
    rows.add_argument(
        "--window-seconds", type=float, metavar="SECONDS", help="how long a row waits for actions (default: the task's)"
    )
    rows.add_argument(
        "--negative-rate",
        type=float,
        metavar="SHARE",
        help="share of negative rows that are kept (default: the task's)",
    )
    rows.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: 0)")
    rows.add_argument("--audit", action="store_true", help="add a feature that counts how often each row was trained")


def add_source_flags(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """What a feed reads; returns the group, to which a command adds where to begin and to end."""
    source = parser.add_argument_group("source")
    source.add_argument("--group", metavar="NAME", help="consumer group of committed offsets (default: feed-<model>)")
    source.add_argument(
        "--impression-files", metavar="PATTERN", help="JSON-lines files of impressions, in place of a topic"
    )
    source.add_argument("--action-files", metavar="PATTERN", help="JSON-lines files of actions, in place of a topic")
    source.add_argument(
        "--records",
        metavar="FORMAT",
        help="read records of this format in place of events, and join nothing: example, example_batch, instance, "
        "tf_example, arrow ...",
    )
    source.add_argument("--records-topic", metavar="TOPIC", help="topic to read the records from")
    source.add_argument("--record-files", metavar="PATTERN", help="files to read the records from, in place of a topic")
    source.add_argument(
        "--frames",
        metavar="HEADERS",
        help=f"headers of framed records, some of {', '.join(FRAME_HEADERS)} (default: a Kafka value is one record, "
        "and files have sort-id)",
    )
    add_tf_features_flag(source)
    return source


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Tuning, the work folder, Kafka and the process."""
    tuning = parser.add_argument_group("tuning")
    _add_rate_flags(tuning)
    _add_limit_flags(tuning)
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(".state/feed"),
        metavar="DIR",
        help="folder for logs and checkpoints of the runner",
    )
    add_kafka_flags(parser)
    add_process_flags(parser)


def _add_rate_flags(tuning: "argparse._ArgumentGroup") -> None:
    """How many parts of a feed work in parallel, and how often each looks for work."""
    tuning.add_argument(
        "--join-shards",
        type=int,
        metavar="N",
        default=1,
        help="shards of the join, which work in parallel (default: 1)",
    )
    tuning.add_argument(
        "--feed-shards",
        type=int,
        metavar="N",
        default=4,
        help="partitions of the train topic, if the feed creates it (default: 4)",
    )
    tuning.add_argument("--splits", type=int, metavar="N", default=1, help="Kafka readers (default: 1)")
    tuning.add_argument(
        "--poll-seconds",
        type=float,
        metavar="SECONDS",
        default=0.1,
        help="how long an idle reader waits before it asks Kafka again (default: 0.1)",
    )
    tuning.add_argument(
        "--timer-seconds",
        type=float,
        metavar="SECONDS",
        default=0.2,
        help="how often an idle join looks for windows that have closed (default: 0.2)",
    )


def _add_limit_flags(tuning: "argparse._ArgumentGroup") -> None:
    """How much memory a join holds, and how many unreadable records a feed bears."""
    tuning.add_argument(
        "--max-pending-rows",
        type=int,
        metavar="ROWS",
        help="most rows that a join shard holds in memory; older ones lie in files (default: all in memory)",
    )
    tuning.add_argument(
        "--spill-dir",
        type=Path,
        metavar="DIR",
        help="folder of these files, on a local disk (default: that of temporary files, which may lie in memory)",
    )
    tuning.add_argument(
        "--max-drop-ratio",
        type=float,
        metavar="SHARE",
        default=0.5,
        help="fail when a larger share of the newest records of a partition cannot be read; 1: never (default: 0.5)",
    )


def feed_options(arguments: argparse.Namespace) -> "FeedOptions":
    """The feed that the flags describe; UserError for flags that do not fit together."""
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
            raise UserError(
                "--impression-files", arguments.impression_files, "--action-files is missing, or this flag", "give both"
            )
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
    """The format that --records and --frames name; None without them."""
    from millrace.pipelines.feed.options import RecordFormat
    from millrace.pipelines.files.format import RecordSettings, check_format, check_settings, read_tf_features

    if not arguments.records:
        for flag in ("records_topic", "record_files", "frames", "tf_features"):
            if getattr(arguments, flag):
                raise UserError(
                    "--records", "", "missing", f"name the format of the records of --{flag.replace('_', '-')}"
                )
        return None
    if bool(arguments.records_topic) == bool(arguments.record_files):
        problem = "--records needs either this flag or --record-files"
        raise UserError("--records-topic", arguments.records_topic or "", problem, "give one of them")
    check_format(arguments.records, "--records", files=bool(arguments.record_files))
    tf_features = read_tf_features(arguments.tf_features, "--tf-features") if arguments.tf_features else None
    place = arguments.record_files or f"topic:{arguments.records_topic}"
    check_settings(RecordSettings(arguments.records, tf_example=tf_features), place, "--records")
    return RecordFormat(arguments.records, frame_options(arguments.frames), tf_features)


def _recipe(path: Path | None, config: "FeedConfig") -> bytes:
    """The recipe as a serialized `TransformConfig`, checked; empty without one."""
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
