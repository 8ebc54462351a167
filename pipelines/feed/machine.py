"""What a feed shard holds: a deterministic state machine over rows, alone or with a stage after it.

A machine knows nothing of Beam. `millrace.pipelines.feed.shard_state` keeps one per feed shard and persists it through
the runner's state; the join is one (`millrace.pipelines.feed.join.JoinMachine`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from millrace.transforms.batch import record_batch

ROWS, CLOSE = b"R", b"C"
"""What a machine is told: that rows came, or that time has passed. A machine may tell more kinds of rows apart."""


class Machine(Protocol):
    """The state of one feed shard. Equal calls of `apply` in equal order give equal rows and an equal machine."""

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        """Takes rows, or None for `CLOSE`; returns the rows that leave, of any schema when there are none.

        Args:
          kind: `ROWS`, `CLOSE`, or a kind of rows that only this machine knows.
          now_ms: the time, in ms since the epoch; the only clock of the machine, so that a replay sees it too.
        """

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        """{tag: rows for that tagged output} since the last call."""

    def take_counts(self) -> Mapping[str, Any]:
        """What was counted since the last call."""

    def publish(self, shard: int) -> None:
        """Passes what was counted since the last call, and the gauges, on to the metrics."""

    def held(self) -> Mapping[int, int]:
        """{source partition: offset}: nothing of a record below it waits. Those of which nothing waits are missing."""

    def to_bytes(self) -> bytes:
        """The machine, for its factory; without counts and side rows."""

    @property
    def next_close_ms(self) -> int | None:
        """When `CLOSE` next has something to do, in ms since the epoch; None while nothing waits."""


MachineFactory = Callable[[bytes | None], Machine]
"""Makes the machine that `to_bytes` wrote, or a new one for None."""


class RowsStage(Protocol):
    """Makes rows of the rows that leave a machine, and may keep state between them."""

    def warm(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Learns from all rows of a bounded run before the first one is processed, where the settings ask for it."""

    def process(self, rows: pa.RecordBatch) -> pa.RecordBatch: ...

    def save(self) -> bytes:
        """The state, for `restore`."""

    def restore(self, data: bytes) -> None:
        """Replaces the state by what `save` returned."""

    def take_counts(self) -> Mapping[str, Any]:
        """What was counted since the last call."""

    def publish(self) -> None:
        """Passes what was counted since the last call on to the metrics."""


class ComposedMachine:
    """A machine and the stage that its rows pass, as one machine: saved, restored and replayed together."""

    def __init__(self, first: Machine, stage: RowsStage) -> None:
        self._first, self._stage = first, stage

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        left = self._first.apply(kind, now_ms, rows)
        return self._stage.process(left) if left.num_rows else left

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        return self._first.take_side()

    def take_counts(self) -> Mapping[str, Any]:
        return {**self._first.take_counts(), **self._stage.take_counts()}

    def publish(self, shard: int) -> None:
        self._first.publish(shard)
        self._stage.publish()

    def held(self) -> Mapping[int, int]:
        return self._first.held()

    def to_bytes(self) -> bytes:
        """One Arrow IPC stream with one row: `first` and `stage`, the bytes of each."""
        parts = {"first": self._first.to_bytes(), "stage": self._stage.save()}
        return record_batch.to_bytes(
            pa.record_batch({name: pa.array([data], pa.large_binary()) for name, data in parts.items()})
        )

    @property
    def next_close_ms(self) -> int | None:
        return self._first.next_close_ms


@dataclass(frozen=True)
class ComposedMachineFactory:
    """Makes machines with a stage; ValueError for bytes that no such machine wrote."""

    first: MachineFactory
    stage: Callable[[], RowsStage]

    def __call__(self, saved: bytes | None) -> ComposedMachine:
        stage = self.stage()
        if saved is None:
            return ComposedMachine(self.first(None), stage)
        outer = record_batch.from_bytes(saved)
        if outer.schema.names != ["first", "stage"] or outer.num_rows != 1:
            raise ValueError(f"not the state of a machine with a stage: columns {', '.join(outer.schema.names)}")
        stage.restore(outer.column("stage")[0].as_py())
        return ComposedMachine(self.first(outer.column("first")[0].as_py()), stage)


class PassThrough:
    """A machine that holds nothing: rows leave as they come. A feed of records puts its stage after one."""

    next_close_ms = None

    def apply(self, _kind: bytes, _now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        return record_batch.empty(pa.schema([])) if rows is None else rows

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        return {}

    def take_counts(self) -> Mapping[str, int]:
        return {}

    def publish(self, shard: int) -> None:
        pass

    def held(self) -> Mapping[int, int]:
        return {}

    def to_bytes(self) -> bytes:
        return b""


def pass_through(_saved: bytes | None) -> PassThrough:
    """Makes `PassThrough` machines, whose state is empty."""
    return PassThrough()
