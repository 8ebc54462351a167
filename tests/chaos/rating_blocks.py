"""Ratings as train blocks, clean or poisoned, in the event time of a feed that sends 1,000 rows per second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.training.movielens import read_movielens
from millrace.training.task import Task
from millrace.transforms.batch import record_batch
from tests.benchmarks.bench_guard import poisoned, replaced

ROWS_PER_SECOND = 1_000
_BLOCK_ROWS = 100
_PARTITIONS = 4


@dataclass(frozen=True)
class Poison:
    """Rows of one kind of poison.

    Attributes:
      kind: one of `bench_guard.KINDS`.
      sent_ms: Unix milliseconds when the first was sent.
      times: {partition: [(offset of a block, its rows, event times of its first and last row)]}.
    """

    kind: str
    sent_ms: int
    times: dict[int, list[tuple[int, int, int, int]]]

    def learned(self, offsets: dict[int, int]) -> tuple[int, float]:
        """(rows, seconds of event time) of what lies before `offsets`, {partition: next offset}."""
        before = [
            block
            for partition, blocks in self.times.items()
            for block in blocks
            if block[0] < offsets.get(partition, 0)
        ]
        first = min((block[2] for blocks in self.times.values() for block in blocks), default=0)
        return sum(block[1] for block in before), max(((block[3] - first + 1) / 1000 for block in before), default=0.0)


class RatingBlocks:
    """Sends ratings one after another to the train topic of `task`.

    Args:
      data: folder of MovieLens, or one that `millrace events ratings` wrote.
      seed: of the poison.

    Attributes:
      rows: all ratings.
      sent: count of blocks.
    """

    def __init__(self, kafka: KafkaConnection, topic: str, task: Task, data: Path, seed: int) -> None:
        rows = read_movielens(data, task)
        times = time.time_ns() // 1_000_000 + np.arange(rows.num_rows)  # one row per millisecond
        self.rows = replaced(rows, record_batch.EVENT_TIME_MS, pa.array(times, pa.int64()))
        self._topic, self._task, self._rng = topic, task, np.random.default_rng(seed)
        ensure_topic(kafka, topic, _PARTITIONS)
        self._producer = make_producer(kafka)
        self._next_row, self.sent = 0, 0

    def send(self, count: int) -> None:
        """Sends clean rows as fast as they go."""
        for block in _blocks(self._take(count)):
            self._produce(block)
        flush_or_raise(self._producer)

    def send_slowly(self, count: int) -> None:
        """Sends clean rows at the rate of their event time."""
        self._pace(self._take(count), lambda: False, lambda block, partition, offset: None)

    def send_poison(self, count: int, kind: str, is_found: Callable[[], bool]) -> Poison:
        """Sends poisoned rows at the rate of their event time, `count` at most, until `is_found`."""
        sent = Poison(kind, time.time_ns() // 1_000_000, {})

        def note(block: pa.RecordBatch, partition: int, offset: int) -> None:
            times = record_batch.numpy_column(block, record_batch.EVENT_TIME_MS)
            place = (offset, block.num_rows, int(times.min()), int(times.max()))
            sent.times.setdefault(partition, []).append(place)

        self._pace(poisoned(self._take(count), kind, self._rng, self._task), is_found, note)
        return sent

    def _take(self, count: int) -> pa.RecordBatch:
        if self._next_row + count > self.rows.num_rows:
            raise RuntimeError(f"{self.rows.num_rows} ratings are too few")
        self._next_row += count
        return self.rows.slice(self._next_row - count, count)

    def _pace(
        self, rows: pa.RecordBatch, is_found: Callable[[], bool], note: Callable[[pa.RecordBatch, int, int], None]
    ) -> None:
        begun, sent = time.monotonic(), 0
        for block in _blocks(rows):
            if is_found():
                break
            note(block, *self._produce(block))
            self._producer.poll(0)
            sent += block.num_rows
            time.sleep(max(0.0, begun + sent / ROWS_PER_SECOND - time.monotonic()))  # the rate is what is simulated
        flush_or_raise(self._producer)

    def _produce(self, block: pa.RecordBatch) -> tuple[int, int]:
        """(partition, offset) of the block: nobody else writes to the topic."""
        offset, partition = divmod(self.sent, _PARTITIONS)
        self._producer.produce(self._topic, record_batch.to_bytes(block), partition=partition)
        self.sent += 1
        return partition, offset


def _blocks(rows: pa.RecordBatch) -> list[pa.RecordBatch]:
    return [rows.slice(start, _BLOCK_ROWS) for start in range(0, rows.num_rows, _BLOCK_ROWS)]
