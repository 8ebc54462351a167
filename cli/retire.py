"""`millrace retire`: takes a model out of service."""

import argparse

from millrace.cli import common, model_command


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = common.add_command(
        subparsers,
        "retire",
        "Takes a model out of service: its servers unload it, and its clients get NOT_FOUND. Stop its trainer first:\n"
        "the next export puts the model in service again.",
        "millrace retire --model feed --reason 'replaced by another model'",
        _run,
    )
    model_command.add_model_flags(parser)


def _run(arguments: argparse.Namespace) -> int:
    from millrace.protos.model_event_pb2 import ModelEvent
    from millrace.serving.agent.model_events import make_event

    connection, _ = model_command.read_known(arguments)
    event = make_event(ModelEvent.RETIRE, arguments.namespace, arguments.model, reason=arguments.reason)
    return model_command.send_and_wait(arguments, connection, event)
