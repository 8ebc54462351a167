"""A log in memory that behaves as Kafka does: partitions with offsets, topics with ids, transactions, lost answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class LostAnswerError(RuntimeError):
    """The broker took the record, but nobody heard of it."""


class AwayError(RuntimeError):
    """No broker answers; nothing was written."""


class FencedError(RuntimeError):
    """Another producer took the transactional id."""


@dataclass
class Partition:
    """Records by offset; offsets that a control record or compaction took hold nothing."""

    records: dict[int, Any] = field(default_factory=dict)
    low: int = 0
    end: int = 0

    def append(self, value: Any) -> int:
        self.records[self.end] = value
        self.end += 1
        return self.end - 1

    def skip(self) -> None:
        """A control record takes an offset."""
        self.end += 1

    def trim(self, low: int) -> None:
        """Retention removes what lies below `low`."""
        self.low = max(self.low, min(low, self.end))
        for offset in [offset for offset in self.records if offset < self.low]:
            del self.records[offset]

    def read(self, start: int, limit: int) -> tuple[list[tuple[int, Any]], int]:
        """(records from `start` on, at most `limit` offsets; the offset after what was looked at)."""
        stop = min(self.end, start + limit)
        return [(offset, self.records[offset]) for offset in range(start, stop) if offset in self.records], stop


class Log:
    """Topics by name. A topic that is made anew has another id, and its offsets begin at 0."""

    def __init__(self) -> None:
        self._topics: dict[str, tuple[int, list[Partition]]] = {}
        self._ids = 0
        self._owners: dict[str, int] = {}

    def create(self, name: str, partitions: int) -> None:
        """Makes the topic, or makes it anew."""
        self._ids += 1
        self._topics[name] = (self._ids, [Partition() for _ in range(partitions)])

    def id_of(self, name: str) -> int:
        return self._topics[name][0]

    def partitions(self, name: str) -> list[Partition]:
        return self._topics[name][1]

    def grow(self, name: str) -> None:
        self._topics[name][1].append(Partition())

    def init_transactions(self, transactional_id: str) -> int:
        """The number of this producer; every earlier one of this id is fenced."""
        self._owners[transactional_id] = self._owners.get(transactional_id, 0) + 1
        return self._owners[transactional_id]

    def commit(self, transactional_id: str, producer: int, records: list[tuple[str, int, Any]]) -> list[int]:
        """Appends (topic, partition, value) each, and the control records after them; returns their offsets."""
        if self._owners.get(transactional_id) != producer:
            raise FencedError(transactional_id)
        offsets = [self.partitions(topic)[number].append(value) for topic, number, value in records]
        for topic, number in {(topic, number) for topic, number, _ in records}:
            self.partitions(topic)[number].skip()
        return offsets

    def values(self, name: str) -> Iterator[Any]:
        for partition in self.partitions(name):
            yield from partition.records.values()
