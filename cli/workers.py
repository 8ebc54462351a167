"""`millrace workers`: starts Beam workers for the runners of this host."""

import argparse

from millrace.cli.common import add_command, port_number, stop_on_signals


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = add_command(
        subparsers,
        "workers",
        "Starts a Beam worker in a process of its own for each runner of this host that asks, such as a task manager\n"
        "of Flink. It listens on loopback, and starts workers for runners of this host only: whoever controls a\n"
        "worker has any code run in it. `millrace feed` needs none unless it is told to,\n"
        "with --environment_type=EXTERNAL --environment_config=127.0.0.1:50000.",
        "millrace workers --port 50000",
        _run,
    )
    parser.add_argument("--port", type=port_number, default=50000, help="0: a free port (default: %(default)s)")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))


def _run(arguments: argparse.Namespace) -> int:
    import logging

    from millrace.pipelines.feed.worker_pool import process_pool
    from millrace.runtime.telemetry import setup_logging

    stop = stop_on_signals()
    setup_logging("workers", arguments.log_level)
    with process_pool(arguments.port) as address:
        logging.getLogger("millrace").info("ready address=%s", address)
        stop.wait()
    return 0
