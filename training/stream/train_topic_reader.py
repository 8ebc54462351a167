"""The thread that reads train blocks from Kafka and puts batches of them into the queue of the train step."""

import logging
import threading
import time
from collections.abc import Callable, Collection

import tensorflow as tf

from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.telemetry import LogLimit, RefusalStreak, counter
from millrace.training.stream.batch_queue import BatchQueue, Place
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.dead_letter_writer import DeadLetterWriter
from millrace.training.stream.gate import Checked, Gate, Refused
from millrace.training.stream.position import Position
from millrace.training.stream.train_topic import TrainMessage, TrainTopic

_LOG = logging.getLogger(__name__)
_BAD_BLOCKS = counter("train_blocks_bad", "blocks of the train topic that were refused as a whole", ("reason",))
_DEAD_ROWS = counter("train_rows_dead", "rows of other blocks that were refused", ("reason",))
_PASSED_OVER = counter("train_rows_passed_over", "rows of blocks that are not to be learned", ("reason",))
_POLL_SECONDS = 0.01  # a read without records takes so long, and a batch that is due leaves at most so much later
_MAX_RECORDS = 64  # blocks per read: so many wait in memory, at most 1 MB each, until they are cut into batches
_JOIN_SECONDS = 10.0  # for the thread's end: a read or a commit in progress ends within seconds


class TrainTopicReader:
    """Fills a queue from the train topic in a thread of its own, with what the gate lets through.

    A batch is handed over when it has `batch_size` rows, or `max_wait_seconds` after its first row came. What the gate
    refuses goes to the dead-letter topic.

    Args:
      dead_letter_topic: is created when it is missing and something is refused.
      position: where to go on; the reader keeps a copy of its own.
      health: is told of each block whether any of its rows was taken.
      watch_seconds: between two looks at the topic's id and partitions.
      alone: places of blocks whose rows share no batch with others.
      skip_reason: called with the place of a block: why it is passed over, None when it is not.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        dead_letter_topic: str,
        batches: BatchQueue,
        position: Position,
        batch_size: int = 512,
        max_wait_seconds: float = 0.05,
        health: RefusalStreak | None = None,
        watch_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        alone: Collection[Place] = (),
        skip_reason: Callable[[Place], str | None] = lambda place: None,
    ) -> None:
        self._name, self._queue = topic, batches
        self._batcher = Batcher(batches.layout, batch_size, position.seen.copy(), alone)
        self._skip_reason = skip_reason
        self._gate = Gate(batches.layout)
        self._batch_size, self._max_wait, self._clock = batch_size, max_wait_seconds, clock
        self._health = health or RefusalStreak("train blocks")
        self._topic = TrainTopic(connection, topic, position.offsets, position.topic_ids, watch_seconds, clock)
        self._dead_letters = DeadLetterWriter(connection, dead_letter_topic, topic, clock)
        self._log_limit = LogLimit(clock=clock)
        self._to_commit: dict[int, int] = {}
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
        self._topic.close()

    def commit(self, offsets: dict[int, int]) -> None:
        """Has the thread commit {partition: next offset} to the consumer group, so that tools can show the lag.

        A restart starts from the checkpoint's offsets, not from these. Only the reader's own thread may commit: a
        consumer that is being polled makes any other thread wait, without end while there is nothing to read.
        """
        self._to_commit = dict(offsets)

    def wait_for_dead_letters(self, number: int, seconds: float) -> None:
        """Waits until the dead letters up to `number` (`Position.dead_letters`) are acknowledged; for any thread.

        A checkpoint whose offsets pass a block must not be finished before: what was refused is nowhere else.

        Raises:
          UndeliveredError: that takes longer than `seconds`.
        """
        self._dead_letters.wait(number, seconds)

    def refuse(self, refused: Refused, partition: int, offset: int) -> int:
        """Sends what the trainer refused of a block to the dead letters; returns the number of the last; any thread."""
        self._dead_letters.send(refused, partition, offset)
        return self._dead_letters.last

    def _commit(self) -> None:
        offsets, self._to_commit = self._to_commit, {}
        if not offsets:
            return
        try:
            self._topic.commit(offsets)
        except Exception as error:  # whatever the broker says: without a commit only the shown lag is wrong
            _LOG.warning("offsets of %s are not committed: %s", self._name, error)

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
            self._dead_letters.poll()
            while self._dead_letters.full and not self._queue.closed:
                self._dead_letters.poll(_POLL_SECONDS)
            for message in self._topic.read(_MAX_RECORDS, _POLL_SECONDS):
                self._add(message)
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

    def _add(self, message: TrainMessage) -> None:
        place = (message.partition, message.offset + 1)
        checked = self._gate.check(message.value)
        if (reason := self._skip_reason((message.partition, message.offset, message.topic_id))) is not None:
            self._pass_over(message, checked, reason)
            return
        for refused in checked.refused:
            self._refuse(refused, message)
        if checked.rows is None:
            self._batcher.skip(*place, message.topic_id, self._dead_letters.last)
            too_old = 0
        else:
            too_old = self._batcher.add(
                checked.rows, *place, checked.floors, message.topic_id, self._dead_letters.last
            ).too_old
        left = checked.rows.num_rows - too_old if checked.rows is not None else 0
        if left or not (checked.refused or too_old):
            self._health.taken()
        else:  # floors that are too high, of a feed that was wrong about itself, refuse all that comes
            self._health.refused("too_old" if too_old else checked.refused[-1].reason)

    def _pass_over(self, message: TrainMessage, checked: Checked, reason: str) -> None:
        place = (message.partition, message.offset + 1)
        if checked.rows is None:
            self._batcher.skip(*place, message.topic_id, self._dead_letters.last)
            return
        _PASSED_OVER.labels(reason).inc(checked.rows.num_rows)
        self._batcher.add(
            checked.rows, *place, checked.floors, message.topic_id, self._dead_letters.last, passed_over=True
        )

    def _refuse(self, refused: Refused, message: TrainMessage) -> None:
        self._dead_letters.send(refused, message.partition, message.offset)
        if refused.rows:
            _DEAD_ROWS.labels(refused.reason).inc(refused.rows)
        else:
            _BAD_BLOCKS.labels(refused.reason).inc()
        times = self._log_limit.count(refused.reason)
        if times:
            what = f"{refused.rows} rows are refused" if refused.rows else "the block is refused"
            _LOG.warning(
                "%s[%d] offset %d: %s, %s: %s (%d blocks for this reason since the last such line)",
                self._name, message.partition, message.offset, what, refused.reason, refused.detail, times,
            )  # fmt: skip
