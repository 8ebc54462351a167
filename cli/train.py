"""`millrace train`: online from Kafka, or offline from Parquet or MovieLens files."""

import argparse
import datetime
import json
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli.common import (
    above_zero,
    add_command,
    add_kafka_flags,
    add_namespace_flag,
    add_process_flags,
    addresses,
    announce_ready,
    at_least_one,
    at_least_zero,
    kafka_connection,
    metrics_endpoint,
    moment,
    stop_on_signals,
    tensorflow_import,
    topics,
)
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.training.online.options import OnlineOptions
    from millrace.training.state.save_schedule import DailyWindow
    from millrace.training.task import Task

_ONLINE = (
    "millrace train --task millrace.examples.feed_ranking:FeedRanking --online --create-topics --model-dir /tmp/feed"
)
_LEASE_LOST = 3  # exit code of a trainer that was replaced: started again it would replace its successor
_OFFLINE = "millrace train --task millrace.examples.movies:MovieRanking --offline --input my-ratings"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "train",
        "Trains a model: online from Kafka without end, or offline once through stored rows in order. Each row is "
        "predicted before it is learned. A restart goes on from the newest checkpoint in --model-dir. SIGTERM ends an "
        "online run after a last checkpoint; SIGUSR1 saves a checkpoint at once. "
        "`millrace events ratings my-ratings` writes ratings to try it with.",
        f"{_ONLINE}\n{_OFFLINE}",
        _run,
    )
    parser.add_argument("--task", required=True, metavar="MODULE:CLASS", help="the model, as package.module:ClassName")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--online", action="store_true", help="learn from Kafka until SIGTERM")
    mode.add_argument("--offline", action="store_true", help="learn from --input")
    _add_online_flags(parser)
    _add_saving_flags(parser)
    _add_offline_flags(parser)
    add_kafka_flags(parser)
    add_process_flags(parser)


def _add_online_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("online")
    group.add_argument("--model-dir", type=Path, metavar="DIR", help="checkpoints, exports and progress go here")
    group.add_argument(
        "--max-wait-ms",
        type=above_zero,
        default=50.0,
        metavar="MS",
        help="longest time, in milliseconds, that a row waits for its batch to fill (default: 50)",
    )
    group.add_argument(
        "--audit", action="store_true", help="count how often each source row is applied; needs a feed with --audit"
    )
    group.add_argument(
        "--on-not-finite",
        choices=("skip", "stop"),
        default="skip",
        help="rows whose loss or gradients are NaN or infinite: count them, send them to the dead letters and go on, "
        "or end the process (default: skip); the model never learns them",
    )
    group.add_argument(
        "--resume-from-good",
        nargs="?",
        const="now",
        type=_good_since,
        metavar="TIME",
        help="after an alarm of the guard: go on from the newest checkpoint from before what went wrong, and pass over "
        "the rows since, up to those that reached the train topic at TIME, such as 2026-01-31T12:00:00Z, or up to now",
    )
    group.add_argument("--create-topics", action="store_true", help="create the train topic if it is missing")
    add_namespace_flag(group)
    group.add_argument(
        "--dense-seconds",
        type=above_zero,
        metavar="S",
        help="seconds between two deltas of dense weights (default: 1; more than 1 MiB of them: 1 per MiB)",
    )
    group.add_argument(
        "--wait-for-lease",
        action="store_true",
        help="while another trainer has --model-dir, stand by to take over when it ends, instead of refusing to start",
    )
    group.add_argument(
        "--zookeeper",
        type=addresses,
        metavar="HOST:PORT",
        help="where trainers of one model in several folders, or on several hosts, keep each other out (default: none)",
    )
    group.add_argument(
        "--zookeeper-properties",
        metavar="FILE",
        help="TLS and credentials of ZooKeeper, one key=value per line; never logged",
    )
    group.add_argument(
        "--new-model",
        action="store_true",
        help="let what --model-dir holds, or an empty folder, replace the model of this name that readers know",
    )


def _add_saving_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("exports and checkpoints of an online run")
    group.add_argument(
        "--export-seconds", type=above_zero, default=20.0, metavar="S", help="seconds between exports (default: 20)"
    )
    period = group.add_mutually_exclusive_group()
    period.add_argument(
        "--checkpoint-seconds", type=above_zero, metavar="S", help="seconds between checkpoints (default: 20)"
    )
    period.add_argument(
        "--checkpoint-steps",
        type=at_least_one,
        metavar="N",
        help="steps between checkpoints, in place of --checkpoint-seconds",
    )
    group.add_argument(
        "--checkpoint-window",
        type=_hours,
        metavar="HH:MM-HH:MM",
        help="hours of each day, UTC, in which --checkpoint-seconds holds and not --checkpoint-seconds-outside",
    )
    group.add_argument(
        "--checkpoint-seconds-outside",
        type=above_zero,
        metavar="S",
        help="seconds between checkpoints outside of --checkpoint-window",
    )
    group.add_argument(
        "--keep-checkpoints",
        type=at_least_one,
        default=3,
        metavar="N",
        help="number of newest checkpoints that stay on disk (default: 3)",
    )
    group.add_argument(
        "--keep-exports",
        type=at_least_one,
        default=3,
        metavar="N",
        help="number of newest exports that stay on disk, beside those that are served or held (default: 3)",
    )
    group.add_argument(
        "--keep-checkpoint-every",
        type=above_zero,
        metavar="S",
        help="of each S seconds, keep the first checkpoint for ever as well (default: none)",
    )


def _add_offline_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=at_least_one,
        metavar="N",
        help="largest number of rows of a step (default: 512, offline 256)",
    )
    parser.add_argument(
        "--micro-batch",
        type=at_least_one,
        metavar="N",
        help="rows of a step that share one update of the weights (default: 64, offline 32)",
    )
    group = parser.add_argument_group("offline")
    group.add_argument("--input", type=Path, metavar="PATH", help="Parquet file or folder, or a MovieLens folder")
    group.add_argument(
        "--delay-rows",
        type=at_least_zero,
        default=0,
        metavar="N",
        help="learn each row N rows after its prediction (default: 0)",
    )
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
    from millrace.runtime.outage import while_away
    from millrace.runtime.telemetry import Condition, Heartbeat, RefusalStreak, setup_logging
    from millrace.training.state.lease import LeaseLostError, check_not_in_use

    if "/" in arguments.namespace:
        raise UserError("--namespace", arguments.namespace, "'/' cannot be in it", "use letters, digits, '.', '_', '-'")
    options = _online_options(arguments)
    if not options.wait_for_lease:
        check_not_in_use(options.model_dir)
    setup_logging("trainer", arguments.log_level)
    stop, save_now = stop_on_signals(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: save_now.set())
    heartbeat, intake, guard = Heartbeat("the training loop"), RefusalStreak("train blocks"), Condition()
    endpoint = metrics_endpoint(arguments, lambda: heartbeat.reason() or guard.reason() or intake.reason())
    try:
        connection, names = kafka_connection(arguments, stop=stop), topics(arguments)
        if not arguments.create_topics:
            train_topic, kafka = names.train(task.name), f"Kafka at {connection.bootstrap_servers}"
            while_away(lambda: partitions_of(connection, train_topic, "--topic-prefix"), kafka, stop)
        with tensorflow_import():
            from millrace.training.online.trainer import train_online
            from millrace.training.step.train_step import limit_threads

        limit_threads()
        train_online(
            task, connection, names, options, stop,
            ready=lambda: announce_ready(arguments, metrics=endpoint.address, model=task.name),
            heartbeat=heartbeat, save_now=save_now, intake=intake, guard=guard,
        )  # fmt: skip
    except LeaseLostError as error:
        print(f"millrace train: error: {error}", file=sys.stderr)
        return _LEASE_LOST
    finally:
        endpoint.close()
    return 0


def _online_options(arguments: argparse.Namespace) -> "OnlineOptions":
    from millrace.training.online.options import OnlineOptions

    steps = arguments.checkpoint_steps
    return OnlineOptions(
        model_dir=arguments.model_dir,
        audit=arguments.audit,
        export_seconds=arguments.export_seconds,
        checkpoint_seconds=None if steps else arguments.checkpoint_seconds or 20.0,
        checkpoint_steps=steps,
        checkpoint_window=_checkpoint_window(arguments),
        keep_checkpoints=arguments.keep_checkpoints,
        keep_checkpoint_every_seconds=arguments.keep_checkpoint_every,
        batch_size=arguments.batch_size or 512,
        max_wait_seconds=arguments.max_wait_ms / 1000,
        micro_batch=arguments.micro_batch or 64,
        on_not_finite=arguments.on_not_finite,
        resume_from_good=arguments.resume_from_good,
        create_topics=arguments.create_topics,
        namespace=arguments.namespace,
        keep_exports=arguments.keep_exports,
        dense_seconds=arguments.dense_seconds,
        wait_for_lease=arguments.wait_for_lease,
        zookeeper=arguments.zookeeper,
        zookeeper_properties=arguments.zookeeper_properties,
        new_model=arguments.new_model,
    )


def _checkpoint_window(arguments: argparse.Namespace) -> "DailyWindow | None":
    from millrace.training.state.save_schedule import DailyWindow

    hours, seconds = arguments.checkpoint_window, arguments.checkpoint_seconds_outside
    if hours is None and seconds is None:
        return None
    if hours is None:
        problem, remedy = "without a window there is no outside", "give --checkpoint-window with it"
        raise UserError("--checkpoint-seconds-outside", f"{seconds:g}", problem, remedy)
    given = "{:%H:%M}-{:%H:%M}".format(*hours)
    if seconds is None:
        problem, remedy = "the period outside of it is missing", "give --checkpoint-seconds-outside with it"
        raise UserError("--checkpoint-window", given, problem, remedy)
    if arguments.checkpoint_steps:
        problem, remedy = "a window changes seconds, not steps", "give --checkpoint-seconds, not --checkpoint-steps"
        raise UserError("--checkpoint-window", given, problem, remedy)
    return DailyWindow(hours[0], hours[1], seconds)


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


def _good_since(text: str) -> str:
    if text == "now":
        return "latest"
    if (time_ms := moment(text)) > time.time() * 1000:
        raise argparse.ArgumentTypeError(f"{text} is to come: no row of the train topic is from then")
    return f"time:{time_ms}"


def _hours(text: str) -> tuple[datetime.time, datetime.time]:
    try:
        start, end = (datetime.datetime.strptime(part, "%H:%M").time() for part in text.split("-"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not HH:MM-HH:MM, for example 01:00-03:30") from error
    return start, end
