"""Decides from where to where a feed reads, before its pipeline is built, and refuses wrong topics and positions."""

import json
from dataclasses import dataclass, field

from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import check_broker, ensure_topic, partitions_of
from millrace.runtime.kafka_positions import Positions, resolve_start
from millrace.runtime.topics import Topics

# How long a timer, a bundle and a flush to Kafka may take together, after the join's window has closed.
_COMMIT_MARGIN_SECONDS = 5.0
_KINDS = ("impressions", "actions")
_RECORDS = "records"


@dataclass(frozen=True)
class ReadPlan:
    """From where to where a feed reads, and to how many partitions it writes.

    Attributes:
      start, end: {(topic, partition): offset}; `end` is None for an unbounded feed, both are empty for files.
      train_partitions: partitions of the train topic.
      commit_delay_seconds: how far committed offsets trail, so that a restart reads again what the join may hold.
    """

    topics: Topics = field(default_factory=Topics)
    start: Positions = field(default_factory=dict)
    end: Positions | None = None
    train_partitions: int = 1
    commit_delay_seconds: float = 0.0


def plan_reads(options: FeedOptions) -> ReadPlan:
    """Asks the brokers; raises UserError for an unreachable broker, a missing topic or a wrong position."""
    source = options.source
    if not isinstance(source, KafkaSettings):
        return ReadPlan()
    check_broker(source.connection)
    start = _positions(source, "--start", source.start)
    end = None if source.until is None else _positions(source, "--until", source.until)
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
    delay = options.config.window_seconds + options.tuning.timer_seconds + _COMMIT_MARGIN_SECONDS
    return ReadPlan(source.topics, start, end, train_partitions, delay)


def _positions(source: KafkaSettings, flag: str, text: str) -> Positions:
    if source.records is not None:
        topics, by_kind = {_RECORDS: source.records[0]}, {_RECORDS: text}
    else:
        topics, by_kind = {kind: getattr(source.topics, kind) for kind in _KINDS}, _by_kind(flag, text)
    positions: Positions = {}
    for kind, topic in topics.items():
        where = "latest" if flag == "--until" and by_kind[kind] == "end" else by_kind[kind]
        for partition, offset in resolve_start(source.connection, topic, where, source.group, flag).items():
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
