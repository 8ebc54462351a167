"""`millrace records replay`: sends records, or dead letters, to topics."""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator

from millrace.cli.common import kafka_connection, stop_on_signals
from millrace.cli.records.screen import progress
from millrace.cli.records.source import open_source, row_settings, topic_name
from millrace.pipelines.files.containers import DEAD_LETTER
from millrace.pipelines.files.writers import make_encoder
from millrace.pipelines.records.replay import Outgoing, Replay, Sender
from millrace.pipelines.records.source import RecordSource, TopicSource
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, partitions_of


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    connection = kafka_connection(arguments)
    source = open_source(arguments, arguments.source, DEAD_LETTER if arguments.from_dead_letters else None)
    topic = topic_name(arguments, arguments.topic) if arguments.topic else None
    sender = Sender(connection, arguments.rate, stop_on_signals())
    with progress("sending", source.size) as advance:
        replay = Replay(source, advance)
        records = _records(arguments, replay, source, topic, connection)
        sender.send(itertools.islice(records, arguments.limit))
        sender.flush()
    facts = {"sent": dict(sender.sent), "skipped": dict(replay.skipped), "failed": dict(sender.failed)}
    print(json.dumps(facts) if arguments.json else _describe(facts))
    return 1 if sender.failed else 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.from_dead_letters:
        return
    if arguments.reason:
        raise UserError("--reason", ",".join(arguments.reason), "only dead letters have one", "add --from-dead-letters")
    if not arguments.topic:
        raise UserError("TOPIC", "", "missing", "name the topic to send to")
    if arguments.records == DEAD_LETTER:
        raise UserError("--records", DEAD_LETTER, "dead letters are no records", "give --from-dead-letters instead")


def _records(
    arguments: argparse.Namespace, replay: Replay, source: RecordSource, topic: str | None, connection: KafkaConnection
) -> Iterator[Outgoing]:
    count = functools.cache(lambda name: len(partitions_of(connection, name, "TOPIC")))
    if topic is not None:
        count(topic)
    if arguments.from_dead_letters:
        return replay.dead_letters(topic, arguments.reason, count)
    assert topic is not None
    same = isinstance(source, TopicSource) and len(partitions_of(connection, source.range.topic)) == count(topic)
    return replay.records(topic, same, make_encoder(row_settings(arguments)))


def _describe(facts: dict[str, dict[str, int]]) -> str:
    lines = [f"{topic}: {count:,} records" for topic, count in sorted(facts["sent"].items())] or ["nothing was sent"]
    lines += [f"not sent, as {why}: {count:,} records" for why, count in sorted(facts["skipped"].items())]
    lines += [f"FAILED, {error}: {count:,} records" for error, count in sorted(facts["failed"].items())]
    return "\n".join(lines)
