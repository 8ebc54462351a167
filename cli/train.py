"""`millrace train`: online from Kafka, or offline from Parquet or MovieLens files."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli.common import (
    add_command,
    add_kafka_flags,
    add_process_flags,
    announce_ready,
    kafka_connection,
    stop_on_signals,
    tensorflow_import,
    topics,
)
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.training.task import Task

_ONLINE = (
    "millrace train --task millrace.examples.feed_ranking:FeedRanking --online --create-topics --model-dir /tmp/feed"
)
_OFFLINE = "millrace train --task millrace.examples.movies:MovieRanking --offline --input my-ratings"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "train",
        "Trains a model: online from Kafka without end, or offline once through stored rows in order. Each row is "
        "predicted before it is learned. A restart goes on from the newest checkpoint in --model-dir. "
        "`millrace events ratings my-ratings` writes ratings to try it with.",
        f"{_ONLINE}\n{_OFFLINE}",
        _run,
    )
    parser.add_argument("--task", required=True, metavar="MODULE:CLASS", help="the model, as package.module:ClassName")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--online", action="store_true", help="learn from Kafka until SIGTERM")
    mode.add_argument("--offline", action="store_true", help="learn from --input")
    _add_online_flags(parser)
    _add_offline_flags(parser)
    add_kafka_flags(parser)
    add_process_flags(parser)


def _add_online_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("online")
    group.add_argument("--model-dir", type=Path, metavar="DIR", help="checkpoints, exports and progress go here")
    group.add_argument("--export-seconds", type=_positive, default=20.0, metavar="S", help="between exports (20)")
    group.add_argument("--checkpoint-seconds", type=_positive, default=20.0, metavar="S", help="between saves (20)")
    group.add_argument("--max-wait-ms", type=_positive, default=50.0, metavar="MS", help="a row waits at most (50)")
    group.add_argument("--audit", action="store_true", help="count how often each source row is applied")
    group.add_argument("--create-topics", action="store_true", help="create the train topic if it is missing")


def _add_offline_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_whole, metavar="N", help="most rows of a step (online 512, offline 256)")
    parser.add_argument("--micro-batch", type=_whole, metavar="N", help="rows of one update (online 64, offline 32)")
    group = parser.add_argument_group("offline")
    group.add_argument("--input", type=Path, metavar="PATH", help="Parquet file or folder, or a MovieLens folder")
    group.add_argument("--delay-rows", type=_count, default=0, metavar="N", help="learn each row N rows late (0)")
    group.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from millrace.training.task import load_task

    task = load_task(arguments.task)
    if arguments.online:
        if arguments.model_dir is None:
            raise UserError("--model-dir", "", "not given", "name a folder for checkpoints and exports")
        return _train_online(arguments, task)
    if arguments.input is None or not arguments.input.exists():
        raise UserError("--input", arguments.input or "", "no such file or folder", "name Parquet or MovieLens data")
    return _train_offline(arguments, task)


def _train_online(arguments: argparse.Namespace, task: "Task") -> int:
    from millrace.runtime.kafka_client import partitions_of
    from millrace.runtime.telemetry import Heartbeat, MetricsEndpoint, setup_logging

    connection, names = kafka_connection(arguments), topics(arguments)
    if not arguments.create_topics:
        partitions_of(connection, names.train(task.name), "--topic-prefix")
    setup_logging("trainer", arguments.log_level)
    stop = stop_on_signals()

    with tensorflow_import():
        from millrace.training.online_trainer import OnlineOptions, train_online
        from millrace.training.step.train_step import limit_threads

    limit_threads()
    options = OnlineOptions(
        model_dir=arguments.model_dir,
        audit=arguments.audit,
        export_seconds=arguments.export_seconds,
        checkpoint_seconds=arguments.checkpoint_seconds,
        batch_size=arguments.batch_size or 512,
        max_wait_seconds=arguments.max_wait_ms / 1000,
        micro_batch=arguments.micro_batch or 64,
        create_topics=arguments.create_topics,
    )
    heartbeat = Heartbeat("the training loop")
    endpoint = MetricsEndpoint(arguments.metrics_port, heartbeat.reason)
    try:
        train_online(
            task, connection, names, options, stop,
            ready=lambda: announce_ready(arguments, metrics=endpoint.address, model=task.name),
            heartbeat=heartbeat,
        )  # fmt: skip
    finally:
        endpoint.close()
    return 0


def _train_offline(arguments: argparse.Namespace, task: "Task") -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with tensorflow_import():
        from millrace.training.offline_trainer import read_input, train
        from millrace.training.step.train_step import limit_threads

    limit_threads()
    data = read_input(arguments.input, task)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        line = bar.add_task(f"training {task.name}", total=data.num_rows)
        result, _ = train(
            task, data, arguments.batch_size or 256, arguments.delay_rows, arguments.micro_batch or 32,
            progress=lambda done, _: bar.update(line, completed=done),
        )  # fmt: skip
    if arguments.json:
        print(json.dumps({"task": arguments.task, **asdict(result)}))
    else:
        print(
            f"{result.rows:,} rows in {result.seconds:.1f} s ({result.rows_per_second:,.0f} rows/s): "
            f"AUC {result.auc:.4f}, last third {result.auc_last_third:.4f}, log loss {result.log_loss:.4f}, "
            f"calibration {result.calibration:.3f}"
        )
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)
