"""Writes what the gate refused to the topic of train dead letters, without making the reader wait."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from millrace.runtime.deadline import Deadline
from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError, ensure_topic, make_producer
from millrace.runtime.telemetry import LogLimit
from millrace.training.stream.gate import Refused
from millrace.transforms.batch import dead_letter

_LOG = logging.getLogger(__name__)
_MAX_WAITING_BYTES = 64 << 20  # so much may be unacknowledged before the reader waits: some 64 blocks of 1 MB
_MAX_DETAIL = 500  # characters of a header: an error of Arrow may quote what it read
_RETRY_SECONDS = 1.0  # before a letter that the broker refused is sent again
_POLL_SECONDS = 0.05


class _Letter(NamedTuple):
    value: bytes
    headers: list[tuple[str, bytes]]


class DeadLetterWriter:
    """Sends dead letters in the background, each until a broker acknowledges it.

    They are numbered from 1 on. Any thread may call `send` and `wait`; the others belong to the reader's thread.

    Args:
      topic: is created when it is missing, with the first letter.
      source_topic: the train topic, for the headers.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        source_topic: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._topic, self._source_topic, self._clock = connection, topic, source_topic, clock
        self._producer = make_producer(connection, message_timeout_ms=0)  # a broker that is away is waited for
        self._numbers = itertools.count(1)
        self._last = 0
        self._sending = threading.Lock()  # the reader refuses blocks, the trainer rows of them
        self._lock = threading.Lock()  # of what follows: callbacks run on the thread that polls
        self._waiting: dict[int, _Letter] = {}
        self._waiting_bytes = 0
        self._refused: list[int] = []
        self._retry_at = 0.0
        self._log_limit = LogLimit(clock=clock)
        self._exists = False

    @property
    def last(self) -> int:
        """The number of the last letter; 0 before the first."""
        return self._last

    @property
    def full(self) -> bool:
        """Whether so much waits for the broker that no more should be sent."""
        return self._waiting_bytes > _MAX_WAITING_BYTES

    def send(self, refused: Refused, partition: int, offset: int) -> None:
        """Sends one letter per value of `refused`, which lay at `offset` of `partition` of the train topic."""
        with self._sending:
            self._send(refused, partition, offset)

    def _send(self, refused: Refused, partition: int, offset: int) -> None:
        self._ensure_topic()
        for value in refused.values:
            cut = len(value) > dead_letter.MAX_VALUE_BYTES
            row = {
                "topic": self._source_topic,
                "partition": partition,
                "offset": offset,
                "reason": refused.reason,
                "detail": refused.detail[:_MAX_DETAIL],
                "truncated_from": len(value) if cut else None,
            }
            (headers,) = dead_letter.kafka_headers(pa.RecordBatch.from_pylist([row], schema=dead_letter.SCHEMA))
            letter = _Letter(value[: dead_letter.MAX_VALUE_BYTES], headers)
            self._last = next(self._numbers)
            with self._lock:
                self._waiting[self._last] = letter
                self._waiting_bytes += len(letter.value)
            self._produce(self._last, letter)

    def poll(self, seconds: float = 0.0) -> None:
        """Handles what the brokers answered, and sends again what they refused a second ago or earlier."""
        self._producer.poll(seconds)
        with self._lock:
            if not self._refused or self._clock() < self._retry_at:
                return
            again = [(number, self._waiting[number]) for number in self._refused]
            self._refused = []
        for number, letter in again:
            self._produce(number, letter)

    def wait(self, number: int, seconds: float) -> None:
        """Waits until the letters up to `number` are acknowledged.

        Raises:
          UndeliveredError: that takes longer than `seconds`.
        """
        deadline = Deadline(seconds)
        while left := self._unacknowledged(number):
            if deadline.expired():
                raise UndeliveredError(f"{left} dead letters were not acknowledged by {self._topic} in {seconds:g} s")
            self.poll(_POLL_SECONDS)

    def _unacknowledged(self, number: int) -> int:
        with self._lock:
            return sum(each <= number for each in self._waiting)

    def _produce(self, number: int, letter: _Letter) -> None:
        try:
            self._producer.produce(
                self._topic, letter.value, headers=letter.headers, on_delivery=partial(self._delivered, number)
            )
        except BufferError:  # the client's queue is full
            self._again(number)

    def _delivered(self, number: int, error: object, _: object) -> None:
        if error is not None:
            if self._log_limit.count("refused"):
                _LOG.warning("a dead letter is not taken by %s, trying again: %s", self._topic, error)
            self._again(number)
            return
        with self._lock:
            self._waiting_bytes -= len(self._waiting.pop(number).value)

    def _again(self, number: int) -> None:
        with self._lock:
            self._refused.append(number)
            self._retry_at = self._clock() + _RETRY_SECONDS

    def _ensure_topic(self) -> None:
        if self._exists:
            return
        self._exists = True
        try:
            ensure_topic(self._connection, self._topic)
        except Exception as error:  # whatever the broker says: letters wait until the topic can be written
            _LOG.warning("topic %s cannot be created: %s", self._topic, error)
