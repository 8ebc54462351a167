"""WriteToKafka: writes records with one idempotent producer (`acks=all`) per process and broker.

A bundle ends when all its messages are acknowledged and fails when one is not. A runner that retries a bundle may so
write a message twice, but never loses one.
"""

import functools
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem

from millrace.pipelines.kafka.process import WRITES
from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import (
    MAX_MESSAGE_BYTES,
    KafkaConnection,
    UndeliveredError,
    make_producer,
    max_record_bytes,
)

__all__ = ["KafkaRecord", "RecordTooLargeError", "WriteToKafka", "WriteToKafkaDoFn"]

_NAMESPACE = telemetry.namespace("pipelines", "kafka_io")
# How long a bundle waits for its acknowledgements: brokers restart in less, and the bundle is retried after it.
_DELIVERY_SECONDS = 60.0
# What Kafka adds to a record at most: 61 bytes of batch header, and lengths, offset and time of the record.
_OVERHEAD_BYTES, _HEADER_OVERHEAD_BYTES = 96, 10

_WRITTEN = telemetry.counter("feed_records_written", "Records that Kafka acknowledged.", ("topic",))

OnTooLarge = Literal["fail", "output"]


class KafkaRecord(NamedTuple):
    """One message to produce; `partition` None lets the key decide."""

    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()

    def size(self) -> int:
        """Bytes that a broker compares with `max.message.bytes` when nothing is compressed, or a few more than that."""
        headers = sum(len(name) + len(value) + _HEADER_OVERHEAD_BYTES for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers + _OVERHEAD_BYTES


class RecordTooLargeError(ValueError):
    """A record is larger than its topic takes."""


class WriteToKafka(beam.PTransform):
    """Produces records to one topic; each bundle ends only when its messages are acknowledged.

    The output holds the records that are larger than the topic takes, for a dead-letter topic of their own; unless
    `too_large` is "output" there are none.

    Args:
      connection: brokers and client settings.
      topic: an existing topic.
      too_large: what happens to a record above the topic's `max.message.bytes`, which is never sent: "fail" fails the
        bundle, "output" makes it an output.

    Counters (`millrace.pipelines.kafka_io`): `messages_written`, `bytes_written`, `messages_too_large`.

    Example:
      >>> with beam.Pipeline() as pipeline:
      ...     records = pipeline | beam.Create([KafkaRecord(b"v", b"k", headers=(("h", b"1"),))])
      ...     too_large = records | WriteToKafka(KafkaConnection(address), topic, too_large="output")
    """

    def __init__(self, connection: KafkaConnection, topic: str, too_large: OnTooLarge = "fail") -> None:
        super().__init__()
        self._connection, self._topic, self._too_large = connection, topic, too_large
        self._do_fn = WriteToKafkaDoFn(connection, topic, too_large)

    def expand(self, records: beam.PCollection[KafkaRecord]) -> beam.PCollection[KafkaRecord]:
        return records | "Produce" >> beam.ParDo(self._do_fn)

    def display_data(self) -> dict[str, Any]:
        return {
            "brokers": DisplayDataItem(self._connection.bootstrap_servers, label="Kafka brokers"),
            "topic": DisplayDataItem(self._topic, label="Topic"),
            "too_large": DisplayDataItem(self._too_large, label="Records that are too large"),
        }


class WriteToKafkaDoFn(beam.DoFn):
    """The DoFn of `WriteToKafka`, with its arguments; fused with others in `millrace.pipelines.feed.fused_steps`."""

    def __init__(self, connection: KafkaConnection, topic: str, too_large: OnTooLarge = "fail") -> None:
        if too_large not in ("fail", "output"):
            raise UserError("too_large", too_large, "unknown", "choose fail or output")
        self._connection, self._topic, self._too_large = connection, topic, too_large
        self._written = Metrics.counter(_NAMESPACE, "messages_written")
        self._bytes = Metrics.counter(_NAMESPACE, "bytes_written")
        self._refused = Metrics.counter(_NAMESPACE, "messages_too_large")

    def start_bundle(self) -> None:
        self._producer = _shared_producers.get(self._connection)
        self._bundle = _Bundle()
        WRITES.add(self._bundle)

    def process(self, record: KafkaRecord) -> Iterator[KafkaRecord]:
        size, limit = record.size(), _largest_record(self._connection, self._topic)
        if size > limit:
            self._refused.inc()
            if self._too_large == "fail":
                raise RecordTooLargeError(
                    f"{self._topic}: a record of {size} bytes is larger than the topic takes "
                    f"(max.message.bytes={limit}); raise that, or make smaller records"
                )
            yield record
            return
        self._produce(record)
        self._written.inc()
        self._bytes.inc(size)

    def finish_bundle(self) -> None:
        if self._bundle.left:
            self._wait()
        WRITES.discard(self._bundle)
        _WRITTEN.labels(self._topic).inc(self._bundle.sent)

    def _produce(self, record: KafkaRecord) -> None:
        self._bundle.add()
        arguments: dict[str, Any] = {} if record.partition is None else {"partition": record.partition}
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    on_delivery=self._bundle.delivered,
                    **arguments,
                )
                return
            except BufferError:  # the producer's queue is full until deliveries make room
                self._producer.poll(0.1)

    def _wait(self) -> None:
        # flush() sends at once, without lingering, and runs the callbacks of other bundles as well.
        self._producer.flush(_DELIVERY_SECONDS)
        give_up = time.monotonic() + 1.0  # a callback may still run in the thread of another bundle
        while self._bundle.left and time.monotonic() < give_up:
            self._producer.poll(0.01)
        if self._bundle.error is not None or self._bundle.left:
            _shared_producers.forget(self._connection)
            reason = self._bundle.error or f"{self._bundle.left} messages not acknowledged in {_DELIVERY_SECONDS:g} s"
            raise UndeliveredError(f"{self._topic}: {reason}")


class _Bundle:
    """Counts the acknowledgements of one bundle; callbacks may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = self.left = 0
        self.error: str | None = None

    def add(self) -> None:
        with self._lock:
            self.sent += 1
            self.left += 1

    def delivered(self, error: Any, _message: Any) -> None:
        with self._lock:
            self.left -= 1
            if error is not None:
                self.error = error.str()


@functools.lru_cache(maxsize=1024)
def _largest_record(connection: KafkaConnection, topic: str) -> int:
    """The most bytes that `topic` takes in one record; asked once per process, so a later change is not seen."""
    return min(MAX_MESSAGE_BYTES, max_record_bytes(connection, topic, _DELIVERY_SECONDS))


class _SharedProducers:
    """One producer per broker in this process, for all its feeds; a producer that failed is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._producers: dict[KafkaConnection, Any] = {}

    def get(self, connection: KafkaConnection) -> Any:
        with self._lock:
            if connection not in self._producers:
                self._producers[connection] = make_producer(connection, linger_ms=5)
            return self._producers[connection]

    def forget(self, connection: KafkaConnection) -> None:
        with self._lock:
            self._producers.pop(connection, None)


_shared_producers = _SharedProducers()
