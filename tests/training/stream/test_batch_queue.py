"""Batches on their way from the reader's thread to the step."""

import numpy as np
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout
from tests.fakes.train_blocks import make_batch

LAYOUT = TrainLayout.of(FeedRanking(), audit=True)
WHOLE = make_batch(FeedRanking(), 0, 30)


def test_the_queue_returns_batches_in_order_and_then_the_error_that_ended_its_reader() -> None:
    queue = BatchQueue(LAYOUT, "test-order")
    for start in (0, 10):
        batch = LAYOUT.project(WHOLE.slice(start, 10))
        queue.put(Ticket.of(batch, 1), batch)
    queue.fail(OSError("disk"))
    for start in (0, 10):
        ticket = queue.next_ticket(0.0)
        tensors = queue.dequeue()
        assert ticket is not None and ticket.offset.tolist() == WHOLE.slice(start, 10)["__SOURCE_OFFSET__"].to_pylist()
        assert np.array_equal(tensors.labels.numpy(), ticket.labels)
    with pytest.raises(OSError, match="disk"):
        queue.next_ticket(0.0)
    queue.close()
