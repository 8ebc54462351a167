"""`millrace dev`: Kafka and ZooKeeper for development."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from millrace.cli.common import add_command, stop_on_signals
from millrace.runtime.errors import UserError
from millrace.runtime.servers.artifacts import maven_jars, prism_binary
from millrace.runtime.servers.dev_servers import DevServers, ServerStatus, default_state_folder

_EXAMPLE = """\
millrace dev up
millrace dev status --json
millrace dev logs kafka
millrace dev restart
millrace dev down"""

_POLL_SECONDS = 0.3  # between two looks at the logs: a reader takes it for at once


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `millrace dev up|down|restart|status|logs|fetch`."""
    parser = add_command(
        subparsers,
        "dev",
        "Starts and stops a single-node Kafka and a ZooKeeper on this machine.\n\n"
        "Both are fetched from Maven once. State lies under .state/dev of the working folder, or $MILLRACE_STATE/dev;\n"
        "jars under ~/.cache/millrace, or $MILLRACE_CACHE. Where MILLRACE_KAFKA or MILLRACE_ZOOKEEPER names a server,\n"
        "that one is used and none is started.",
        _EXAMPLE,
        _status,
    )
    actions = parser.add_subparsers(dest="action", metavar="up|down|restart|status|logs|fetch", required=True)
    _add_action(actions, "up", "start both and wait until they answer", _up)
    _add_action(actions, "down", "stop both; their data stays", _down)
    _add_action(actions, "restart", "stop both and start them on the same ports with the same data", _restart)
    status = _add_action(actions, "status", "what runs, and where", _status)
    status.add_argument("--json", action="store_true", help="for scripts")
    logs = _add_action(actions, "logs", "print the last lines of the servers' logs", _logs)
    logs.add_argument("server", nargs="?", choices=("kafka", "zookeeper"), help="one server only")
    logs.add_argument("--lines", type=_line_count, default=20, metavar="N", help="lines of each log (default: 20)")
    logs.add_argument("--follow", action="store_true", help="go on until interrupted")
    fetch = _add_action(actions, "fetch", "fetch servers and runners into the cache, and start nothing", _fetch)
    fetch.add_argument("what", nargs="*", metavar="kafka|zookeeper|prism|flink", help="default: kafka zookeeper prism")


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _line_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of lines")
    return int(text)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _servers() -> DevServers:
    return DevServers(default_state_folder(), _say)


def _print(status: ServerStatus) -> None:
    process = f"  pid {status.pid}  log {status.log}" if status.pid else ""
    print(f"{status.name:<10} {status.state:<9} {status.address or '-'}{process}")


def _print_all(servers: DevServers) -> None:
    for status in servers.status():
        _print(status)


def _up(_: argparse.Namespace) -> int:
    servers = _servers()
    servers.up()
    _print_all(servers)
    return 0


def _restart(_: argparse.Namespace) -> int:
    servers = _servers()
    servers.restart()
    _print_all(servers)
    return 0


def _down(_: argparse.Namespace) -> int:
    _servers().down()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    servers = _servers()
    if arguments.json:
        print(json.dumps([asdict(status) for status in servers.status()], indent=2))
    else:
        _print_all(servers)
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    for name in arguments.what or ("kafka", "zookeeper", "prism"):
        if name not in ("kafka", "zookeeper", "prism", "flink"):
            raise UserError("what", name, "it cannot be fetched", "choose from kafka, zookeeper, prism, flink")
        path = prism_binary(_say) if name == "prism" else maven_jars(name, _say)
        print(f"{name:<10} {path}")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    servers = [server for server in _servers().servers if arguments.server in (None, server.name)]
    offsets = {}
    for server in servers:
        data = server.log.read_bytes() if server.log.exists() else b""
        lines = data.decode("utf-8", "replace").splitlines()
        _print_lines(server.name, lines[len(lines) - min(arguments.lines, len(lines)) :])
        offsets[server.name] = len(data)
    stop = stop_on_signals() if arguments.follow else None
    while stop is not None and not stop.wait(_POLL_SECONDS):
        for server in servers:
            if server.log.exists():
                with open(server.log, "rb") as log:
                    log.seek(offsets[server.name])
                    data = log.read()
                whole = data[: data.rfind(b"\n") + 1]
                offsets[server.name] += len(whole)
                _print_lines(server.name, whole.decode("utf-8", "replace").splitlines())
    return 0


def _print_lines(name: str, lines: list[str]) -> None:
    for line in lines:
        print(f"{name:<9} | {line}")
    sys.stdout.flush()
