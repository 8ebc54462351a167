"""Flags, addresses, signals and ready files that the commands share."""

import argparse
import datetime
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.runtime.atomic_file import write_text
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, check_broker
from millrace.runtime.topics import Topics

if TYPE_CHECKING:
    from millrace.runtime.telemetry import MetricsEndpoint
    from millrace.transforms.frames.framing import FrameOptions

# Help texts name the example recipes by their whole path, so that their commands work without a checkout.
RECIPES = Path(__file__).resolve().parents[1] / "examples" / "recipes"

_ADDRESS = re.compile(r"[^\s:,]+:\d{1,5}")
_MOST_DIGITS = 18
_NOTEBOOK_PACKAGES = ("matplotlib", "sklearn")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,100}")

FRAME_HEADERS = {
    "lagrangex": "lagrangex_header",
    "kafka-dump-prefix": "kafka_dump_prefix",
    "sort-id": "has_sort_id",
    "kafka-dump": "kafka_dump",
}
"""Words of --frames and the fields of `FrameOptions` that they set."""


def add_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    description: str,
    example: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A parser for `millrace <name>` whose help ends in an example that runs.

    Args:
      example: one or more shell lines, without indentation.
      run: called with the parsed arguments, returns the exit code.
    """
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
    parser = subparsers.add_parser(
        name,
        description=description,
        epilog=f"Example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def at_least_one(text: str) -> int:
    """argparse type: a whole number from 1 on."""
    return _whole_number(text, 1)


def at_least_zero(text: str) -> int:
    """argparse type: a whole number from 0 on."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    """Of 18 digits at most, so that it fits an int64 of a message."""
    if not text.isdecimal() or int(text[:20]) < least:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number of at least {least}")
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' has {len(text)} digits; give at most {_MOST_DIGITS}")
    return int(text)


def above_zero(text: str) -> float:
    """argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def port_number(text: str) -> int:
    """argparse type: a TCP port, 0 for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; give a number from 0 (any free port) to 65535")
    return int(text)


def addresses(text: str) -> str:
    """argparse type: `host:port[,host:port]`."""
    if not all(_ADDRESS.fullmatch(part) and int(part.rpartition(":")[2]) <= 65535 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' is not an address; give HOST:PORT[,HOST:PORT]")
    return text


def topic_prefix(text: str) -> str:
    """argparse type: characters that Kafka allows in a topic name."""
    if not _PREFIX.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' cannot begin a topic name; use letters, digits, '.', '_' and '-'")
    return text


def add_kafka_flags(parser: argparse.ArgumentParser) -> None:
    """--kafka, --kafka-properties and --topic-prefix."""
    parser.add_argument(
        "--kafka",
        type=addresses,
        metavar="HOST:PORT",
        help="Kafka brokers (default: $MILLRACE_KAFKA, else the broker of `millrace dev`)",
    )
    parser.add_argument(
        "--kafka-properties",
        metavar="FILE",
        help="librdkafka settings (TLS, SASL), one key=value per line; never logged",
    )
    parser.add_argument(
        "--topic-prefix", type=topic_prefix, default="", metavar="PREFIX", help="goes before the name of every topic"
    )


def add_namespace_flag(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """--namespace."""
    parser.add_argument(
        "--namespace", default="default", metavar="NAME", help="name space of models (default: %(default)s)"
    )


def add_zookeeper_flag(parser: argparse.ArgumentParser) -> None:
    """--zookeeper and --zookeeper-properties."""
    parser.add_argument(
        "--zookeeper",
        type=addresses,
        metavar="HOST:PORT",
        help="ZooKeeper (default: $MILLRACE_ZOOKEEPER, else the server of `millrace dev`)",
    )
    parser.add_argument(
        "--zookeeper-properties",
        metavar="FILE",
        help="TLS and credentials of ZooKeeper, one key=value per line; never logged",
    )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """--metrics-host, --metrics-port, --ready-file and --log-level, for every long-running process."""
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="interface of /metrics and /healthz, which answer anybody; 0.0.0.0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-port",
        type=port_number,
        default=0,
        metavar="PORT",
        help="port of /metrics and /healthz (default: a free one, which the log names)",
    )
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="write JSON with pid and addresses when ready")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))


def metrics_endpoint(
    arguments: argparse.Namespace, health: Callable[[], str | None] = lambda: None
) -> "MetricsEndpoint":
    """The endpoint of --metrics-host and --metrics-port; `health` as of `MetricsEndpoint`."""
    from millrace.runtime.telemetry import MetricsEndpoint

    return MetricsEndpoint(arguments.metrics_port, health, arguments.metrics_host)


def _address(arguments: argparse.Namespace, name: str) -> str:
    """Address of server `name` from the flag, the environment or the development servers."""
    from millrace.runtime.servers.dev_servers import running_address

    variable = f"MILLRACE_{name.upper()}"
    given = getattr(arguments, name) or os.environ.get(variable) or running_address(name)
    if not given:
        raise UserError(
            f"--{name}", "", "no address is given", f"run `millrace dev up`, give --{name} HOST:PORT or set {variable}"
        )
    try:
        return addresses(given)
    except argparse.ArgumentTypeError as error:
        raise UserError(variable, given, "this is not an address", "give HOST:PORT[,HOST:PORT]") from error


def kafka_connection(
    arguments: argparse.Namespace, check: bool = True, stop: threading.Event | None = None
) -> KafkaConnection:
    """The brokers of --kafka, $MILLRACE_KAFKA or `millrace dev`.

    Args:
      check: ask a broker for metadata first, so that an unreachable one is a UserError at once.
      stop: of a command that runs until it is stopped: it waits for an unreachable broker instead, without limit.
    """
    connection = KafkaConnection(_address(arguments, "kafka"), arguments.kafka_properties)
    if check and stop is not None:
        from millrace.runtime.outage import wait_for_kafka

        wait_for_kafka(connection, stop)
    elif check:
        check_broker(connection)
    return connection


def topics(arguments: argparse.Namespace) -> Topics:
    """Topic names under --topic-prefix."""
    return Topics(arguments.topic_prefix)


def zookeeper_address(arguments: argparse.Namespace) -> str:
    """ZooKeeper's `host:port[,host:port]` from --zookeeper, $MILLRACE_ZOOKEEPER or `millrace dev`."""
    return _address(arguments, "zookeeper")


def frame_options(text: str | None) -> "FrameOptions | None":
    """Headers of framed records from the words of --frames; None without the flag, UserError for an unknown word."""
    from millrace.transforms.frames.framing import FrameOptions

    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FRAME_HEADERS:
            raise UserError("--frames", name, "unknown", f"choose from {', '.join(FRAME_HEADERS)}, or give none")
    return FrameOptions(**{FRAME_HEADERS[name]: True for name in names})


def add_tf_features_flag(group: "argparse._ArgumentGroup") -> None:
    """--tf-features."""
    group.add_argument(
        "--tf-features",
        type=Path,
        metavar="FILE",
        help='JSON or YAML file that describes tf.Examples: {"sparse_features": {"item": 2}, "dense_features": [], '
        '"label": "click", "instance_weight": ""}',
    )


@contextmanager
def tensorflow_import() -> Iterator[None]:
    """Around the import of whatever needs TensorFlow: quiet, and without what only notebooks need.

    TensorFlow's libraries write several lines about CPUs and GPUs before any setting of theirs can silence them. Keras
    imports matplotlib and scikit-learn where they are installed, for helpers that no command uses: a quarter of the
    time until a killed trainer is back. An import that fails still raises.
    """
    hidden = [name for name in _NOTEBOOK_PACKAGES if name not in sys.modules]
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python reports it as missing
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set, for commands that end cleanly with exit code 0."""
    stop = threading.Event()

    def handle(signum: int, _frame: object) -> None:
        logging.getLogger("millrace").info("stopping on %s", signal.Signals(signum).name)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def announce_ready(arguments: argparse.Namespace, **fields: str | int) -> None:
    """Logs `ready key=value ...` and writes {"pid", **fields} to --ready-file, if given."""
    words = " ".join(f"{key}={value}" for key, value in fields.items())
    logging.getLogger("millrace").info("ready %s", words)
    if arguments.ready_file:
        arguments.ready_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.ready_file, json.dumps({"pid": os.getpid()} | fields) + "\n")


def moment(text: str) -> int:
    """Unix milliseconds of an ISO 8601 time (UTC unless it says otherwise) or of a number."""
    if text.isdecimal():
        return at_least_zero(text)
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no time, for example 2026-01-31T12:00:00Z") from error
    zone = found.tzinfo or datetime.UTC
    return round(found.replace(tzinfo=zone).timestamp() * 1000)
