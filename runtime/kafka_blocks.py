"""Blocks of Kafka records from chosen partitions, and where to start and stop reading them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from runtime.errors import UserError
from runtime.kafka_client import KafkaConnection, make_consumer, partitions_of

_REQUEST_SECONDS = 10.0
_BEYOND_END = 1 << 62
_START_CHOICES = "earliest, latest, group, time:MILLISECONDS or a JSON object of offsets"


class KafkaReadError(RuntimeError):
    """A partition cannot be read any more."""


Positions = dict[tuple[str, int], int]
"""{(topic, partition): next offset}."""


@dataclass
class Block:
    """Records of one topic, in offset order within each partition; the lists have equal length.

    Attributes:
      timestamps_ms: Kafka record timestamps, 0 where the record has none.
      values: record values; None for a tombstone.
    """

    topic: str
    values: list[bytes | None] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    timestamps_ms: list[int] = field(default_factory=list)


class BlockReader:
    """Reads partitions from explicit offsets on, several topics through one client; never joins a consumer group.

    Args:
      start: {(topic, partition): first offset to read}.
      group_id: where `commit` records progress.
    """

    def __init__(
        self, connection: KafkaConnection, start: Mapping[tuple[str, int], int], group_id: str = "millrace"
    ) -> None:
        self._consumer = make_consumer(
            connection,
            group_id,
            auto_offset_reset="error",
            queued_max_messages_kbytes=16_384,
            reconnect_backoff_max_ms=1000,
        )
        self._consumer.assign([TopicPartition(*key, offset) for key, offset in start.items()])
        self._next = dict(start)

    def read(self, max_records: int, seconds: float) -> list[Block]:
        """What is there, one block a topic, waiting at most `seconds` for `max_records`; [] when nothing is.

        Raises:
          KafkaReadError: the offset is gone (retention) or the topic was deleted.
        """
        blocks: dict[str, Block] = {}
        for message in self._consumer.consume(max_records, seconds):
            error = message.error()
            topic, partition = message.topic(), message.partition()
            if error is not None:
                if not error.retriable() and error.code() not in _PASSING:
                    raise KafkaReadError(f"{topic}[{partition}]: {error.str()}")
                continue
            block = blocks.get(topic)
            if block is None:
                block = blocks[topic] = Block(topic)
            offset = message.offset()
            block.values.append(message.value())
            block.partitions.append(partition)
            block.offsets.append(offset)
            block.timestamps_ms.append(max(0, message.timestamp()[1]))
            self._next[topic, partition] = offset + 1
        return list(blocks.values())

    def positions(self) -> Positions:
        """Next offsets, also past control records and gaps that `read` never returned."""
        known = self._consumer.position([TopicPartition(*key) for key in self._next])
        return {
            (each.topic, each.partition): max(each.offset, self._next[each.topic, each.partition]) for each in known
        }

    def commit(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Records `positions` for the group without waiting; a failure shows at the next restart only."""
        self._consumer.commit(
            offsets=[TopicPartition(*key, offset) for key, offset in positions.items()], asynchronous=True
        )

    def close(self) -> None:
        self._consumer.close()


# Broker restarts and lost connections: librdkafka reconnects by itself.
_PASSING = {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._PARTITION_EOF}


def resolve_start(
    connection: KafkaConnection, topic: str, start: str, group_id: str, field_name: str = "--start"
) -> dict[int, int]:
    """{partition: first offset} for `start`: earliest, latest, group, time:MILLISECONDS or {"0": 17, ...}.

    `group` is the group's committed offset, or the earliest one where there is none. Offsets that retention has
    already removed become the earliest.
    """
    partitions = partitions_of(connection, topic)
    consumer = make_consumer(connection, group_id)
    try:
        ends = {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_REQUEST_SECONDS)
            for partition in partitions
        }
        chosen: Mapping[int, int]
        if start == "earliest":
            chosen = {}
        elif start == "latest":
            chosen = {partition: high for partition, (_, high) in ends.items()}
        elif start == "group":
            chosen = _committed(consumer, topic, partitions)
        elif start.startswith("time:"):
            chosen = _at_time(consumer, topic, partitions, start, field_name)
        else:
            chosen = _explicit(start, partitions, field_name)
    except KafkaException as error:
        raise UserError("--kafka", connection.bootstrap_servers, error.args[0].str(), "see the broker's log") from error
    finally:
        consumer.close()
    return {partition: min(high, max(low, chosen.get(partition, low))) for partition, (low, high) in ends.items()}


def _committed(consumer: Consumer, topic: str, partitions: list[int]) -> dict[int, int]:
    # Right after its start a broker may still be loading the group's coordinator.
    give_up = time.monotonic() + _REQUEST_SECONDS
    while True:
        try:
            found = consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=5.0)
            return {each.partition: each.offset for each in found if each.offset >= 0}
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
    # A negative offset: no record is as young as that, so start at the end.
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
