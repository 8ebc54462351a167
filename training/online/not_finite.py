"""What a trainer does about rows whose update was NaN or infinite, and so was not made."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.runtime.telemetry import LogLimit, counter
from millrace.training.stream.batch_queue import BlockRows, Ticket
from millrace.training.stream.gate import Refused
from millrace.transforms.batch import record_batch

_LOG = logging.getLogger(__name__)
_ROWS = counter("train_rows_not_finite", "rows that were not learned since loss or gradients of their update were not")
_REASON = "not_finite"
_DETAIL = "loss or gradients of the update with these rows are NaN or infinite; not each of the rows must be the cause"

Refuse = Callable[[Refused, int, int], int]


class NotFiniteRows:
    """Counts rows that were not learned and sends them to the dead letters, or ends the process.

    The unit is an update: all rows of a slice (`micro_batch`) of which one is the cause.

    Args:
      stop: end the process instead.
      refuse: sends a dead letter for a partition and offset of the train topic; returns its number.
    """

    def __init__(self, stop: bool, refuse: Refuse) -> None:
        self._stop, self._refuse, self._limit = stop, refuse, LogLimit()

    def handle(self, ticket: Ticket, finite: np.ndarray) -> int:
        """Acts on the rows of a batch that were not learned, those where `finite`, bool [rows], is false.

        Returns: the number of the last dead letter.

        Raises:
          UserError: with `stop`; it names blocks.
        """
        parts = list(_by_block(ticket, finite))
        where = ", ".join(f"[{block.partition}] offset {block.offset} ({block.rows} rows)" for block, _ in parts)
        if self._stop:
            raise UserError(
                "--on-not-finite",
                "stop",
                f"the loss or a gradient is NaN or infinite for rows of these blocks of the train topic: {where}",
                "look at them with `millrace records head`, mend their producer or the model, or start with "
                "--on-not-finite skip",
            )
        rows = sum(block.rows for block, _ in parts)
        _ROWS.inc(rows)
        if times := self._limit.count(_REASON):
            _LOG.warning(
                "%d rows are not learned, since the loss or a gradient of their update is NaN or infinite: %s. They "
                "are in the dead letters (%d batches since the last such line)", rows, where, times,
            )  # fmt: skip
        last = 0
        for block, part in parts:
            refused = Refused(_REASON, _DETAIL, block.rows, (record_batch.to_bytes(part),))
            last = self._refuse(refused, block.partition, block.offset)
        return last


def _by_block(ticket: Ticket, finite: np.ndarray) -> Iterator[tuple[BlockRows, pa.RecordBatch]]:
    """(block and how many of its rows were not learned, these rows), of the blocks that have such rows."""
    assert ticket.batch is not None
    start = 0
    for block in ticket.blocks:
        left_out = ~finite[start : start + block.rows]
        if left_out.any():
            rows = ticket.batch.slice(start, block.rows).filter(pa.array(left_out))
            yield block._replace(rows=int(left_out.sum())), rows
        start += block.rows
