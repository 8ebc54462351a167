"""Statistics of a source of records, gathered batch by batch; memory does not grow with the source."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.pipelines.records.source import DeadLetterCounts, Part
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.fid import slot_v1, slot_v2
from millrace.transforms.batch.list_columns import lengths, values_and_splits
from millrace.transforms.batch.provenance import PROVENANCE
from millrace.transforms.batch.row_digest import value_digests

LENGTHS = ("0", "1", "2", "3-4", "5-8", "9-16", "17-32", "33+")
"""Classes of list lengths: each is counted as one."""

_LENGTH_EDGES = np.array([1, 2, 3, 5, 9, 17, 33])
# Digests that are kept: the standard error of the estimate is 1 / sqrt(4096) = 1.6 %.
_SMALLEST = 4096
_MAX_DISTINCT = 1000  # values that are counted one by one, such as actions: nobody reads a longer list
_MAX_HEADS = 64  # labels per row that are counted: far more heads than any model has
_OTHER = "other"


class DistinctCount:
    """The number of distinct digests: exact below 4,096, from there an estimate with a standard error of 1.6 %.

    Of n uniform hashes the k-th smallest lies near k / n (Bar-Yossef and others, "Counting distinct elements in a data
    stream", 2002).
    """

    def __init__(self) -> None:
        self._smallest = np.zeros(0, np.uint64)

    def add(self, digests: np.ndarray) -> None:
        """uint64 [n]"""
        if len(self._smallest) == _SMALLEST:
            digests = digests[digests < self._smallest[-1]]
        self._smallest = np.union1d(self._smallest, digests)[:_SMALLEST]

    @property
    def estimate(self) -> int:
        if len(self._smallest) < _SMALLEST:
            return len(self._smallest)
        return round((_SMALLEST - 1) / ((float(self._smallest[-1]) + 1) / 2.0**64))


class ValueCounts:
    """Numbers of rows by value: of each of the first 1,000 distinct values, and of all others together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, values: pa.Array) -> None:
        for value, count in _pairs(pc.value_counts(values.drop_null())):
            known = value in self.counts or len(self.counts) < _MAX_DISTINCT
            self.counts[value if known else _OTHER] += count

    def as_json(self) -> dict[str, int]:
        return dict(self.counts.most_common())


def _pairs(counts: pa.StructArray) -> Iterable[tuple[str, int]]:
    values = counts.field("values").to_pylist()
    return zip(map(_word, values), counts.field("counts").to_pylist(), strict=True)


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if record_batch.is_valid_label(value) else "invalid"
    return str(value)


class ValueRange:
    """The smallest and the largest number seen; None before the first."""

    def __init__(self) -> None:
        self.low: int | float | None = None
        self.high: int | float | None = None

    def add(self, values: pa.Array) -> None:
        found = pc.min_max(values)
        low, high = found["min"].as_py(), found["max"].as_py()
        if low is not None:
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)

    def as_json(self) -> dict[str, int | float | None]:
        return {"min": self.low, "max": self.high}


class FeatureStats:
    """One column: rows that have it, values in all lists, distinct values; range, slots and lengths by its type."""

    def __init__(self, field: pa.Field) -> None:
        self.type = _type_name(field)
        self.rows = self.values = 0
        self.distinct, self.range, self.slots = DistinctCount(), ValueRange(), ValueRange()
        self.lengths = np.zeros(len(LENGTHS), np.int64)
        self._slot_of = {"fid": slot_v2, "fid_v1": slot_v1}.get(_kind(field))

    def add(self, column: pa.Array) -> None:
        self.rows += len(column) - column.null_count
        if pa.types.is_list(column.type):
            present = lengths(column.drop_null()) if column.null_count else lengths(column)
            bins = np.searchsorted(_LENGTH_EDGES, present, side="right")
            self.lengths += np.bincount(bins, minlength=len(LENGTHS))
        leaves = _leaves(column)
        self.values += len(leaves)
        self.distinct.add(value_digests(leaves))
        if self._slot_of is not None:
            self.slots.add(pa.array(self._slot_of(leaves.to_numpy(zero_copy_only=False))))
        elif pa.types.is_integer(leaves.type) or pa.types.is_floating(leaves.type):
            self.range.add(leaves)

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "type": self.type,
            "rows": self.rows,
            "values": self.values,
            "distinct": self.distinct.estimate,
        }
        if self._slot_of is not None:
            facts["slots"] = self.slots.as_json()
        elif self.range.low is not None:
            facts |= self.range.as_json()
        if self.lengths.any():
            facts["lengths"] = dict(zip(LENGTHS, self.lengths.tolist(), strict=True))
        return facts


def _leaves(column: pa.Array) -> pa.Array:
    while pa.types.is_list(column.type):
        column = column.flatten()
    return column.drop_null()


def _kind(field: pa.Field) -> str:
    return (field.metadata or {}).get(record_batch.KIND_KEY, b"").decode()


def _type_name(field: pa.Field) -> str:
    """The type as records name it: `fid`, `list<fid>`, `float`."""
    kind = _kind(field)
    type, depth = field.type, 0
    while pa.types.is_list(type):
        type, depth = type.value_type, depth + 1
    name = kind or str(type)
    for _ in range(depth):
        name = f"list<{name}>"
    return name


class PartitionStats:
    """Offsets and times of one partition, or of one file."""

    def __init__(self) -> None:
        self.records, self.offsets, self.times = 0, ValueRange(), ValueRange()

    def add(self, offsets: pa.Array, times_ms: pa.Array) -> None:
        self.records += len(offsets)
        self.offsets.add(offsets)
        self.times.add(times_ms.filter(pc.greater(times_ms, 0)))

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"records": self.records, "first": self.offsets.low, "last": self.offsets.high}
        return facts if self.times.low is None else facts | {"first_ms": self.times.low, "last_ms": self.times.high}


class RecordStats:
    """All that `millrace records stat` shows."""

    def __init__(self) -> None:
        self.records = self.rows = self.bytes = 0
        self.refused = DeadLetterCounts()
        self.features: dict[str, FeatureStats] = {}
        self.labels: list[ValueCounts] = []
        self.actions = ValueCounts()
        self.times = {record_batch.REQ_TIME: ValueRange(), record_batch.EVENT_TIME_MS: ValueRange()}
        self.partitions: dict[int, PartitionStats] = {}

    def add(self, part: Part) -> None:
        rows = part.rows
        self.rows += rows.num_rows
        self.refused.add(part.dead)
        if part.block is None:
            self.records += rows.num_rows + part.dead.num_rows
        else:
            self._add_block(part.block)
        for field, column in zip(rows.schema, rows.columns, strict=True):
            if field.name in self.times:
                self.times[field.name].add(column)
            if field.name == record_batch.LABEL:
                self._add_labels(column)
            elif field.name == record_batch.ACTIONS:
                self.actions.add(_leaves(column))
            elif field.name not in PROVENANCE:
                self.features.setdefault(field.name, FeatureStats(field)).add(column)

    def _add_block(self, block: pa.RecordBatch) -> None:
        self.records += block.num_rows
        self.bytes += pc.sum(pc.binary_length(block.column("value"))).as_py() or 0
        for partition in pc.unique(block.column("partition")).to_pylist():
            mine = block.filter(pc.equal(block.column("partition"), partition))
            self.partitions.setdefault(partition, PartitionStats()).add(
                mine.column("offset"), mine.column("timestamp_ms")
            )

    def _add_labels(self, column: pa.ListArray) -> None:
        values, splits = values_and_splits(column)
        counts = np.diff(splits)
        for head in range(int(counts.max(initial=0))):
            if head == len(self.labels):
                if head == _MAX_HEADS:
                    return
                self.labels.append(ValueCounts())
            self.labels[head].add(pa.array(values[splits[:-1][counts > head] + head]))

    def as_json(self) -> dict[str, Any]:
        times = {name.strip("_").lower(): each.as_json() for name, each in self.times.items() if each.low is not None}
        return {
            "records": self.records,
            "rows": self.rows,
            "bytes": self.bytes,
            "dead_letters": self.refused.as_json(),
            "features": {name: each.as_json() for name, each in self.features.items()},
            "labels": [each.as_json() for each in self.labels],
            "actions": self.actions.as_json(),
            "times": times,
            "partitions": {str(number): each.as_json() for number, each in sorted(self.partitions.items())},
        }
