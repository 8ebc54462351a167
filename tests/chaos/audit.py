"""Compares what a trainer applied, or would apply of a train topic, with the ledger of what was sent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from millrace.runtime.kafka_client import KafkaConnection, make_consumer, watermarks
from millrace.runtime.kafka_records import PartitionReader
from millrace.runtime.kafka_topics import TopicDescriber
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import (
    ROWS_PER_RECORD,
    provenance_of,
    source_number,
    source_partition,
    split_source_partition,
)

_DESCRIBE_SECONDS = 30.0
_OFFSET_BITS, _PARTITION_BITS = 48, 8  # of a row's id: offset x 64 + row, partition, number of the ledger


@dataclass(frozen=True)
class Audit:
    """Counts of rows: what was sent, what a trainer applies, what it refuses as applied before, and what is wrong.

    Attributes:
      doubled: rows that a trainer applied more than once.
      mislabelled: rows that are negatives although their action came within the window; None: not compared.
    """

    sent: int
    applied: int
    repeated: int = 0
    lost: int = 0
    doubled: int = 0
    unknown: int = 0
    too_old: int = 0
    dead_letters: int = 0
    dead_letters_sent: int = 0
    mislabelled: int | None = None

    @property
    def clean(self) -> bool:
        wrong = self.lost or self.doubled or self.unknown or self.too_old or self.mislabelled
        return not wrong and self.sent == self.applied and self.dead_letters == self.dead_letters_sent


class Ledger(NamedTuple):
    """The ledger of one producer, and the number of the source that it wrote to."""

    path: Path
    source: int

    @property
    def summary(self) -> dict[str, int]:
        return dict(json.loads(self.path.with_suffix(".json").read_text("utf-8")))

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(source partition, offset, row, whether an action in time was sent) of what a broker acknowledged."""
        table = pq.read_table(self.path, columns=["partition", "offset", "row", "observed"])
        partition, offset, row, observed = (table[name].to_numpy().astype(np.int64) for name in table.column_names)
        return source_partition(self.source, partition), offset, row, observed.astype(bool)


def source_of(kafka: KafkaConnection, topic: str) -> int:
    """The number of the source that `topic` is now."""
    found = TopicDescriber(kafka).describe([topic], _DESCRIBE_SECONDS)[topic]
    return source_number(found.cluster, found.id)


class TrainTopicAudit:
    """Reads a train topic from its beginning and admits each row once, as a trainer does."""

    def __init__(self, kafka: KafkaConnection, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self._reader = self._open()
        self._seen = SeenRows()
        self._applied: list[tuple[np.ndarray, ...]] = []
        self.applied = self.repeated = self.too_old = 0

    def read(self) -> int:
        """Reads on; returns the number of rows applied so far."""
        for block in self._reader.read(1000, 0.2):
            for value in block.values:
                batch = record_batch.from_bytes(value or b"")
                source = provenance_of(batch)
                labels = batch.column(record_batch.LABEL).values.to_numpy(zero_copy_only=False)
                admission = self._seen.admit(*source)
                self._applied.append(tuple(column[admission.new] for column in (*source, labels)))
                self.applied += int(admission.new.sum())
                self.repeated += admission.duplicates
                self.too_old += admission.too_old
        return self.applied

    def topic_is_new(self) -> None:
        """Reads the topic from its beginning: it was made anew."""
        self._reader.close()
        self._reader = self._open()

    def against(self, ledgers: Sequence[Ledger], dead_letters: int, labels: bool = False) -> Audit:
        """`ledgers` as producers wrote them; `dead_letters` as of `count_dead_letters`; `labels`: compares them too."""
        sources = [ledger.source for ledger in ledgers]
        columns = [np.concatenate(parts) for parts in zip(*self._applied, strict=True)]
        applied = _row_ids(sources, *columns[:3])
        sent, observed = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
        for ledger in ledgers:
            *place, in_time = ledger.rows()
            sent.append(_row_ids(sources, *place))
            observed.append(in_time)
        all_sent = np.concatenate(sent)
        positive = applied[columns[3] > 0.5]
        return Audit(
            sent=len(all_sent),
            applied=len(applied),
            repeated=self.repeated,
            lost=len(np.setdiff1d(all_sent, applied)),
            unknown=len(np.setdiff1d(applied, all_sent)),
            too_old=self.too_old,
            dead_letters=dead_letters,
            dead_letters_sent=sum(ledger.summary["bad_records"] for ledger in ledgers),
            mislabelled=len(np.setdiff1d(all_sent[np.concatenate(observed)], positive)) if labels else None,
        )

    def close(self) -> None:
        self._reader.close()

    def _open(self) -> PartitionReader:
        start = {(self._topic, partition): 0 for partition in watermarks(self._kafka, self._topic)}
        return PartitionReader(self._kafka, start)


def count_dead_letters(kafka: KafkaConnection, topic: str) -> int:
    """Counts records that have a dead letter; one that has several counts once."""
    ends = {partition: high for partition, (_, high) in watermarks(kafka, topic).items()}
    consumer = make_consumer(kafka, f"audit-{topic}")
    consumer.subscribe([topic])
    places: set[tuple[bytes, ...]] = set()
    left = sum(ends.values())
    try:
        while left:
            messages = consumer.consume(left, 5.0)
            if not messages:
                raise TimeoutError(f"{left} dead letters of {topic} have not come")
            places.update(_source(dict(message.headers())) for message in messages)
            left -= len(messages)
    finally:
        consumer.close()
    return len(places)


def _source(headers: Mapping[str, bytes]) -> tuple[bytes, ...]:
    return tuple(headers[name] for name in ("source-topic", "source-partition", "source-offset"))


def _row_ids(sources: Sequence[int], partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> np.ndarray:
    """int64 [rows]: one id per row; rows of a source that is none of `sources` share the number behind the last."""
    source, plain = split_source_partition(partition.astype(np.int64))
    number = np.full(len(source), len(sources))
    for index, each in enumerate(sources):
        number[source == each] = index
    place = (number << _PARTITION_BITS) | plain
    return (place << _OFFSET_BITS) | (offset.astype(np.int64) * ROWS_PER_RECORD + row)
