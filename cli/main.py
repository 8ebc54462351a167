"""The `millrace` command: finds the module of a sub-command, parses its flags, runs it, reports errors in one line."""

import argparse
import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from millrace.runtime.errors import StoppedError, UserError

# Sub-command -> one-line summary. The command lives in cli/<name>.py or cli/<name>/command.py; a second word names
# another module of cli/<name>/. Only the chosen command is imported: `--help` and `millrace dev` need neither
# TensorFlow nor Beam, whose import takes seconds.
_COMMANDS = {
    "feed": "turn live events into training batches (Apache Beam)",
    "feed backfill": "turn stored events into training batches, hour by hour",
    "workers": "start Beam workers for the runners of this host",
    "train": "train a model on live or stored batches",
    "export": "export a checkpoint as a SavedModel",
    "serve": "serve exported models over gRPC",
    "agent": "drive a model server from Kafka and ZooKeeper",
    "rollback": "hold a served model at an earlier version",
    "release": "end a rollback: serve the newest version again",
    "retire": "take a model out of service",
    "predict": "ask a model server for one prediction",
    "records": "look at, count, convert, send and compare records of files and topics",
    "checkpoint": "look into, verify, reshard or export the tables of a checkpoint",
    "events": "generate or replay events",
    "dev": "start and stop Kafka and ZooKeeper for development",
    "demo": "run the whole loop on this machine and report on it",
    "bench": "measure every stage on this machine",
}


# What a user can mend about a file that cannot be written or read -> how.
_FILE_REMEDIES = {
    errno.ENOSPC: "free space there, or work in another folder",
    errno.EDQUOT: "free space there, or work in another folder",
    errno.EROFS: "work in a folder that can be written",
    errno.EACCES: "work in a folder that can be written, or change its permissions",
    errno.ENOTDIR: "name another path: a file stands where a folder is needed",
    errno.EEXIST: "name another path: something else stands there",
    errno.EISDIR: "name another path: a folder stands where a file is needed",
    errno.ENAMETOOLONG: "choose shorter names",
}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see `{self.prog} --help`)\n")


def _available() -> dict[str, str]:
    return {name: text for name, text in _COMMANDS.items() if importlib.util.find_spec(_module(name)) is not None}


def _module(command: str) -> str:
    wing, _, member = command.partition(" ")
    name = f"millrace.cli.{wing}"
    if member:
        return f"{name}.{member}"
    spec = importlib.util.find_spec(name)
    is_wing = spec is not None and spec.submodule_search_locations is not None
    return f"{name}.command" if is_wing else name


def _make_parser(chosen: str | None) -> _Parser:
    """The parser with all commands listed, and the flags of `chosen` only."""
    commands = _available()
    width = max(map(len, commands), default=0)
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in commands.items())
    parser = _Parser(
        prog="millrace",
        usage="millrace COMMAND [--help] [flags]",
        description="Trains recommender models on live events and serves them seconds later.",
        epilog=f"Commands:\n{listing}\n\nExample:\n  millrace dev up",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="millrace"
    )
    for name in commands:
        if name == chosen:
            importlib.import_module(_module(name)).add_parser(subparsers)
        else:
            subparsers.add_parser(name)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `argv`; a command that sets `accepts_unknown=True` finds foreign flags in `unknown`."""
    if " ".join(argv[:2]) in _COMMANDS:
        argv = [" ".join(argv[:2]), *argv[2:]]
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = _make_parser(chosen)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and not getattr(arguments, "accepts_unknown", False):
        _Parser(prog=f"millrace {arguments.command}").error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.unknown = unknown
    return arguments


def _exit_on_sigterm(_signum: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (2: a user's error, 130: interrupted)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Unwinds `finally` blocks; a long-running command replaces this with its own clean stop.
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    # It asks a trainer for a checkpoint. One that still imports has nothing to save, and must not end. A function, not
    # SIG_IGN: that would hold in the processes that a command starts.
    signal.signal(signal.SIGUSR1, lambda *_: None)
    arguments = None
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report(error, arguments)
    except StoppedError:
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe (`| head`) is gone; keep the interpreter from failing again at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _FILE_REMEDIES:
            raise
        path = error.filename2 or error.filename or "a file that is written"  # a failed write() names no file
        return _report(
            UserError("path", path, os.strerror(error.errno).lower(), _FILE_REMEDIES[error.errno]), arguments
        )


def _report(error: UserError, arguments: argparse.Namespace | None) -> int:
    """Prints the error in one line; returns the exit code of a user's error."""
    command = f"millrace {arguments.command}" if arguments else "millrace"
    print(f"{command}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def run() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
