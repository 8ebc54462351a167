"""Sends records of a file or topic, or dead letters, to topics: as fast as it goes or at a steady rate."""

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

_DELIVERY_SECONDS = 60.0
# A sender that was held up for longer than this does not make up for it: that would be a burst.
_MAX_DEBT_SECONDS = 1.0


class Outgoing(NamedTuple):
    """A record and where it goes."""

    topic: str
    record: KafkaRecord


class Replay:
    """Where the records to send come from.

    Attributes:
      skipped: {why: records} that are not sent.
    """

    def __init__(self, source: RecordSource, progress: ReadProgress) -> None:
        self._source, self._progress = source, progress
        self.skipped: Counter[str] = Counter()

    def records(self, topic: str, same_partitions: bool, encode: Encode) -> Iterator[Outgoing]:
        """The records of the source as they are; rows of files that hold no records in values that `encode` makes.

        Args:
          same_partitions: a record of a topic keeps its partition, and not its key alone.
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
        """Dead letters, as the records that they were.

        Args:
          topic: where they go; None: where they come from, to the partition that they had.
          reasons: of those to send; none: all.
          partitions: how many a topic has.
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
    """An idempotent producer that counts.

    Args:
      rate: records a second; None: as fast as it goes.
      stop: when set, no more is sent.

    Attributes:
      sent: {topic: records that Kafka acknowledged}.
      failed: {error: records}.
    """

    def __init__(self, connection: KafkaConnection, rate: float | None, stop: threading.Event) -> None:
        self._producer = make_producer(connection)
        self._rate, self._stop = rate, stop
        self._began, self._given = time.monotonic(), 0
        self.sent: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def send(self, records: Iterable[Outgoing]) -> None:
        """Sends all; `flush` tells whether they have arrived."""
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
