"""Positions in Kafka topics: what a user writes for one, and the offsets that it means now."""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from millrace.runtime.errors import UnreachableError, UserError
from millrace.runtime.kafka_client import (
    KafkaConnection,
    is_passing,
    make_consumer,
    partitions_of,
    watermark_offsets,
)

_LOG = logging.getLogger(__name__)
# A broker that has just started answers within this time.
_REQUEST_SECONDS = 10.0
_BEYOND_END = 1 << 62  # above every offset
_START_CHOICES = "earliest, latest, group, time:MILLISECONDS or a JSON object of offsets"

Partition = tuple[str, int]
"""(topic, number of the partition)."""

Positions = dict[Partition, int]
"""{partition: next offset}."""


OnLost = Callable[[Partition, int, int], None]
"""Takes (partition, wanted offset, first offset that exists): retention has removed what lies between."""


def resolve_start(
    connection: KafkaConnection,
    topic: str,
    start: str,
    group_id: str,
    field_name: str = "--start",
    tag: str | None = None,
    on_lost: OnLost | None = None,
) -> dict[int, int]:
    """The offsets that a position means.

    Args:
      start: earliest, latest, time:MILLISECONDS (the first record of that time or later), group (the committed offsets,
        earliest where there is none) or {"0": 17, ...}.
      field_name: setting that an error names.
      tag: committed offsets with another tag (`PartitionReader.commit`) are those of a topic that had this name before:
        they count as none. Offsets without a tag count. None: all count.
      on_lost: told about committed and given offsets that retention has removed.

    Returns: {partition: offset}; an offset that retention has removed becomes the earliest.
    Raises:
      UserError: a topic or partition does not exist, the position is wrong, or a broker refuses.
      UnreachableError: the brokers are away.
    """
    partitions = partitions_of(connection, topic)
    consumer = make_consumer(connection, group_id)
    try:
        ends = {partition: watermark_offsets(consumer, topic, partition) for partition in partitions}
        chosen: Mapping[int, int]
        if start == "earliest":
            chosen = {}
        elif start == "latest":
            chosen = {partition: high for partition, (_, high) in ends.items()}
        elif start == "group":
            chosen = _committed(consumer, topic, partitions, tag)
        elif start.startswith("time:"):
            chosen = _at_time(consumer, topic, partitions, start, field_name)
        else:
            chosen = _explicit(start, partitions, field_name)
    except KafkaException as error:
        if is_passing(error.args[0]):
            raise UnreachableError(
                "--kafka", connection.bootstrap_servers, error.args[0].str(), "see the broker's log"
            ) from error
        raise UserError("--kafka", connection.bootstrap_servers, error.args[0].str(), "see the broker's log") from error
    finally:
        consumer.close()
    for partition, (low, _) in ends.items():
        if on_lost is not None and chosen.get(partition, low) < low:
            on_lost((topic, partition), chosen[partition], low)
    return {partition: min(high, max(low, chosen.get(partition, low))) for partition, (low, high) in ends.items()}


def resolve_topics(
    connection: KafkaConnection,
    topics: Collection[str],
    start: str,
    group_id: str,
    field_name: str = "start",
    tags: Mapping[str, str] | None = None,
    on_lost: OnLost | None = None,
) -> Positions:
    """`resolve_start` for several topics; `tags` are theirs."""
    tags = tags or {}
    return {
        (topic, partition): offset
        for topic in topics
        for partition, offset in resolve_start(
            connection, topic, start, group_id, field_name, tags.get(topic), on_lost
        ).items()
    }


def _committed(consumer: Consumer, topic: str, partitions: list[int], tag: str | None) -> dict[int, int]:
    # A broker that has just started may still be loading the offsets of the group.
    give_up = time.monotonic() + _REQUEST_SECONDS
    while True:
        try:
            found = consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=5.0)
            mine = [each for each in found if tag is None or not each.metadata or each.metadata == tag]
            if len(mine) < len(found):
                _LOG.warning(
                    "%s was made anew since the group committed its offsets: reading it from its beginning", topic
                )
            return {each.partition: each.offset for each in mine if each.offset >= 0}
        except KafkaException:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)


def _at_time(consumer: Consumer, topic: str, partitions: list[int], start: str, field_name: str) -> dict[int, int]:
    try:
        time_ms = int(start.removeprefix("time:"))
    except ValueError:
        raise UserError(field_name, start, "not a number of milliseconds", f"choose {_START_CHOICES}") from None
    asked = [TopicPartition(topic, partition, time_ms) for partition in partitions]
    found = consumer.offsets_for_times(asked, timeout=_REQUEST_SECONDS)
    # A negative offset says that every record is older.
    return {each.partition: each.offset if each.offset >= 0 else _BEYOND_END for each in found}


def _explicit(start: str, partitions: list[int], field_name: str) -> dict[int, int]:
    try:
        chosen = {int(partition): int(offset) for partition, offset in json.loads(start).items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(field_name, start, "not a start position", f"choose {_START_CHOICES}") from None
    unknown = sorted(set(chosen) - set(partitions))
    if unknown:
        raise UserError(field_name, start, f"partition {unknown[0]} does not exist", f"partitions are {partitions}")
    return chosen
