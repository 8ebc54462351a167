"""Rows that a step did not learn: named by block, sent to the dead letters, or the end of the process."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.errors import UserError
from millrace.training.online.bad_blocks import BadBlocks, StepError
from millrace.training.online.not_finite import NotFiniteRows
from millrace.training.stream.batch_queue import BlockRows, Place, Ticket
from millrace.training.stream.batcher import Batcher
from millrace.training.stream.gate import Refused
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.seen_rows import SeenRows
from millrace.transforms.batch import record_batch
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()


def batcher(**settings: set[Place]) -> Batcher:
    made = Batcher(TrainLayout.of(TASK, audit=True), 64, SeenRows(), **settings)
    for i in range(3):
        made.add(make_batch(TASK, i * 2, 2), partition=i % 2, next_offset=11 + i)
    return made


def ticket_of_blocks() -> Ticket:
    """24 rows, 8 of each of the blocks [0] 10, [1] 11, [0] 12."""
    return batcher().take()[0]


def test_a_ticket_names_the_blocks_of_its_rows_in_their_order() -> None:
    assert ticket_of_blocks().blocks == (BlockRows(0, 10, 8), BlockRows(1, 11, 8), BlockRows(0, 12, 8))
    small = Batcher(TrainLayout.of(TASK, audit=True), 6, SeenRows())
    small.add(make_batch(TASK, 0, 2), partition=3, next_offset=8)
    assert [small.take()[0].blocks for _ in range(2)] == [(BlockRows(3, 7, 6),), (BlockRows(3, 7, 2),)]


def test_a_block_that_a_step_failed_on_shares_no_batch() -> None:
    made = batcher(alone={(1, 11, "")})
    taken = [made.take()[0].blocks for _ in range(3)]
    assert taken == [(BlockRows(0, 10, 8),), (BlockRows(1, 11, 8),), (BlockRows(0, 12, 8),)]
    assert not made.pending


def test_rows_that_were_not_learned_go_to_the_dead_letters_of_their_block(caplog: pytest.LogCaptureFixture) -> None:
    ticket, sent = ticket_of_blocks(), []

    def refuse(refused: Refused, partition: int, offset: int) -> int:
        sent.append((refused.reason, refused.rows, partition, offset, record_batch.from_bytes(refused.values[0])))
        return len(sent)

    finite = np.ones(24, bool)
    finite[[9, 16, 23]] = False
    with caplog.at_level(logging.WARNING):
        assert NotFiniteRows(False, refuse).handle(ticket, finite) == 2
    assert [each[:4] for each in sent] == [("not_finite", 1, 1, 11), ("not_finite", 2, 0, 12)]
    assert ticket.batch is not None
    assert sent[1][4].equals(ticket.batch.filter(pa.array(np.isin(np.arange(24), [16, 23]))))
    assert "[1] offset 11 (1 rows), [0] offset 12 (2 rows)" in caplog.text


def test_with_stop_the_process_ends_with_the_blocks_and_what_helps() -> None:
    finite = np.zeros(24, bool)
    finite[8:] = True
    with pytest.raises(UserError, match=r"on-not-finite=stop.*\[0\] offset 10 \(8 rows\).*skip"):
        NotFiniteRows(True, lambda *_: 0).handle(ticket_of_blocks(), finite)


def test_the_tickets_of_a_part_of_the_rows_hold_that_part() -> None:
    ticket = ticket_of_blocks()
    chosen = np.arange(24) % 3 == 0
    part = ticket.select(chosen)
    assert part.rows == 8 and part.offset.tolist() == ticket.offset[chosen].tolist()
    assert part.passed == ticket.passed and part.batch is not None and part.batch.num_rows == 8


def failure(*offsets: int) -> StepError:
    error = StepError([BlockRows(0, offset, 4) for offset in offsets])
    error.__cause__ = RuntimeError("the kernel's words")
    return error


def test_a_block_is_skipped_when_the_step_fails_on_it_for_the_second_time(caplog: pytest.LogCaptureFixture) -> None:
    blocks = BadBlocks()
    with caplog.at_level(logging.ERROR):
        blocks.failed(failure(7, 8, 9))
        assert (blocks.alone, blocks.skipped) == ({(0, 7, ""), (0, 8, ""), (0, 9, "")}, set())
        blocks.failed(failure(8))
    assert blocks.skipped == {(0, 8, "")}
    assert "[0] offset 8 for the second time: the kernel's words" in caplog.text


def test_a_step_that_fails_on_every_block_ends_the_process_with_its_own_error() -> None:
    blocks = BadBlocks()
    with pytest.raises(RuntimeError, match="the kernel's words"):
        for offset in range(100):
            blocks.failed(failure(offset))
            blocks.failed(failure(offset))
    assert len(blocks.skipped) == 32
