"""`millrace agent`: keeps one model server in line with the model's events."""

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli import common

if TYPE_CHECKING:
    from millrace.serving.agent.agent import AgentConfig


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "agent",
        "Tells a model server which version to serve: learns versions from Kafka, registers the replica in ZooKeeper,\n"
        "reports to both. A version that has learned nothing, or that running clients could not ask, is not put in\n"
        "service by itself.",
        "millrace agent --server 127.0.0.1:8500 --model feed --require 'rows>=1000, auc>0.6'",
        _run,
    )
    parser.add_argument("--server", type=common.addresses, required=True, metavar="HOST:PORT", help="the model server")
    parser.add_argument(
        "--control",
        type=common.addresses,
        metavar="HOST:PORT",
        help="the server's control port (default: the port after that of --server)",
    )
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument(
        "--replica-id",
        default=socket.gethostname(),
        metavar="NAME",
        help="unique among the model's replicas (default: the host's name)",
    )
    common.add_namespace_flag(parser)
    parser.add_argument(
        "--require",
        metavar="TERMS",
        help="what a version must meet to go in service by itself: NAME>NUMBER, NAME<=NUMBER (rows, auc, log_loss,\n"
        "calibration, global_step) and signature=compatible or signature=any, separated by commas; 'none' takes all\n"
        "(default: 'rows>0, signature=compatible', which other terms leave in force)",
    )
    parser.add_argument(
        "--pin", type=common.at_least_one, metavar="VERSION", help="serve exactly this version, as it was exported"
    )
    parser.add_argument(
        "--state-file",
        type=Path,
        metavar="PATH",
        help="what to load while Kafka is away (default: a file in .state/agent of the working folder, or in\n"
        "$MILLRACE_STATE/agent)",
    )
    common.add_kafka_flags(parser)
    common.add_zookeeper_flag(parser)
    common.add_process_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.runtime.telemetry import Heartbeat, setup_logging
    from millrace.serving.agent.agent import AgentConfig
    from millrace.serving.agent.agent_process import run_agent
    from millrace.serving.agent.gate import parse_gate
    from millrace.serving.agent.registry import check_name

    stop = common.stop_on_signals()
    setup_logging("agent", arguments.log_level)
    config = AgentConfig(
        server=arguments.server,
        model=check_name("--model", arguments.model),
        replica_id=check_name("--replica-id", arguments.replica_id),
        namespace=check_name("--namespace", arguments.namespace),
        gate=parse_gate(arguments.require),
        pin=arguments.pin,
    )
    # Servers that are away must not keep a restarted agent from telling what its state file remembers.
    connection, zookeeper = common.kafka_connection(arguments, check=False), common.zookeeper_address(arguments)
    topics = common.topics(arguments)
    control = arguments.control or _next_port(arguments.server)
    state_file = arguments.state_file or _state_file(config, topics.prefix)
    heartbeat = Heartbeat("reconciling")
    metrics = common.metrics_endpoint(arguments, heartbeat.reason)
    ready: Callable[[], None] = lambda: common.announce_ready(  # noqa: E731
        arguments, server=config.server, metrics=metrics.address
    )
    try:
        run_agent(
            config, control, connection, topics, zookeeper, metrics.address, state_file, stop, heartbeat, ready,
            arguments.zookeeper_properties,
        )  # fmt: skip
    finally:
        metrics.close()
    return 0


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"


def _state_file(config: "AgentConfig", prefix: str) -> Path:
    name = f"{prefix}{config.namespace}.{config.model}.{config.replica_id}.json"
    return Path(os.environ.get("MILLRACE_STATE") or ".state") / "agent" / name
