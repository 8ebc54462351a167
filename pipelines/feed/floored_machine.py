"""A machine that knows its floors too: the offsets below which nothing is still to come or still held by its shard."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from millrace.pipelines.feed.machine import Machine, MachineFactory
from millrace.transforms.batch import record_batch
from millrace.transforms.feed.spans import GivenSpans, spans_of, with_spans


class FlooredMachine:
    """A machine, and how far it was given each source partition; both are saved, restored and replayed together.

    Kinds of rows without an effect on the train rows' own provenance, such as actions, count for what a reader may
    commit, but are no floors of a train block.

    Args:
      kinds: the kinds of rows that come out as train rows.
    """

    def __init__(self, machine: Machine, given: GivenSpans, aside: GivenSpans, kinds: frozenset[bytes]) -> None:
        self._machine, self._given, self._aside, self._kinds = machine, given, aside, kinds
        self._held: Mapping[int, int] | None = None  # of the machine as it is; None until it is asked for

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        """As of `Machine`; rows may carry spans, and there may be none of them."""
        self._held = None
        if rows is None:
            return self._machine.apply(kind, now_ms, None)
        spans = spans_of(rows)
        if spans is not None:
            (self._given if kind in self._kinds else self._aside).take(spans)
            rows = with_spans(rows, None)
        return self._machine.apply(kind, now_ms, rows) if rows.num_rows else rows

    def floors(self) -> dict[int, int]:
        """{source partition of train rows: floor}."""
        return self._below(self._given)

    def all_floors(self) -> dict[int, int]:
        """{source partition: floor}, also of rows that are no train rows."""
        return self._below(self._given) | self._below(self._aside)

    def ends(self) -> dict[int, int]:
        """{source partition: offset below which everything was given}."""
        return {**self._given.ends(), **self._aside.ends()}

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        return self._machine.take_side()

    def take_counts(self) -> Mapping[str, Any]:
        return self._machine.take_counts()

    def publish(self, shard: int) -> None:
        self._machine.publish(shard)

    def to_bytes(self) -> bytes:
        """One Arrow IPC stream with one row: `machine`, its bytes; `given` and `aside`, as JSON."""
        return record_batch.to_bytes(
            pa.record_batch(
                {
                    "machine": pa.array([self._machine.to_bytes()], pa.large_binary()),
                    "given": pa.array([self._given.save()]),
                    "aside": pa.array([self._aside.save()]),
                }
            )
        )

    @property
    def next_close_ms(self) -> int | None:
        return self._machine.next_close_ms

    def _below(self, given: GivenSpans) -> dict[int, int]:
        held = self._held = self._machine.held() if self._held is None else self._held
        return {number: min(end, held.get(number, end)) for number, end in given.ends().items()}


def floored(factory: MachineFactory, kinds: frozenset[bytes], saved: bytes | None) -> FlooredMachine:
    """A machine of `factory` with its floors; ValueError for bytes that no such machine wrote."""
    if saved is None:
        return FlooredMachine(factory(None), GivenSpans(), GivenSpans(), kinds)
    outer = record_batch.from_bytes(saved)
    if outer.schema.names != ["machine", "given", "aside"] or outer.num_rows != 1:
        raise ValueError(f"not the state of a machine with floors: columns {', '.join(outer.schema.names)}")
    machine, given, aside = (column[0].as_py() for column in outer.columns)
    return FlooredMachine(factory(machine), GivenSpans(given), GivenSpans(aside), kinds)
