"""Small machines and stages for tests of `pipelines.feed.machine` and `pipelines.feed.shard_state`."""

from collections.abc import Iterable, Mapping

import pyarrow as pa

from millrace.pipelines.feed.machine import CLOSE, ComposedMachineFactory
from millrace.transforms.batch import record_batch

_SCHEMA = pa.schema([pa.field("value", pa.int64())])


class Delay:
    """Holds rows until the next `CLOSE`; negative ones leave as side rows."""

    made = 0

    def __init__(self, saved: bytes | None) -> None:
        self.held = record_batch.empty(_SCHEMA) if saved is None else record_batch.from_bytes(saved)
        self.side: list[pa.RecordBatch] = []
        self.published: list[int] = []
        Delay.made += 1

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        if kind == CLOSE or rows is None:
            left, self.held = self.held, record_batch.empty(_SCHEMA)
            return left
        good = [value for value in rows.column("value").to_pylist() if value >= 0]
        if len(good) < rows.num_rows:
            self.side.append(rows)
        self.held = record_batch.concat([self.held, rows_of(*good)])
        return record_batch.empty(_SCHEMA)

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        side, self.side = self.side, []
        return {"negative": record_batch.concat(side)} if side else {}

    def take_counts(self) -> Mapping[str, int]:
        return {"held": self.held.num_rows}

    def publish(self, shard: int) -> None:
        self.published.append(shard)

    def held(self) -> Mapping[int, int]:
        return {}

    def to_bytes(self) -> bytes:
        return record_batch.to_bytes(self.held)

    @property
    def next_close_ms(self) -> int | None:
        return 0 if self.held.num_rows else None


class Numbering:
    """Numbers all rows that it ever saw."""

    def __init__(self) -> None:
        self.seen = 0

    def warm(self, batches: Iterable[pa.RecordBatch]) -> None:
        pass

    def process(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        numbers = range(self.seen, self.seen + rows.num_rows)
        self.seen += rows.num_rows
        return rows.append_column("number", pa.array(numbers, pa.int64()))

    def save(self) -> bytes:
        return str(self.seen).encode("ascii")

    def restore(self, data: bytes) -> None:
        self.seen = int(data)

    def take_counts(self) -> Mapping[str, int]:
        return {"seen": self.seen}

    def publish(self) -> None:
        pass


def rows_of(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"value": list(values)}, schema=_SCHEMA)


NUMBERED = ComposedMachineFactory(Delay, Numbering)
