"""The thread that reads train blocks from Kafka and puts batches of them into the queue of the train step."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_positions import Positions, resolve_start
from millrace.runtime.kafka_records import KafkaReadError, PartitionReader
from millrace.runtime.telemetry import counter
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import floors_of

_LOG = logging.getLogger(__name__)
_BAD_BLOCKS = counter("train_blocks_bad", "blocks of the train topic that could not be used", ("reason",))
_POLL_SECONDS = 0.01  # a read without records takes so long, and a batch that is due leaves at most so much later
_MAX_RECORDS = 64  # blocks per read: so many wait in memory, at most 1 MB each, until they are cut into batches
_RETRY_SECONDS = 1.0  # before a topic that could not be read is opened anew: time for a broker to come back
_JOIN_SECONDS = 10.0  # for the thread's end: a read or a commit in progress ends within seconds


class TrainTopicReader:
    """Fills a queue from the train topic in a thread of its own.

    A batch is handed over when it has `batch_size` rows, or `max_wait_seconds` after its first row came.

    Args:
      offsets: {partition: next offset}; partitions not named start at their beginning.
      seen: source rows already applied; the reader marks those that it reads in a copy of its own.

    Raises:
      UserError: the topic is missing.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        batches: BatchQueue,
        offsets: dict[int, int],
        seen: SeenRows,
        batch_size: int = 512,
        max_wait_seconds: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._topic, self._queue = connection, topic, batches
        self._group = f"millrace-trainer-{topic}"
        self._batcher = Batcher(batches.layout, batch_size, seen.copy())
        self._batch_size, self._max_wait, self._clock = batch_size, max_wait_seconds, clock
        self._reader = self._open(offsets)
        self._to_commit: Positions = {}
        self._thread = threading.Thread(target=self._run, name="train-topic-reader", daemon=True)

    def start(self) -> None:
        """Starts the thread. What ends it with an error, `next_ticket` of the queue raises."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the queue and ends the thread; what was read and not trained is read again after a restart."""
        self._queue.close()
        if self._thread.is_alive():
            self._thread.join(timeout=_JOIN_SECONDS)

    def close(self) -> None:
        """Ends the thread and the consumer; `commit` works until then."""
        self.stop()
        self._commit()
        self._reader.close()

    def commit(self, offsets: dict[int, int]) -> None:
        """Has the thread commit {partition: next offset} to the consumer group, so that tools can show the lag.

        A restart starts from the checkpoint's offsets, not from these. Only the reader's own thread may commit: a
        consumer that is being polled makes any other thread wait, without end while there is nothing to read.
        """
        self._to_commit = {(self._topic, partition): offset for partition, offset in offsets.items()}

    def _commit(self) -> None:
        offsets, self._to_commit = self._to_commit, {}
        if not offsets:
            return
        try:
            self._reader.commit(offsets)
        except Exception as error:  # whatever the broker says: without a commit only the shown lag is wrong
            _LOG.warning("offsets of %s are not committed: %s", self._topic, error)

    def _open(self, offsets: dict[int, int]) -> PartitionReader:
        wanted = json.dumps({str(partition): offset for partition, offset in offsets.items()})
        start = resolve_start(self._connection, self._topic, wanted, self._group)
        for partition, offset in offsets.items():
            if start[partition] != offset:
                _LOG.warning(
                    "%s[%d]: offset %d of the checkpoint is gone, going on at %d",
                    self._topic, partition, offset, start[partition],
                )  # fmt: skip
        self._offsets = dict(start)
        start_of = {(self._topic, partition): offset for partition, offset in start.items()}
        return PartitionReader(self._connection, start_of, self._group)

    def _run(self) -> None:
        try:
            self._read()
        except tf.errors.CancelledError:
            pass
        except BaseException as error:  # the trainer's thread must learn of it, whatever it is
            self._queue.fail(error)

    def _read(self) -> None:
        deadline = None
        while not self._queue.closed:
            self._commit()
            for block, partition, next_offset in self._blocks():
                self._add(block, partition, next_offset)
            if self._batcher.pending and deadline is None:
                deadline = self._clock() + self._max_wait
            while self._batcher.rows >= self._batch_size:
                self._hand_over()
                deadline = self._clock() + self._max_wait
            if self._batcher.pending and deadline is not None and self._clock() >= deadline:
                self._hand_over()
            if not self._batcher.pending:
                deadline = None

    def _hand_over(self) -> None:
        ticket, batch = self._batcher.take()
        self._queue.put(ticket, batch)

    def _blocks(self) -> Iterator[tuple[bytes | None, int, int]]:
        try:
            blocks = self._reader.read(max_records=_MAX_RECORDS, seconds=_POLL_SECONDS)
        except KafkaReadError as error:
            _LOG.warning("%s; going on with what is left", error)
            self._reader.close()
            time.sleep(_RETRY_SECONDS)
            self._reader = self._open(self._offsets)
            return
        for block in blocks:
            for value, partition, offset in zip(block.values, block.partitions, block.offsets, strict=True):
                self._offsets[partition] = offset + 1
                yield value, partition, offset + 1

    def _add(self, value: bytes | None, partition: int, next_offset: int) -> None:
        try:
            batch = record_batch.from_bytes(value or b"")
            self._queue.layout.check(batch)
            self._batcher.add(batch, partition, next_offset, floors_of(batch))
        except ValueError as error:
            reason = "not-arrow" if isinstance(error, record_batch.NotArrowError) else "wrong-columns"
            _BAD_BLOCKS.labels(reason).inc()
            _LOG.warning("%s[%d] offset %d is skipped: %s", self._topic, partition, next_offset - 1, error)
            self._batcher.skip(partition, next_offset)
