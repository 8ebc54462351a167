"""`millrace serve`: a model server with TF Serving's gRPC API."""

import argparse
import threading
from typing import TYPE_CHECKING

from millrace.cli import common
from millrace.runtime.errors import UserError

_MOST_MESSAGE_MB = 2047  # their size is an int32

if TYPE_CHECKING:
    from millrace.serving.server.model_server import ServerConfig


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "serve",
        "Serves exported models over gRPC with TF Serving's API, and keeps them fresh with the deltas on Kafka.\n"
        "With --base-path it follows the newest export in that folder; without it, `millrace agent` says what to load.",
        "millrace serve --port 8500 --model-name feed --base-path /tmp/feed/exports/standalone",
        _run,
    )
    parser.add_argument("--host", default="127.0.0.1", help="interface of predictions (default: %(default)s)")
    parser.add_argument("--port", type=common.port_number, default=8500, help="0: a free port (default: %(default)s)")
    parser.add_argument("--model-name", required=True, metavar="NAME", help="the model that clients ask for")
    parser.add_argument("--base-path", metavar="DIR", help="folder with one sub-folder per version")
    parser.add_argument(
        "--no-deltas", action="store_true", help="serve exports as they are, without Kafka (--kafka is not needed)"
    )
    parser.add_argument(
        "--max-staleness",
        type=common.above_zero,
        metavar="SECONDS",
        help="call a version STALE, and /healthz 503, when its newest event is older (default: no limit)",
    )
    _add_control_flags(parser)
    _add_limit_flags(parser)
    common.add_kafka_flags(parser)
    common.add_process_flags(parser)


def _add_control_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--control-host",
        default="127.0.0.1",
        metavar="HOST",
        help="interface of the port by which agents say what to load; nobody is asked who he is there (%(default)s)",
    )
    parser.add_argument(
        "--control-port",
        type=common.port_number,
        metavar="PORT",
        help="0: a free one (default: the port after --port, where agents look for it)",
    )
    parser.add_argument(
        "--model-root",
        action="append",
        default=[],
        metavar="DIR",
        help="load models from below this folder only; may be repeated (default: any folder, while --control-host is "
        "a loopback address)",
    )


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--request-threads",
        type=common.at_least_one,
        default=4,
        metavar="N",
        help="requests worked on at once (default: 4)",
    )
    parser.add_argument(
        "--tensorflow-threads",
        type=common.at_least_one,
        default=2,
        metavar="N",
        help="threads inside a request (default: 2)",
    )
    parser.add_argument(
        "--max-requests",
        type=common.at_least_one,
        default=512,
        metavar="N",
        help="requests that are worked on or wait; further ones get RESOURCE_EXHAUSTED (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch-rows",
        type=common.at_least_one,
        default=100_000,
        metavar="N",
        help="rows of one request (default: %(default)s)",
    )
    parser.add_argument(
        "--max-message-mb",
        type=common.at_least_one,
        default=32,
        metavar="MB",
        help="size of one request or response (default: %(default)s)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from millrace.runtime.telemetry import setup_logging

    stop = common.stop_on_signals()
    setup_logging("serve", arguments.log_level)
    # A broker that is down must not keep a restarted server from serving what it has on disk.
    kafka = None if arguments.no_deltas else common.kafka_connection(arguments, check=False)
    base_path = None if arguments.base_path is None else _existing_folder("--base-path", arguments.base_path)

    with common.tensorflow_import():
        from millrace.serving.server.model_server import ServerConfig, limit_tensorflow_threads
        from millrace.serving.server.tensors import RequestLimits

    limit_tensorflow_threads(arguments.tensorflow_threads)
    if arguments.max_message_mb > _MOST_MESSAGE_MB:
        problem = f"gRPC takes messages of at most {_MOST_MESSAGE_MB} MB"
        raise UserError("--max-message-mb", arguments.max_message_mb, problem, "give less, and send smaller batches")
    config = ServerConfig(
        host=arguments.host,
        port=arguments.port,
        control_host=arguments.control_host,
        control_port=_control_port(arguments),
        model_name=arguments.model_name,
        base_path=base_path,
        model_roots=tuple(_existing_folder("--model-root", root) for root in arguments.model_root),
        kafka=kafka,
        max_staleness=arguments.max_staleness,
        request_threads=arguments.request_threads,
        max_requests=arguments.max_requests,
        max_message_bytes=arguments.max_message_mb << 20,
        limits=RequestLimits(batch_rows=arguments.max_batch_rows),
    )
    return _serve(arguments, config, stop)


def _serve(arguments: argparse.Namespace, config: "ServerConfig", stop: threading.Event) -> int:
    from millrace.serving.server.model_server import ModelServer

    server = ModelServer(config)
    server.start()
    metrics = common.metrics_endpoint(arguments, server.problem)
    try:
        common.announce_ready(
            arguments, address=server.address, control=server.control_address, metrics=metrics.address
        )
        stop.wait()
    finally:
        server.stop()
        metrics.close()
    return 0


def _control_port(arguments: argparse.Namespace) -> int:
    if arguments.control_port is not None:
        return int(arguments.control_port)
    return arguments.port + 1 if 0 < arguments.port < 65535 else 0


def _existing_folder(flag: str, path: str) -> str:
    from pathlib import Path

    if not Path(path).is_dir():
        raise UserError(flag, path, "there is no such folder", "give the folder that holds the versions")
    return str(Path(path).resolve())
