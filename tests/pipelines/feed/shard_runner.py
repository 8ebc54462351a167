"""A runner of one key for `pipelines.feed.shard_state.ShardStateDoFn`: commits, retries and moves as a test asks."""

import random
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pyarrow as pa

from millrace.pipelines.feed.shard_state import ShardStateDoFn


class _Bag:
    def __init__(self, committed: list[bytes]) -> None:
        self.entries, self.reads = list(committed), 0

    def read(self) -> list[bytes]:
        self.reads += 1
        return random.Random(self.reads).sample(self.entries, len(self.entries))  # a bag has no order

    def add(self, entry: bytes) -> None:
        self.entries.append(entry)

    def clear(self) -> None:
        self.entries = []


class _Value:
    def __init__(self, committed: bytes | None) -> None:
        self.value = committed

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value


class _Timer:
    def __init__(self) -> None:
        self.at_ms: int | None = None

    def set(self, timestamp: beam.utils.timestamp.Timestamp) -> None:
        self.at_ms = timestamp.micros // 1000


class ShardRunner:
    """One key's state as a runner keeps it: what a bundle wrote counts only once the bundle is committed.

    Args:
      make: the DoFn of a new worker, given a clock in seconds.

    Attributes:
      log: the committed log.
      loads: times that it was read.
      routed: tagged rows of committed bundles.
    """

    def __init__(self, make: Callable[[Callable[[], float]], ShardStateDoFn]) -> None:
        self.now_ms = 1_000_000
        self.log: list[bytes] = []
        self.epoch: bytes | None = None
        self.timer_ms: int | None = None
        self.loads = 0
        self.routed: list[dict] = []
        self._make = make
        self.new_worker()

    def new_worker(self) -> None:
        self.do_fn = self._make(lambda: self.now_ms / 1000)
        self.do_fn.setup()

    def bundle(self, inputs: list[pa.RecordBatch], timer: bool = False, commit: bool = True) -> list[dict]:
        """The rows that a bundle of these inputs gives, and then the timer if it fires; none unless it is committed."""
        log, epoch, timer_param = _Bag(self.log), _Value(self.epoch), _Timer()
        self.do_fn.start_bundle()
        out: list[Any] = []
        for rows in inputs:
            out += self.do_fn.process((0, rows), log, epoch, timer_param)
        if timer:
            out += self.do_fn.close(0, log, epoch, timer_param)
        self.loads += log.reads
        if not commit:
            return []
        assert list(self.do_fn.finish_bundle()) == []
        self.log, self.epoch = log.entries, epoch.value
        if timer_param.at_ms is not None:
            self.timer_ms = timer_param.at_ms
        tagged = [each.value for each in out if isinstance(each, beam.pvalue.TaggedOutput)]
        self.routed += [row for batch in tagged for row in batch.to_pylist()]
        main = [each[1] for each in out if not isinstance(each, beam.pvalue.TaggedOutput)]
        return [row for batch in main for row in batch.to_pylist()]

    def timer_is_due(self) -> bool:
        return self.timer_ms is not None and self.timer_ms <= self.now_ms
