"""Decides from where to where a feed reads, before its pipeline is built, and refuses wrong topics and positions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.kafka.topic_sources import commit_tag, note_lost, topic_sources
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import check_broker, ensure_topic, partitions_of
from millrace.runtime.kafka_positions import Positions, resolve_start
from millrace.runtime.topics import Topics

_KINDS = ("impressions", "actions")
_RECORDS = "records"


@dataclass(frozen=True)
class ReadPlan:
    """From where to where a feed reads, and to how many partitions it writes.

    Attributes:
      start, end: {(topic, partition): offset}; `end` is None for an unbounded feed, both are empty for files.
      train_partitions: partitions of the train topic.
      sources: {topic: number of the source} of the topics that are read (`millrace.transforms.batch.provenance`).
    """

    topics: Topics = field(default_factory=Topics)
    start: Positions = field(default_factory=dict)
    end: Positions | None = None
    train_partitions: int = 1
    sources: Mapping[str, int] = field(default_factory=dict)


def plan_reads(options: FeedOptions) -> ReadPlan:
    """Asks the brokers; raises UserError for an unreachable broker, a missing topic or a wrong position."""
    source = options.source
    if not isinstance(source, KafkaSettings):
        return ReadPlan()
    check_broker(source.connection)
    topics = _topics(source)
    sources = topic_sources(source.connection, topics.values())
    start = _positions(source, topics, sources, "--start", source.start)
    end = None if source.until is None else _positions(source, topics, sources, "--until", source.until)
    if end is not None:
        end = {key: max(offset, start[key]) for key, offset in end.items()}
    train_partitions = 1
    if options.parquet is None:
        train = source.topics.train(options.config.model)
        ensure_topic(source.connection, train, options.tuning.feed_shards)
        ensure_topic(source.connection, source.topics.dead_letter)
        if options.config.routed_actions and source.records is None:
            ensure_topic(source.connection, source.topics.routed_actions)
        train_partitions = len(partitions_of(source.connection, train))
    return ReadPlan(source.topics, start, end, train_partitions, sources)


def _topics(source: KafkaSettings) -> dict[str, str]:
    """{kind: topic}."""
    if source.records is not None:
        return {_RECORDS: source.records[0]}
    return {kind: getattr(source.topics, kind) for kind in _KINDS}


def _positions(
    source: KafkaSettings, topics: Mapping[str, str], sources: Mapping[str, int], flag: str, text: str
) -> Positions:
    by_kind = {_RECORDS: text} if source.records is not None else _by_kind(flag, text)
    on_lost = note_lost if flag == "--start" else None
    positions: Positions = {}
    for kind, topic in topics.items():
        where = "latest" if flag == "--until" and by_kind[kind] == "end" else by_kind[kind]
        tag = commit_tag(sources[topic]) if topic in sources else None
        found = resolve_start(source.connection, topic, where, source.group, flag, tag, on_lost)
        for partition, offset in found.items():
            positions[topic, partition] = offset
    return positions


def _by_kind(flag: str, text: str) -> dict[str, str]:
    """The position of each kind: JSON has one object per kind, any other text is the position of both."""
    if not text.startswith("{"):
        return dict.fromkeys(_KINDS, text)
    try:
        parsed = json.loads(text)
        return {kind: json.dumps(parsed[kind]) for kind in _KINDS}
    except (ValueError, KeyError, TypeError):
        example = '{"impressions": {"0": 17}, "actions": {"0": 4}}'
        raise UserError(flag, text, "not offsets by topic and partition", f"write {example}") from None
