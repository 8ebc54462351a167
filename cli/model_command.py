"""What `millrace rollback`, `release` and `retire` share: flags, the wait for the replicas, and what is printed."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from millrace.cli import common

if TYPE_CHECKING:
    from millrace.protos.model_event_pb2 import ModelEvent
    from millrace.runtime.kafka_client import KafkaConnection
    from millrace.serving.agent.model_commands import KnownModel, Replicas

_SECONDS = 120.0  # a server loads the version first, which takes minutes for some models


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a command that changes what is served of a model."""
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--reason", required=True, type=_words, metavar="TEXT", help="why, for those who look later")
    common.add_namespace_flag(parser)
    parser.add_argument(
        "--timeout",
        type=common.above_zero,
        default=_SECONDS,
        metavar="SECONDS",
        help="how long to wait until every replica follows; exit code 1 after it (default: %(default)g)",
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the event is sent")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_kafka_flags(parser)


def _words(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: say why, for those who look later")
    return text


def read_known(arguments: argparse.Namespace) -> "tuple[KafkaConnection, KnownModel]":
    """The brokers, and what is known of --model."""
    from millrace.serving.agent.model_commands import read_model
    from millrace.serving.agent.registry import check_name

    check_name("--model", arguments.model)
    check_name("--namespace", arguments.namespace)
    connection = common.kafka_connection(arguments)
    topic = common.topics(arguments).model_events
    return connection, read_model(connection, topic, arguments.namespace, arguments.model)


def send_and_wait(arguments: argparse.Namespace, connection: "KafkaConnection", event: "ModelEvent") -> int:
    """Sends `event`, waits until every replica follows, prints which do; returns the exit code."""
    from millrace.serving.agent.model_commands import Replicas, send_event

    topics = common.topics(arguments)
    replicas = None if arguments.no_wait else Replicas(
        connection, topics.serving_status, arguments.namespace, arguments.model
    )  # fmt: skip
    try:
        send_event(connection, topics.model_events, event)
        _say(f"sent to {topics.model_events}")
        is_in_force = replicas is not None and replicas.wait(event, arguments.timeout, _say)
    finally:
        if replicas is not None:
            replicas.close()
    _print(arguments, event, replicas, is_in_force)
    return 0 if is_in_force or arguments.no_wait else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(arguments: argparse.Namespace, event: "ModelEvent", replicas: "Replicas | None", is_in_force: bool) -> None:
    from millrace.protos.model_event_pb2 import ModelEvent
    from millrace.serving.agent.model_commands import follows

    rows = [
        {
            "replica": replica,
            "server": status.get("server"),
            "follows": follows(event, status),
            "state": status.get("state"),
            "version": status.get("target_version"),
            "error": status.get("error", ""),
        }
        for replica, status in sorted(replicas.statuses.items() if replicas else ())
    ]
    kind = ModelEvent.Kind.Name(event.kind)
    fields = {"kind": kind, "model": event.model_name, "version": event.version, "as_of_ms": event.as_of_ms}
    if arguments.json:
        print(json.dumps(fields | {"event_id": event.event_id, "in_force": is_in_force, "replicas": rows}))
        return
    to = f" to {event.version}" if event.version else ""
    print(f"{kind} of {event.model_name}{to} {_outcome(replicas, is_in_force)}")
    for row in rows:
        print(f"  {row['replica']} ({row['server']}): {'follows' if row['follows'] else 'does not follow'}, "
              f"{row['state']} {row['version']} {row['error']}".rstrip())  # fmt: skip


def _outcome(replicas: "Replicas | None", is_in_force: bool) -> str:
    if replicas is None:
        return "is sent; agents take it when they read it"
    if is_in_force:
        return "is in force"
    if not replicas.statuses:
        return "is sent and stays; no agent of the model has reported, is one running?"
    return "is sent and stays; not every replica follows yet"
