"""`millrace agent`: keeps one model server in line with the model's events."""

import argparse
import socket
from collections.abc import Callable

from millrace.cli import common


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "agent",
        "Tells a model server which version to serve: learns versions from Kafka, registers the replica in ZooKeeper,\n"
        "reports to both.",
        "millrace agent --server 127.0.0.1:8500 --model feed",
        _run,
    )
    parser.add_argument("--server", type=common.addresses, required=True, metavar="HOST:PORT", help="the model server")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument(
        "--replica-id",
        default=socket.gethostname(),
        metavar="NAME",
        help="unique among the model's replicas (default: the host's name)",
    )
    parser.add_argument("--bzid", default="default", metavar="NAME", help="name space of models (default: %(default)s)")
    common.add_kafka_flags(parser)
    common.add_zookeeper_flag(parser)
    common.add_process_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.runtime.telemetry import Heartbeat, setup_logging
    from millrace.serving.agent.agent import AgentConfig
    from millrace.serving.agent.registry import check_name

    stop = common.stop_on_signals()
    setup_logging("agent", arguments.log_level)
    config = AgentConfig(
        server=arguments.server,
        model=check_name("--model", arguments.model),
        replica_id=check_name("--replica-id", arguments.replica_id),
        bzid=check_name("--bzid", arguments.bzid),
    )
    connection, zookeeper = common.kafka_connection(arguments, check=False), common.zookeeper_address(arguments)
    with common.tensorflow_import():
        from millrace.serving.agent.agent_process import run_agent

    heartbeat = Heartbeat("reconciling")
    metrics = common.metrics_endpoint(arguments, heartbeat.reason)
    ready: Callable[[], None] = lambda: common.announce_ready(  # noqa: E731
        arguments, server=config.server, metrics=metrics.address
    )
    try:
        run_agent(config, connection, common.topics(arguments), zookeeper, metrics.address, stop, heartbeat, ready)
    finally:
        metrics.close()
    return 0
