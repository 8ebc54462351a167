"""Stops a feed that would turn most of a partition into dead letters, before it has consumed the partition."""

from collections import Counter, deque

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.raw_block import raw_topic

DEFAULT_MAX_RATIO = 0.5
"""More than half of the records refused is the mistake of a producer, not of single records."""

WINDOW = 2000
"""Newest records of a partition over which the ratio is taken; before there are so many, the guard never raises."""


class TooManyDeadLettersError(RuntimeError):
    """More records of a partition were refused than the guard allows; the message says which, how many and why."""


class DropRatioGuard:
    """Watches the share of refused records among the newest `window` records of each partition.

    Args:
      max_ratio: share in (0, 1] above which it raises; with 1 it never raises.
      window: number of records, 1 or more.
    """

    def __init__(self, max_ratio: float = DEFAULT_MAX_RATIO, window: int = WINDOW) -> None:
        if not 0.0 < max_ratio <= 1.0 or window < 1:
            raise ValueError(f"out of range: {max_ratio=}, {window=}")
        self._max_ratio, self._window = max_ratio, window
        self._partitions: dict[tuple[str, int], _Recent] = {}

    def observe(self, block: pa.RecordBatch, dead: pa.RecordBatch) -> None:
        """Takes a raw block and its dead letters. Raises TooManyDeadLettersError."""
        topic = raw_topic(block)
        records = np.bincount(record_batch.numpy_column(block, "partition"))
        refused = np.bincount(record_batch.numpy_column(dead, "partition"), minlength=len(records))
        for partition in np.flatnonzero(records).tolist():
            recent = self._partitions.setdefault((topic, partition), _Recent(self._window))
            recent.add(int(records[partition]), int(refused[partition]))
            if recent.records >= self._window and recent.refused > self._max_ratio * recent.records:
                reasons = Counter(dead_letter.count_by_reason(dead)).most_common(3)
                raise TooManyDeadLettersError(
                    f"{topic}[{partition}]: {recent.refused} of the newest {recent.records} records cannot be read "
                    f"({', '.join(f'{reason} {count}' for reason, count in reasons)} in the last block); the feed "
                    "stops before it drains the partition: correct the producer, or raise --max-drop-ratio"
                )


class _Recent:
    """Counts of records in the newest blocks, as many blocks as make up a window."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._blocks: deque[tuple[int, int]] = deque()
        self.records = self.refused = 0

    def add(self, records: int, refused: int) -> None:
        self._blocks.append((records, refused))
        self.records += records
        self.refused += refused
        while self.records - self._blocks[0][0] >= self._window:
            oldest = self._blocks.popleft()
            self.records -= oldest[0]
            self.refused -= oldest[1]
