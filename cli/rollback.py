"""`millrace rollback`: holds a served model at an earlier version until it is released."""

import argparse
import time

from millrace.cli import common, model_command


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "rollback",
        "Holds a model at an earlier version, with the deltas up to one moment, on every replica: through new exports\n"
        "and restarts, until `millrace release`. Waits until the replicas follow.",
        "millrace rollback --model feed --to 1764500000 --reason 'labels were wrong since noon'",
        _run,
    )
    parser.add_argument("--to", type=common.at_least_one, required=True, metavar="VERSION", help="the version to serve")
    parser.add_argument(
        "--as-of",
        type=common.moment,
        metavar="TIME",
        help="take deltas up to this time, such as 2026-01-31T12:00:00Z, or Unix milliseconds (default: when the\n"
        "version after it was cut, or now when it is the newest)",
    )
    model_command.add_model_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.serving.agent.model_commands import rollback_event

    connection, known = model_command.read_known(arguments)
    now_ms = time.time_ns() // 1_000_000
    event = rollback_event(known, arguments.to, arguments.as_of, arguments.reason, now_ms)
    return model_command.send_and_wait(arguments, connection, event)
