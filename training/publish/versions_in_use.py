"""Versions that must stay on disk because a server has them, or a rollback holds them."""

import json
import logging
import time
from collections.abc import Iterable

from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.errors import FOREIGN_JSON_ERRORS, UserError
from millrace.runtime.kafka_client import KafkaConnection, partitions_of
from millrace.runtime.topic_range import read_messages, resolve_range
from millrace.runtime.topics import GUARD, Topics, may_be_event_of
from millrace.training.publish.published import known_event

_LOG = logging.getLogger(__name__)
_RECENT_SECONDS = 120.0  # agents report every few seconds; one that was silent for so long serves nothing any more


def versions_in_use(connection: KafkaConnection, topics: Topics, model: str, namespace: str) -> set[int] | None:
    """What agents said within the last two minutes that they serve or load, and what a ROLLBACK holds.

    Returns: None when the topics cannot be read now.
    """
    try:
        return _held(connection, topics, model, namespace) | _served(connection, topics, model, namespace)
    except Exception as error:  # whatever the client raises: the broker is away
        _LOG.warning("no version is removed: it cannot be read which are in use (%s)", error)
        return None


def _held(connection: KafkaConnection, topics: Topics, model: str, namespace: str) -> set[int]:
    # As agents read them: what a guard does leaves a user's ROLLBACK in force, a user's RELEASE ends both.
    user, guard = 0, 0
    for key, value in _records(connection, topics.model_events, "earliest"):
        event = known_event(value) if may_be_event_of(key, namespace, model) else None
        if event is None or (event.model_name, event.bzid or "default") != (model, namespace):
            continue
        if event.kind not in (ModelEvent.ROLLBACK, ModelEvent.RELEASE):
            continue
        version = event.version if event.kind == ModelEvent.ROLLBACK else 0
        if event.held_by == GUARD:
            guard = version
        else:
            user, guard = version, guard if version else 0
    return {user, guard} - {0}


def _served(connection: KafkaConnection, topics: Topics, model: str, namespace: str) -> set[int]:
    try:
        partitions_of(connection, topics.serving_status)
    except UserError:  # no agent has ever reported
        return set()
    since = int((time.time() - _RECENT_SECONDS) * 1000)
    served: set[int] = set()
    for _, value in _records(connection, topics.serving_status, f"time:{since}"):
        try:
            status = json.loads(value)
            if (status["model_name"], status["bzid"]) == (model, namespace):
                served |= {int(status["target_version"]), *map(int, status["available_versions"])}
        except FOREIGN_JSON_ERRORS:
            continue  # somebody else's
    return served


def _records(connection: KafkaConnection, topic: str, start: str) -> Iterable[tuple[bytes | None, bytes]]:
    """(key, value) of each."""
    for messages in read_messages(resolve_range(connection, topic, start)):
        for message in messages:
            yield message.key(), message.value() or b""
