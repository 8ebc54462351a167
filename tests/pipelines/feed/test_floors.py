"""Floors: nothing below them is held or unsent, whatever the order of bundles, retries and restarts."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.pipelines.feed.floored_machine import FlooredMachine, floored
from millrace.pipelines.feed.join import _ACTIONS, _IMPRESSIONS, JoinMachineFactory
from millrace.pipelines.feed.machine import CLOSE
from millrace.pipelines.kafka.pace import FeedProgress
from millrace.training.stream.floor_tracker import FloorTracker
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import BlockFloors
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.shards import by_request
from millrace.transforms.feed.spans import Span, shard_pieces, with_spans
from tests.transforms.feed.join_rows import ACTIONS_PARTITION, NOW, actions, config, impressions

SHARDS = 2
KINDS = frozenset([_IMPRESSIONS])


def _machine(feed: FeedConfig, saved: bytes | None = None) -> FlooredMachine:
    return floored(JoinMachineFactory(feed), KINDS, saved)


def _offsets(rows: pa.RecordBatch) -> list[int]:
    return record_batch.numpy_column(rows, record_batch.SOURCE_OFFSET).tolist()


@dataclass
class _Feed:
    """A feed that reads a log, forgets all when it is killed, and may be given its pieces in any order.

    Attributes:
      log: (kind, request) of each record, by source partition; an offset without one is a gap.
      sent: offsets of impressions whose row was acknowledged.
    """

    chooser: random.Random
    log: dict[int, dict[int, int]] = field(default_factory=lambda: {0: {}, ACTIONS_PARTITION: {}})
    ends: dict[int, int] = field(default_factory=lambda: {0: 0, ACTIONS_PARTITION: 0})
    committed: dict[int, int] = field(default_factory=lambda: {0: 0, ACTIONS_PARTITION: 0})
    sent: set[int] = field(default_factory=set)
    now_ms: int = NOW
    feed: FeedConfig = field(default_factory=lambda: config(window_seconds=1.0))

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process, from the committed offsets."""
        self.machines = [_machine(self.feed) for _ in range(SHARDS)]
        self.queues: list[list[pa.RecordBatch]] = [[] for _ in range(SHARDS)]
        self.begin, self.given = dict(self.committed), dict(self.committed)
        self.progress = FeedProgress()

    def produce(self, request: int, gap: int) -> None:
        source = ACTIONS_PARTITION if request % 3 == 0 else 0
        offset = self.ends[source] + gap
        self.log[source][offset] = request
        self.ends[source] = offset + 1

    def read(self, source: int, count: int) -> None:
        """Gives the next `count` records of a partition to all shards."""
        offsets = [offset for offset in sorted(self.log[source]) if offset >= self.given[source]][:count]
        if not offsets:
            return
        if source == ACTIONS_PARTITION:
            parts = [actions((f"r{self.log[source][o] // 3}", 1, "click", 0), first_offset=o) for o in offsets]
        else:
            parts = [impressions((f"r{self.log[source][o]}", 1, 0), first_offset=o) for o in offsets]
        rows = record_batch.concat(parts)
        if self.chooser.random() < 0.3:
            rows = rows.slice(0, 0)  # as if all were dead letters
            if source == 0:
                self.sent.update(offsets)
        block = with_spans(rows, [Span(source, self.begin[source], self.given[source], offsets[-1] + 1)])
        self.given[source] = offsets[-1] + 1
        for number, piece in shard_pieces(by_request(rows, SHARDS), rows, block, SHARDS):
            self.queues[number].append(piece)

    def bundle(self, shard: int, pieces: int, fails: bool) -> None:
        """Some pieces in any order; what leaves is acknowledged at the end, unless the bundle fails and is retried."""
        machine, queue = self.machines[shard], self.queues[shard]
        saved, waiting = machine.to_bytes(), list(queue)
        floors = machine.floors()
        left = list(self._leaving(machine, queue, pieces))
        if fails:
            self.machines[shard], self.queues[shard] = _machine(self.feed, saved), waiting
            return
        for offset in [offset for rows in left for offset in _offsets(rows)]:
            assert offset in self.sent or offset >= floors.get(0, 0), "a row came after a floor above it"
            self.sent.add(offset)
        self.progress.finished(shard, SHARDS, machine.ends(), machine.all_floors())

    def _leaving(self, machine: FlooredMachine, queue: list[pa.RecordBatch], pieces: int) -> Iterator[pa.RecordBatch]:
        for _ in range(min(pieces, len(queue))):
            piece = queue.pop(self.chooser.randrange(len(queue)))
            kind = _ACTIONS if "action" in piece.schema.names else _IMPRESSIONS
            left = machine.apply(kind, self.now_ms, piece)
            if left.num_rows and piece.num_rows:
                yield left
        left = machine.apply(CLOSE, self.now_ms, None)
        if left.num_rows:
            yield left

    def commit(self) -> None:
        for source in self.committed:
            floor = self.progress.floor(source)
            if floor is not None:
                self.committed[source] = max(floor, self.committed[source])
        unsent = [offset for offset in self.log[0] if offset < self.committed[0] and offset not in self.sent]
        assert not unsent, "a row below the committed offset is held or unsent"
        held = [machine._machine._index.held().get(ACTIONS_PARTITION) for machine in self.machines]
        assert all(offset is None or offset >= self.committed[ACTIONS_PARTITION] for offset in held)


_EVENTS = st.one_of(
    st.tuples(st.just("produce"), st.integers(0, 40), st.integers(0, 3)),
    st.tuples(st.just("read"), st.booleans(), st.integers(1, 6)),
    st.tuples(st.just("bundle"), st.integers(0, SHARDS - 1), st.integers(0, 4)),
    st.tuples(st.just("retry"), st.integers(0, SHARDS - 1), st.integers(0, 4)),
    st.tuples(st.just("time"), st.integers(0, 700), st.none()),
    st.tuples(st.just("kill"), st.none(), st.none()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_EVENTS, max_size=80), st.integers())
def test_no_row_below_a_committed_offset_is_ever_held_or_unsent(events: list[tuple], seed: int) -> None:
    feed = _Feed(random.Random(seed))
    numbers = iter(range(10_000))
    for name, first, second in events:
        if name == "produce":
            feed.produce(next(numbers) * 3 + first % 3, second)
        elif name == "read":
            feed.read(ACTIONS_PARTITION if first else 0, second)
        elif name in ("bundle", "retry"):
            feed.bundle(first, second, name == "retry")
        elif name == "time":
            feed.now_ms += first
        else:
            feed.start()
        feed.commit()
    while feed.given != feed.ends:
        for source in feed.given:
            feed.read(source, 10)
    feed.now_ms += 10_000
    for shard in range(SHARDS):
        feed.bundle(shard, 1000, False)
    feed.now_ms += 10_000
    for shard in range(SHARDS):
        feed.bundle(shard, 0, False)
        feed.commit()
    assert set(feed.log[0]) <= feed.sent
    assert feed.committed[0] == feed.ends[0]
    assert feed.committed[ACTIONS_PARTITION] == feed.ends[ACTIONS_PARTITION]


def test_no_row_of_a_window_of_an_hour_lies_below_what_may_be_committed() -> None:
    """Rows share blocks of the join and close up to a 256th of the window late, which no margin stood for."""
    machine = _machine(config(window_seconds=3600.0))
    pending: set[int] = set()
    lowest_floor = offset = 0
    for second in range(0, 4000, 4):
        rows = impressions(*((f"r{offset + each}", 1, 0) for each in range(40)), first_offset=offset)
        pending.update(range(offset, offset + 40))
        span = Span(0, 0, offset, offset + 40)
        offset += 40
        machine.apply(_IMPRESSIONS, NOW + second * 1000, with_spans(rows, [span]))
        left = machine.apply(CLOSE, NOW + second * 1000, None)
        pending.difference_update(_offsets(left) if left.num_rows else ())
        lowest_floor = machine.floors()[0]
        assert lowest_floor <= min(pending)
    assert lowest_floor > 0


@pytest.mark.parametrize("rate", [1760])
def test_a_trainer_learns_every_row_of_a_long_window_at_a_high_rate(rate: int) -> None:
    """Positives leave at once and negatives ten minutes later: over a million records lie between them."""
    feed = replace(config(), window_seconds=600.0)
    machine, tracker, seen = _machine(feed), FloorTracker(), SeenRows()
    learned = refused = offset = 0
    step, steps = 10, 66
    for number in range(steps):
        now_ms, count = NOW + number * step * 1000, rate * step
        names = [f"r{each}" for each in range(offset, offset + count)]
        rows = impressions(*((name, 1, 0) for name in names[:1]), first_offset=offset).take(
            pa.array(np.zeros(count, int))
        )
        for name, values in (("request_id", names), (record_batch.SOURCE_OFFSET, range(offset, offset + count))):
            index = rows.schema.get_field_index(name)
            rows = rows.set_column(index, rows.schema.field(index), pa.array(values))
        floors = machine.floors()
        spans = [Span(0, 0, offset, offset + count)]
        offset += count
        left = [machine.apply(_IMPRESSIONS, now_ms, with_spans(rows, spans))]
        left.append(machine.apply(_ACTIONS, now_ms, actions(*((name, 1, "click", 0) for name in names[::10]))))
        left.append(machine.apply(CLOSE, now_ms, None))
        for part in left:
            if part.num_rows and part.schema.names != rows.schema.names:
                admission = seen.admit(*provenance_of(part))
                learned += int(admission.new.sum())
                refused += admission.too_old + admission.duplicates
        block = BlockFloors("run", 1, 1, tuple((0, *floor) for floor in floors.items()))
        seen.raise_bases(tracker.add(0, block))
    assert refused == 0
    closed = rate * step * (steps - 60)
    assert learned >= closed + (offset - closed) // 10 - rate * step


def test_a_machine_and_its_floors_are_saved_together() -> None:
    feed = config()
    machine = _machine(feed)
    machine.apply(_IMPRESSIONS, NOW, with_spans(impressions(("a", 1, 0), first_offset=7), [Span(0, 5, 5, 8)]))
    machine.apply(_IMPRESSIONS, NOW, with_spans(impressions(("b", 1, 0), first_offset=12), [Span(0, 5, 12, 13)]))
    waiting = actions(("z", 1, "click", 0), first_offset=3)
    machine.apply(_ACTIONS, NOW, with_spans(waiting, [Span(ACTIONS_PARTITION, 0, 0, 9)]))
    again = _machine(feed, machine.to_bytes())
    for each in (machine, again):
        assert each.floors() == {0: 7}
        assert each.all_floors() == {0: 7, ACTIONS_PARTITION: 3}
        assert each.ends() == {0: 8, ACTIONS_PARTITION: 9}
    again.apply(_IMPRESSIONS, NOW, with_spans(impressions().slice(0, 0), [Span(0, 5, 8, 12)]))
    assert again.ends()[0] == 13
    with pytest.raises(ValueError, match="not the state of a machine with floors"):
        _machine(feed, record_batch.to_bytes(impressions()))
