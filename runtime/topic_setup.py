"""Topics whose settings matter to the loop: made with the right ones, and looked at where they exist."""

import logging

from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, partitions_of, topic_settings

__all__ = ["DELTA_RETENTION_MS", "ensure_deltas", "ensure_model_events"]

_LOG = logging.getLogger(__name__)

DELTA_RETENTION_MS = 7 * 24 * 3600 * 1000
"""A week: a server that loads an export needs all deltas since, and an export that is held may serve for days."""

# Brokers leave the newest segment as it is, for a week unless told otherwise. A trainer writes some 10,000 events per
# day and reads all of them before it removes a version: after a few days they would take seconds of each export.
_COMPACTED = {"cleanup.policy": "compact", "segment.ms": str(3600 * 1000)}


def ensure_model_events(connection: KafkaConnection, topic: str) -> None:
    """Makes the topic of model events, or checks the one that exists: one partition, compacted.

    Trainers write to it and agents read it by one order; what is announced or held has to stay for ever.

    Raises:
      UserError: it has several partitions or is not compacted, or a right is missing.
    """
    ensure_topic(connection, topic, partitions=1, config=_COMPACTED)
    count = len(partitions_of(connection, topic))
    if count != 1:
        raise UserError(
            "topic", topic, f"it has {count} partitions, and its events need one order",
            "delete it and start again: it is made with one partition",
        )  # fmt: skip
    settings = topic_settings(connection, topic)
    if settings is not None and settings["cleanup.policy"] != "compact":
        raise UserError(
            "topic", topic, f"cleanup.policy={settings['cleanup.policy']} removes events that still hold",
            f"run `{_alter(topic, 'cleanup.policy=compact')}`",
        )  # fmt: skip


def ensure_deltas(connection: KafkaConnection, topic: str) -> None:
    """Makes a topic of deltas that keeps them for a week; warns when the one that exists may lose them sooner.

    Raises:
      UserError: a right is missing.
    """
    ensure_topic(
        connection,
        topic,
        config={"cleanup.policy": "delete", "retention.ms": str(DELTA_RETENTION_MS), "retention.bytes": "-1"},
    )
    settings = topic_settings(connection, topic)
    if settings is None:
        return
    wrong = []
    if "compact" in settings["cleanup.policy"]:
        wrong.append("cleanup.policy=delete")
    if 0 <= int(settings["retention.ms"]) < DELTA_RETENTION_MS:
        wrong.append(f"retention.ms={DELTA_RETENTION_MS}")
    if int(settings["retention.bytes"]) >= 0:
        wrong.append("retention.bytes=-1")
    if wrong:
        _LOG.warning(
            "%s may lose deltas that an export in service still needs (now %s); a server that meets a gap serves old "
            "values until it has the next export. Run `%s`",
            topic,
            ", ".join(f"{name}={settings[name]}" for name in ("cleanup.policy", "retention.ms", "retention.bytes")),
            _alter(topic, ",".join(wrong)),
        )


def _alter(topic: str, settings: str) -> str:
    return (
        f"kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics --entity-name {topic} "
        f"--add-config {settings}"
    )
