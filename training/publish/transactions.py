"""Groups of records that readers see whole or not at all, from a producer whose successor shuts it out.

Kafka lets one producer with a transactional id write at a time: a later one with the same id ends the transaction of an
earlier one and fences it, so that nothing which the earlier one sends is ever read.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError, flush_or_raise, make_producer

_OPEN_SECONDS = 10.0  # for a broker that chooses leaders; who wants the producer tries again
# How long readers of the topics may have to wait for the transaction of a process that died. The broker ends it then;
# the next trainer's `open` does so at once.
_TRANSACTION_SECONDS = 10.0
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


@dataclass(frozen=True)
class NewRecord:
    """A record to send; `partition` -1 leaves the choice to the key."""

    topic: str
    value: bytes
    key: bytes | None = None
    partition: int = -1


class TooLargeError(UndeliveredError):
    """A record is larger than its topic takes."""


class FencedError(UndeliveredError):
    """The broker ended this producer's turn: another one has opened with its id, or a transaction took too long."""


class TransactionalProducer:
    """A producer with a transactional id. Every call blocks; to be used from one thread.

    Args:
      transactional_id: of all producers of which one may write at a time.
      message_bytes: largest record, and largest batch of records: a broker refuses what is above its topic's limit.
      make: makes a Kafka producer.

    Attributes:
      message_bytes: as given; a change holds from the next `open` on.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        transactional_id: str,
        message_bytes: int,
        make: Callable[..., Any] = make_producer,
    ) -> None:
        self._connection, self._id, self._make = connection, transactional_id, make
        self.message_bytes = message_bytes
        self._producer: Any = None

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called: an error of `send` closes the producer."""
        return self._producer is not None

    def open(self) -> None:
        """Begins this producer's turn: fences earlier ones, and ends a transaction that one of them left open.

        Raises:
          UndeliveredError: no broker answers; to be tried again.
        """
        milliseconds = int(_TRANSACTION_SECONDS * 1000)
        producer = self._make(
            self._connection,
            transactional_id=self._id,
            transaction_timeout_ms=milliseconds,
            message_timeout_ms=milliseconds,
            message_max_bytes=self.message_bytes,
            batch_size=self.message_bytes,
        )
        try:
            producer.init_transactions(_OPEN_SECONDS)
        except KafkaException as error:
            raise UndeliveredError(f"no transactions yet: {error.args[0].str()}") from error
        self._producer = producer

    def send(self, records: Sequence[NewRecord]) -> list[int]:
        """Sends the records in one transaction; returns their offsets.

        Any error closes the producer, because after one the client and the broker may disagree about the transaction.
        The next `open` settles it: readers then see all of the records or none, and the topics tell which.

        Raises:
          TooLargeError: a record is too large; readers see none of the records.
          FencedError: this producer's turn is over.
          UndeliveredError: any other failure.
        """
        try:
            self._producer.begin_transaction()
            offsets = self._produce(records)
            self._commit()
            return offsets
        except (KafkaException, SystemError) as error:
            self.close()
            raise _failure(_kafka_error(error)) from error
        except UndeliveredError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the turn; a transaction that is open is settled by the next `open`."""
        if self._producer is not None:
            self._producer.purge()
            self._producer = None

    def _produce(self, records: Sequence[NewRecord]) -> list[int]:
        offsets = [-1] * len(records)
        failures: list[KafkaError] = []

        def delivered(number: int) -> Callable[[Any, Any], None]:
            def report(error: KafkaError | None, record: Any) -> None:
                if error is not None:
                    failures.append(error)
                else:
                    offsets[number] = record.offset()

            return report

        for number, record in enumerate(records):
            self._produce_one(record, delivered(number))
        flush_or_raise(self._producer, _TRANSACTION_SECONDS)
        too_large = [error for error in failures if error.code() == KafkaError.MSG_SIZE_TOO_LARGE]
        if failures:
            raise KafkaException((too_large or failures)[0])
        return offsets

    def _produce_one(self, record: NewRecord, report: Callable[[Any, Any], None]) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic, record.value, key=record.key, partition=record.partition, on_delivery=report
                )
                return
            except BufferError:  # the client's queue is full
                self._producer.poll(0.1)

    def _commit(self) -> None:
        """Commits; a broker that is away is asked again until the transaction has timed out."""
        until = time.monotonic() + _TRANSACTION_SECONDS
        while True:
            try:
                self._producer.commit_transaction(max(0.1, until - time.monotonic()))
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() >= until:
                    raise


def _failure(error: KafkaError) -> UndeliveredError:
    if error.code() in _FENCED:
        return FencedError(error.str())
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return TooLargeError(error.str())
    return UndeliveredError(error.str())


def _kafka_error(error: Exception) -> KafkaError:
    """The client's error. It raises a fatal one in the midst of a delivery report, which makes it a SystemError."""
    cause = error if isinstance(error, KafkaException) else error.__cause__
    if not isinstance(cause, KafkaException):
        raise error
    found: KafkaError = cause.args[0]
    return found
