"""From blocks to batches: every row once, in order, and a restart at any step goes on exactly there."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Position
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch.fid import audit_fid
from millrace.transforms.batch.floors import BlockFloors, floors_of
from millrace.transforms.batch.provenance import provenance_of
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
LAYOUT = TrainLayout.of(TASK, audit=True)
WHOLE = make_batch(TASK, 0, 30)

# A log of blocks: each is a run of rows of WHOLE, written to one of two partitions; runs may overlap and repeat. Each
# block says from which record on rows may come that no block before it has.
runs = st.tuples(st.integers(0, 119), st.integers(1, 40), st.integers(0, 1))
logs = st.lists(runs, min_size=1, max_size=12)


class Log:
    """Two partitions of blocks, read in turn from given offsets."""

    def __init__(self, blocks: list[tuple[int, int, int]]) -> None:
        self.partitions: list[list[pa.RecordBatch]] = [[], []]
        sent, known = [WHOLE.slice(start, length) for start, length, _ in blocks], set[int]()
        oldest_new = []  # of each block: the first record with a row that no block before it has
        for block in sent:
            keys, offsets = keys_of(block), provenance_of(block)[1].tolist()
            oldest_new.append(min([o for key, o in zip(keys, offsets, strict=True) if key not in known], default=1000))
            known.update(keys)
        for number, (block, (_, _, partition)) in enumerate(zip(sent, blocks, strict=True)):
            floors = BlockFloors("run", 1, 2, ((0, 0, min(oldest_new[number:])),))
            self.partitions[partition].append(floors.attach(block))
        self.keys = {key for blocks in self.partitions for block in blocks for key in keys_of(block)}

    def read(self, offsets: dict[int, int]) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        at = [offsets.get(0, 0), offsets.get(1, 0)]
        while any(at[p] < len(self.partitions[p]) for p in (0, 1)):
            for p in (0, 1):
                if at[p] < len(self.partitions[p]):
                    at[p] += 1
                    yield self.partitions[p][at[p] - 1], p, at[p]


def keys_of(batch: pa.RecordBatch) -> list[int]:
    return list(audit_fid(*provenance_of(batch)).tolist())


def batches(log: Log, position: Position, size: int) -> Iterator[tuple[Ticket, pa.RecordBatch]]:
    """What a reader makes of the log, going on from `position`."""
    batcher = Batcher(LAYOUT, size, position.seen.copy())
    for block, partition, next_offset in log.read(position.offsets):
        batcher.add(block, partition, next_offset, floors_of(block))
        while batcher.rows >= size:
            yield batcher.take()
    while batcher.pending:
        yield batcher.take()


def apply(position: Position, ticket: Ticket) -> list[int]:
    position.applied(ticket.partition, ticket.offset, ticket.row)
    position.passed(ticket.passed)
    return list(audit_fid(ticket.partition, ticket.offset, ticket.row).tolist())


def saved(position: Position) -> Position:
    """What a checkpoint of `position` restores."""
    with tempfile.TemporaryDirectory() as folder:
        position.seen.save(Path(folder))
        return replace(position.copy(), seen=SeenRows.load(Path(folder)))


@settings(deadline=None, max_examples=40)
@given(logs, st.integers(1, 50))
def test_every_row_is_applied_once_and_repeats_are_counted(blocks: list[tuple[int, int, int]], size: int) -> None:
    log, position, applied = Log(blocks), Position(), []
    for ticket, batch in batches(log, position, size):
        assert batch.num_rows == ticket.rows <= size
        applied += apply(position, ticket)
    rows = sum(block.num_rows for partition in log.partitions for block in partition)
    assert sorted(applied) == sorted(log.keys)
    assert position.rows_applied + position.rows_duplicate + position.rows_too_old == rows
    assert position.offsets == {p: len(each) for p, each in enumerate(log.partitions) if each}


@settings(deadline=None, max_examples=25)
@given(logs, st.integers(1, 50), st.data())
def test_a_crash_at_any_step_loses_and_repeats_nothing(
    blocks: list[tuple[int, int, int]], size: int, data: st.DataObject
) -> None:
    log, position = Log(blocks), Position()
    counts = dict.fromkeys(log.keys, 0)
    state = (saved(position), dict(counts))
    for _ in range(6):
        for ticket, _ in batches(log, position, size):
            for key in apply(position, ticket):
                counts[key] += 1
            if data.draw(st.booleans(), "checkpoint"):
                state = (saved(position), dict(counts))
            if data.draw(st.integers(0, 3), "crash") == 0:
                position, counts = saved(state[0]), dict(state[1])
                break
    for ticket, _ in batches(log, position, size):
        for key in apply(position, ticket):
            counts[key] += 1
    assert set(counts.values()) <= {1}
    assert position.rows_applied == len(log.keys)


def test_a_block_that_is_cut_in_two_counts_as_read_with_its_last_row() -> None:
    batcher = Batcher(LAYOUT, 5, SeenRows())
    batcher.add(WHOLE.slice(0, 8), 0, 17)
    first, _ = batcher.take()
    second, _ = batcher.take()
    assert (first.rows, first.passed.offsets, second.rows, second.passed.offsets) == (5, {}, 3, {0: 17})


def test_a_block_of_repeats_only_moves_the_offset() -> None:
    batcher = Batcher(LAYOUT, 5, SeenRows())
    batcher.add(WHOLE.slice(0, 4), 0, 1)
    batcher.take()
    batcher.add(WHOLE.slice(0, 4), 0, 2)
    assert (batcher.pending, batcher.rows) == (True, 0)
    ticket, batch = batcher.take()
    assert (ticket.rows, ticket.passed.duplicates, ticket.passed.offsets, batch.num_rows) == (0, 4, {0: 2}, 0)


def test_rows_of_a_block_that_is_passed_over_are_not_learned_when_they_are_sent_again(tmp_path: Path) -> None:
    position = Position()
    batcher = Batcher(LAYOUT, 64, position.seen.copy())
    batcher.add(WHOLE.slice(0, 8), 0, 1)
    batcher.add(WHOLE.slice(4, 12), 0, 2, passed_over=True)  # of which 4 rows were learned before
    batcher.add(WHOLE.slice(0, 20), 0, 3)
    ticket, batch = batcher.take()
    assert keys_of(batch) == keys_of(WHOLE)[:8] + keys_of(WHOLE)[16:20]
    assert ticket.passed.offsets == {0: 3} and ticket.passed.duplicates == 4 + 16
    apply(position, ticket)
    assert position.rows_applied == 12
    position.seen.save(tmp_path)
    again = Batcher(LAYOUT, 64, SeenRows.load(tmp_path))
    again.add(WHOLE.slice(0, 24), 0, 4)
    assert keys_of(again.take()[1]) == keys_of(WHOLE)[20:24]
