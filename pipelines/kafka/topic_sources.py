"""Which source a topic's name stands for now, where a group's offsets of it begin, and what was lost of it."""

import logging
from collections.abc import Collection

from confluent_kafka import KafkaException

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_positions import Partition
from millrace.runtime.kafka_topics import KafkaTopic, TopicDescriber
from millrace.transforms.batch.provenance import source_number

_LOG = logging.getLogger(__name__)
_REQUEST_SECONDS = 10.0  # a broker that has just started answers within this time

_LOST = telemetry.counter(
    "feed_records_lost", "Offsets that were not there any more when they were to be read.", ("topic", "partition")
)
_CUT = telemetry.counter(
    "feed_partitions_cut_short", "Times that a partition was found shorter than it was read.", ("topic", "partition")
)


def topic_sources(connection: KafkaConnection, topics: Collection[str]) -> dict[str, int]:
    """{topic: number of its source}, without topics that do not exist; UserError when no broker tells."""
    try:
        found = TopicDescriber(connection).describe(topics, _REQUEST_SECONDS)
    except KafkaException as error:
        raise UserError("--kafka", connection.bootstrap_servers, error.args[0].str(), "see the broker's log") from error
    return {topic: number_of(each) for topic, each in found.items()}


def number_of(topic: KafkaTopic) -> int:
    """Number of the source that this topic is (`millrace.transforms.batch.provenance`)."""
    return source_number(topic.cluster, topic.id)


def commit_tag(source: int) -> str:
    """What is stored with committed offsets, so that those of a topic that had the same name before are not used."""
    return f"source={source}"


def note_lost(key: Partition, wanted: int, first: int) -> None:
    """Counts and logs offsets [wanted, first) of a partition as lost."""
    _LOST.labels(*map(str, key)).inc(first - wanted)
    _LOG.error(
        "%s[%d]: offsets %d to %d are lost: retention removed them before they were read; let the topic keep its "
        "records for longer, or make the feed faster",
        *key,
        wanted,
        first - 1,
    )


def note_cut(key: Partition, wanted: int, end: int) -> None:
    """Counts and logs that a partition, read up to `wanted`, ends at `end`: offsets between come a second time."""
    _CUT.labels(*map(str, key)).inc()
    _LOST.labels(*map(str, key)).inc(max(0, wanted - end))
    _LOG.error(
        "%s[%d] was read up to offset %d and is shorter now, with its end at %d: a leader without the newest records "
        "was elected, or a broker was restored; it is read on from there, and records below offset %d count as lost, "
        "because trainers take them for repeats; to have them trained, make the topic anew",
        *key,
        wanted,
        end,
        wanted,
    )
