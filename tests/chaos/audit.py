"""Compares what a trainer would apply of a train topic with the ledger of what was sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from millrace.runtime.kafka_client import KafkaConnection, make_consumer, watermarks
from millrace.runtime.kafka_records import PartitionReader
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import provenance_of, split_source_partition

_ROWS_PER_RECORD = 64
_PARTITION_BITS = 48


@dataclass(frozen=True)
class Audit:
    """Counts of rows: what was sent, what a trainer applies, what it refuses as applied before, and what is wrong."""

    sent: int
    applied: int
    repeated: int
    lost: int
    unknown: int
    too_old: int
    dead_letters: int
    dead_letters_sent: int

    @property
    def clean(self) -> bool:
        wrong = self.lost or self.unknown or self.too_old
        return not wrong and self.sent == self.applied and self.dead_letters == self.dead_letters_sent


class TrainTopicAudit:
    """Reads a train topic from its beginning and admits each row once, as a trainer does."""

    def __init__(self, kafka: KafkaConnection, topic: str) -> None:
        self._topic = topic
        self._reader = PartitionReader(kafka, {(topic, partition): 0 for partition in watermarks(kafka, topic)})
        self._seen = SeenRows()
        self._applied: list[np.ndarray] = []
        self.applied = self.repeated = self.too_old = 0

    def read(self) -> int:
        """Reads on; returns the number of rows applied so far."""
        for block in self._reader.read(1000, 0.2):
            for value in block.values:
                source = provenance_of(record_batch.from_bytes(value or b""))
                admission = self._seen.admit(*source)
                self._applied.append(_row_ids(*source)[admission.new])
                self.applied += int(admission.new.sum())
                self.repeated += admission.duplicates
                self.too_old += admission.too_old
        return self.applied

    def against(self, ledger: Path, dead_letters: int) -> Audit:
        """`ledger` as the producer wrote it; `dead_letters` as of `count_dead_letters`."""
        summary = json.loads(ledger.with_suffix(".json").read_text("utf-8"))
        sent, applied = ledger_rows(ledger), np.concatenate([np.zeros(0, np.int64), *self._applied])
        return Audit(
            sent=len(sent),
            applied=len(applied),
            repeated=self.repeated,
            lost=len(np.setdiff1d(sent, applied)),
            unknown=len(np.setdiff1d(applied, sent)),
            too_old=self.too_old,
            dead_letters=dead_letters,
            dead_letters_sent=summary["bad_records"],
        )

    def close(self) -> None:
        self._reader.close()


def ledger_rows(ledger: Path) -> np.ndarray:
    """int64 [rows]: one id per row that a broker acknowledged."""
    rows = pq.read_table(ledger, columns=["partition", "offset", "row"])
    return _row_ids(*(rows[name].to_numpy().astype(np.int64) for name in rows.column_names))


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


def _row_ids(partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> np.ndarray:
    _, partition = split_source_partition(partition.astype(np.int64))
    return (partition << _PARTITION_BITS) | (offset.astype(np.int64) * _ROWS_PER_RECORD + row)
