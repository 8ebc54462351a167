"""`millrace release`: ends a rollback, so that the newest version is served again."""

import argparse
import sys

from millrace.cli import common, model_command
from millrace.runtime.errors import UserError
from millrace.runtime.topics import GUARD


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "release",
        "Ends a rollback: every replica goes on with the newest version that its gate lets through, and with deltas.",
        "millrace release --model feed --reason 'labels are right again'",
        _run,
    )
    model_command.add_model_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.protos.model_event_pb2 import ModelEvent
    from millrace.serving.agent.model_events import make_event

    connection, known = model_command.read_known(arguments)
    hold = known.announced.rollback
    if hold is None:
        raise UserError("--model", arguments.model, "no rollback of it is in force", "there is nothing to release")
    if hold.held_by == GUARD:
        print(
            f"millrace release: warning: the guard of the trainer holds {arguments.model}: {hold.reason}. Versions "
            "that it suspects are served now; --resume-from-good of its trainer releases by itself, without them",
            file=sys.stderr,
        )
    event = make_event(ModelEvent.RELEASE, arguments.namespace, arguments.model, reason=arguments.reason)
    return model_command.send_and_wait(arguments, connection, event)
