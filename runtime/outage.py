"""Waits, without limit, for servers that are away: each wait is logged every 10 s, told by `/healthz` and measured."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from confluent_kafka import KafkaException

from millrace.runtime import telemetry
from millrace.runtime.errors import StoppedError, UnreachableError
from millrace.runtime.kafka_client import KafkaConnection, check_broker, is_passing

__all__ = ["is_away", "wait_for_kafka", "waiting_for", "while_away"]

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0  # a server that is back is used this soon
_LOG_SECONDS = 10.0

_Answer = TypeVar("_Answer")


def is_away(error: Exception) -> bool:
    """Whether `error` says that a server is away, restarts or chooses a leader, so that asking again helps."""
    if isinstance(error, KafkaException):
        return is_passing(error.args[0])
    return isinstance(error, UnreachableError)


def while_away(ask: Callable[[], _Answer], what: str, stop: threading.Event | None = None) -> _Answer:
    """What `ask` returns, which is called again each second while the server that it needs is away.

    To be called by processes that run for ever, around all that they ask of a server before their loop begins.

    Args:
      ask: may be called many times; `is_away` says which of its errors are an outage. Others are raised.
      what: the server and its address, such as "Kafka at host:9092", for the log and `/healthz`.
      stop: the process ends when it is set.

    Raises:
      StoppedError: `stop` was set meanwhile.
    """
    stop = stop or threading.Event()
    try:
        return ask()
    except Exception as error:
        if not is_away(error):
            raise
        problem = _words(error)
    with waiting_for(what) as say:
        say(problem)
        while not stop.wait(_RETRY_SECONDS):
            try:
                return ask()
            except Exception as error:
                if not is_away(error):
                    raise
                say(_words(error))
        raise StoppedError(f"stopped while waiting for {what}")


def wait_for_kafka(
    connection: KafkaConnection, stop: threading.Event | None = None, field_name: str = "--kafka"
) -> None:
    """Returns when a broker answers.

    Raises:
      UserError: the brokers refuse the credentials, or a client setting is wrong.
      StoppedError: `stop` was set meanwhile.
    """
    while_away(lambda: check_broker(connection, field_name), f"Kafka at {connection.bootstrap_servers}", stop)


@contextmanager
def waiting_for(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str], None]]:
    """Around a wait for `what`: tells `/healthz` and the gauge `waiting`.

    Yields: a function that takes what is wrong now, to be called at each attempt; it logs the first and then one every
      10 s.
    """
    began = clock()
    next_log = began

    def say(problem: str) -> None:
        nonlocal next_log
        if clock() >= next_log:
            next_log = clock() + _LOG_SECONDS
            _LOG.warning("waiting for %s for %.0f s: %s", what, clock() - began, problem)

    with telemetry.WAITS.entry(what):
        yield say
    if next_log > began:
        _LOG.info("%s is back after %.0f s", what, clock() - began)


def _words(error: Exception) -> str:
    return str(error.args[0].str()) if isinstance(error, KafkaException) else str(error)
