"""Sends the records of a file or topic, or dead letters, to topics: as fast as possible or at a steady rate."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
from confluent_kafka import KafkaException

from millrace.pipelines.files.writers import Encode
from millrace.pipelines.kafka.sink import KafkaRecord
from millrace.pipelines.records.source import Part, ReadProgress, RecordSource, TopicSource
from millrace.runtime.kafka_client import KafkaConnection, make_producer

_DELIVERY_SECONDS = 60.0  # for the records that wait in the producer when the last was given to it
# Of a longer delay the sender makes up no more than this: the rest would be a burst above the rate.
_MAX_DEBT_SECONDS = 1.0


class Outgoing(NamedTuple):
    """A record, and the topic it goes to."""

    topic: str
    record: KafkaRecord


class Replay:
    """The records to send, from a source.

    Attributes:
      skipped: {why: number of records} that are not sent.
    """

    def __init__(self, source: RecordSource, progress: ReadProgress) -> None:
        self._source, self._progress = source, progress
        self.skipped: Counter[str] = Counter()

    def records(self, topic: str, same_partitions: bool, encode: Encode) -> Iterator[Outgoing]:
        """The records of the source unchanged; the rows of files of rows as values that `encode` makes.

        Args:
          same_partitions: whether a record of a topic goes to the partition that it had; else Kafka chooses by its key.
        """
        if isinstance(self._source, TopicSource):
            yield from self._messages(self._source, topic, same_partitions)
        elif self._source.settings.framing is not None:
            for part in self._counted(self._source.blocks()):
                assert part.block is not None
                yield from _values(topic, part.block.column("value"))
        else:
            for part in self._counted(self._source.parts()):
                if part.rows.num_rows:
                    yield from _values(topic, encode(part.rows))

    def dead_letters(
        self, topic: str | None, reasons: Collection[str], partitions: Callable[[str], int]
    ) -> Iterator[Outgoing]:
        """The records that dead letters hold.

        Args:
          topic: where they go; None: each to the topic and partition where it came from.
          reasons: only dead letters of these are sent; empty: all.
          partitions: gives the number of partitions of a topic.
        """
        for part in self._source.parts():
            self._progress(part.done, part.dead.num_rows)
            for dead in part.dead.to_pylist():
                target = topic or dead["topic"]
                if reasons and dead["reason"] not in reasons:
                    self.skipped["another reason"] += 1
                elif dead["truncated_from"] is not None:
                    self.skipped["only its beginning was kept"] += 1
                elif target is None:
                    self.skipped["its source is unknown"] += 1
                else:
                    known = topic is None and dead["partition"] is not None and dead["partition"] < partitions(target)
                    yield Outgoing(target, KafkaRecord(dead["value"], partition=dead["partition"] if known else None))

    def _messages(self, source: TopicSource, topic: str, same_partitions: bool) -> Iterator[Outgoing]:
        done = 0
        for messages in source.messages():
            done += len(messages)
            self._progress(done, len(messages))
            for message in messages:
                partition = message.partition() if same_partitions else None
                headers = tuple(message.headers() or ())
                yield Outgoing(topic, KafkaRecord(message.value(), message.key(), partition, headers))

    def _counted(self, parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            self._progress(part.done, part.rows.num_rows or (part.block.num_rows if part.block else 0))
            if part.dead.num_rows:
                self.skipped["it cannot be read"] += part.dead.num_rows
            yield part


def _values(topic: str, values: pa.Array) -> Iterator[Outgoing]:
    return (Outgoing(topic, KafkaRecord(value)) for value in values.to_pylist())


class Sender:
    """An idempotent Kafka producer that keeps a rate and counts.

    Args:
      rate: records per second; None: as fast as possible.
      stop: when set, no more is sent.

    Attributes:
      sent: {topic: number of records that Kafka acknowledged}.
      failed: {error: number of records}.
    """

    def __init__(self, connection: KafkaConnection, rate: float | None, stop: threading.Event) -> None:
        self._producer = make_producer(connection)
        self._rate, self._stop = rate, stop
        self._began, self._given = time.monotonic(), 0
        self.sent: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def send(self, records: Iterable[Outgoing]) -> None:
        """Gives all records to the producer; call `flush` to know which have arrived."""
        for topic, record in records:
            self._wait_for_turn()
            if self._stop.is_set():
                return
            self._produce(topic, record)

    def flush(self) -> None:
        """Waits until everything is acknowledged or has failed."""
        left = self._producer.flush(_DELIVERY_SECONDS)
        if left:
            self.failed[f"not acknowledged within {_DELIVERY_SECONDS:g} s"] += left

    def _wait_for_turn(self) -> None:
        if self._rate is not None:
            early = self._began + self._given / self._rate - time.monotonic()
            if early > 0:
                self._producer.poll(0)
                self._stop.wait(early)
            elif early < -_MAX_DEBT_SECONDS:
                self._began -= early
        self._given += 1

    def _produce(self, topic: str, record: KafkaRecord) -> None:
        where: dict[str, Any] = {} if record.partition is None else {"partition": record.partition}
        while True:
            try:
                self._producer.produce(
                    topic, record.value, record.key, headers=list(record.headers), on_delivery=self._delivered, **where
                )
                return
            except BufferError:  # the local queue is full: let deliveries drain it
                self._producer.poll(0.1)
            except KafkaException as error:
                self.failed[error.args[0].str()] += 1
                return

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None:
            self.sent[message.topic()] += 1
        else:
            self.failed[error.str()] += 1
