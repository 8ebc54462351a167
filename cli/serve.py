"""`millrace serve`: a model server with TF Serving's gRPC API."""

import argparse
import threading
from typing import TYPE_CHECKING

from millrace.cli import common
from millrace.runtime.errors import UserError

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
    parser.add_argument("--host", default="127.0.0.1", help="interface to bind (default: %(default)s)")
    parser.add_argument("--port", type=common.port_number, default=8500, help="0: a free port (default: %(default)s)")
    parser.add_argument("--model-name", required=True, metavar="NAME", help="the model that clients ask for")
    parser.add_argument("--base-path", metavar="DIR", help="folder with one sub-folder per version")
    parser.add_argument(
        "--no-deltas", action="store_true", help="serve exports as they are, without Kafka (--kafka is not needed)"
    )
    parser.add_argument(
        "--request-threads", type=_positive, default=4, metavar="N", help="requests worked on at once (default: 4)"
    )
    parser.add_argument(
        "--tensorflow-threads", type=_positive, default=2, metavar="N", help="threads inside a request (default: 2)"
    )
    common.add_kafka_flags(parser)
    common.add_process_flags(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.runtime.telemetry import setup_logging

    stop = common.stop_on_signals()
    setup_logging("serve", arguments.log_level)
    # A broker that is down must not keep a restarted server from serving what it has on disk.
    kafka = None if arguments.no_deltas else common.kafka_connection(arguments, check=False)
    base_path = _existing_folder(arguments.base_path)

    with common.tensorflow_import():
        from millrace.serving.server.model_server import ServerConfig, limit_tensorflow_threads

    limit_tensorflow_threads(arguments.tensorflow_threads)
    config = ServerConfig(
        host=arguments.host,
        port=arguments.port,
        model_name=arguments.model_name,
        base_path=base_path,
        kafka=kafka,
        request_threads=arguments.request_threads,
    )
    return _serve(arguments, config, stop)


def _serve(arguments: argparse.Namespace, config: "ServerConfig", stop: threading.Event) -> int:
    from millrace.serving.server.model_server import ModelServer

    server = ModelServer(config)
    server.start()
    model = config.model_name
    metrics = common.metrics_endpoint(
        arguments, lambda: None if server.available(model) else f"no version of {model} is loaded"
    )
    try:
        common.announce_ready(arguments, address=server.address, metrics=metrics.address)
        stop.wait()
    finally:
        server.stop()
        metrics.close()
    return 0


def _existing_folder(path: str | None) -> str | None:
    from pathlib import Path

    if path is None:
        return None
    if not Path(path).is_dir():
        raise UserError("--base-path", path, "there is no such folder", "give the folder that holds the versions")
    return str(Path(path).resolve())
