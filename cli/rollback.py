"""`millrace rollback`: holds a served model at an earlier version until it is released."""

import argparse
import time
from typing import TYPE_CHECKING

from millrace.cli import common, model_command
from millrace.runtime.errors import UserError

if TYPE_CHECKING:
    from millrace.runtime.kafka_client import KafkaConnection


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
        "version after it was cut, or of the newest delta when it is the newest)",
    )
    model_command.add_model_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.serving.agent.model_commands import rollback_event

    connection, known = model_command.read_known(arguments)
    now_ms, newest_ms = time.time_ns() // 1_000_000, _newest_delta_ms(arguments, connection)
    event = rollback_event(known, arguments.to, arguments.as_of, arguments.reason, now_ms, newest_ms)
    return model_command.send_and_wait(arguments, connection, event)


def _newest_delta_ms(arguments: argparse.Namespace, connection: "KafkaConnection") -> int:
    """When the newest delta of --model was made, Unix milliseconds of its trainer; 0 without one."""
    from millrace.training.publish.published import newest_delta

    try:
        delta, _ = newest_delta(connection, common.topics(arguments).deltas(arguments.model), arguments.model)
    except UserError:  # there is no such topic
        return 0
    return int(delta.created_at_ms) if delta else 0
