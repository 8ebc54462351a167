"""WriteToKafka: writes records with one idempotent producer (`acks=all`) per process and broker.

A bundle ends when all its messages are acknowledged and fails when one is refused. A runner that retries a bundle may
so write a message twice, but never loses one. What is not acknowledged because brokers are away fails a bundle after a
minute where the runner retries it, and is waited for without limit where it does not.

That wait is librdkafka's: with `message.timeout.ms=0` it gives up no message, so the sequence numbers of the idempotent
producer have no gap, and what was sent before an outage and not answered is neither lost nor doubled when it is sent
again. A broker that comes back without the end of its log refuses those numbers for good: the producer is then of no
use, the bundle fails, and the next one gets another producer.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, NoReturn

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem
from confluent_kafka import KafkaException

from millrace.runtime import telemetry
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import (
    MAX_MESSAGE_BYTES,
    KafkaConnection,
    UndeliveredError,
    make_producer,
    max_record_bytes,
)
from millrace.runtime.outage import waiting_for, while_away

__all__ = ["DELIVERY_SECONDS", "KafkaRecord", "RecordTooLargeError", "WriteToKafka", "WriteToKafkaDoFn"]

_NAMESPACE = telemetry.namespace("pipelines", "kafka_io")
DELIVERY_SECONDS = 60.0
"""How long a bundle that is retried waits for its acknowledgements: brokers restart in less."""

_SETTINGS_SECONDS = 10.0  # a broker that is up says in less how large a record may be
_SLOW_SECONDS = 5.0  # brokers that are up acknowledge in less, so that longer waits are worth a word
_FLUSH_SECONDS = 0.1  # a flush waits for the messages of other bundles too
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
      delivery_seconds: how long a bundle waits for its acknowledgements before it fails; None, for runners that do no
        bundle again (Prism, Direct): without limit.

    Counters (`millrace.pipelines.kafka_io`): `messages_written`, `bytes_written`, `messages_too_large`.

    Example:
      >>> with beam.Pipeline() as pipeline:
      ...     records = pipeline | beam.Create([KafkaRecord(b"v", b"k", headers=(("h", b"1"),))])
      ...     too_large = records | WriteToKafka(KafkaConnection(address), topic, too_large="output")
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        too_large: OnTooLarge = "fail",
        delivery_seconds: float | None = DELIVERY_SECONDS,
    ) -> None:
        super().__init__()
        self._connection, self._topic, self._too_large = connection, topic, too_large
        self._do_fn = WriteToKafkaDoFn(connection, topic, too_large, delivery_seconds)

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

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        too_large: OnTooLarge = "fail",
        delivery_seconds: float | None = DELIVERY_SECONDS,
    ) -> None:
        if too_large not in ("fail", "output"):
            raise UserError("too_large", too_large, "unknown", "choose fail or output")
        self._connection, self._topic, self._too_large = connection, topic, too_large
        self._delivery_seconds = delivery_seconds
        self._written = Metrics.counter(_NAMESPACE, "messages_written")
        self._bytes = Metrics.counter(_NAMESPACE, "bytes_written")
        self._refused = Metrics.counter(_NAMESPACE, "messages_too_large")

    def start_bundle(self) -> None:
        self._producer = _shared_producers.get(self._connection, self._delivery_seconds)
        self._bundle = _Bundle()

    def process(self, record: KafkaRecord) -> Iterator[KafkaRecord]:
        size, limit = record.size(), self._largest_record()
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
        _WRITTEN.labels(self._topic).inc(self._bundle.sent)

    def _largest_record(self) -> int:
        if self._delivery_seconds is not None:
            return _largest_record(self._connection, self._topic)
        return while_away(lambda: _largest_record(self._connection, self._topic), self._brokers())

    def _brokers(self) -> str:
        return f"Kafka at {self._connection.bootstrap_servers}"

    def _produce(self, record: KafkaRecord) -> None:
        if not self._has_room(record):
            with self._waiting() as is_overdue:
                while not self._has_room(record):
                    self._producer.poll(_FLUSH_SECONDS)
                    if is_overdue():
                        self._fail("the producer's queue is full")
        self._bundle.add()

    def _has_room(self, record: KafkaRecord) -> bool:
        """Hands `record` to the producer; False when its queue is full until deliveries make room."""
        arguments: dict[str, Any] = {} if record.partition is None else {"partition": record.partition}
        try:
            self._producer.produce(
                self._topic,
                value=record.value,
                key=record.key,
                headers=list(record.headers),
                on_delivery=self._bundle.delivered,
                **arguments,
            )
        except BufferError:
            return False
        except KafkaException as error:
            self._fail(error.args[0].str())
        return True

    def _wait(self) -> None:
        """Returns when all messages of the bundle are acknowledged; raises UndeliveredError when one is not."""
        with self._waiting() as is_overdue:
            while self._bundle.left and self._bundle.error is None:
                # flush() sends at once, without lingering, and runs the callbacks of other bundles as well.
                if not self._producer.flush(_FLUSH_SECONDS):
                    self._producer.poll(0.01)  # a callback may still run in the thread of another bundle
                if is_overdue():
                    break
        if self._bundle.error is not None or self._bundle.left:
            self._fail(
                self._bundle.error or f"{self._bundle.left} messages not acknowledged in {self._delivery_seconds:g} s"
            )

    @contextmanager
    def _waiting(self) -> Iterator[Callable[[], bool]]:
        """Around a wait for acknowledgements, which it tells when it is long; yields whether to give up."""
        began = time.monotonic()
        with ExitStack() as stack:
            tell: Callable[[str], None] | None = None

            def is_overdue() -> bool:
                nonlocal tell
                waited = time.monotonic() - began
                if tell is None and waited > _SLOW_SECONDS:
                    tell = stack.enter_context(waiting_for(self._brokers()))
                if tell is not None:
                    tell(f"{self._bundle.left} messages for {self._topic} are not acknowledged")
                return self._delivery_seconds is not None and waited > self._delivery_seconds

            yield is_overdue

    def _fail(self, reason: str) -> NoReturn:
        _shared_producers.forget(self._connection, self._delivery_seconds)
        raise UndeliveredError(f"{self._topic}: {reason}")


class _Bundle:
    """Counts the acknowledgements of one bundle; callbacks may come from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = self.left = 0
        self.error: str | None = None

    def add(self) -> None:
        """One message more; its acknowledgement may have come before."""
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
    return min(MAX_MESSAGE_BYTES, max_record_bytes(connection, topic, _SETTINGS_SECONDS))


class _SharedProducers:
    """One producer per broker and patience in this process, for all its feeds; one that failed is replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._producers: dict[tuple[KafkaConnection, bool], Any] = {}

    def get(self, connection: KafkaConnection, delivery_seconds: float | None) -> Any:
        key = (connection, delivery_seconds is None)
        with self._lock:
            if key not in self._producers:
                settings = {"message_timeout_ms": 0} if delivery_seconds is None else {}
                self._producers[key] = make_producer(connection, linger_ms=5, **settings)
            return self._producers[key]

    def forget(self, connection: KafkaConnection, delivery_seconds: float | None) -> None:
        with self._lock:
            self._producers.pop((connection, delivery_seconds is None), None)


_shared_producers = _SharedProducers()
