"""Pending rows of a join: those that wait for actions, in blocks whose windows close together, oldest block first."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from millrace.transforms.batch import record_batch
from millrace.transforms.feed.row_spill import SpillSettings, spilled
from millrace.transforms.feed.spans import LowestHeld, rows_lowest

# Rows that arrive within this time, or within this part of the window, share a block, so that blocks are few and large.
# A row waits up to one block's time longer than its window.
_BLOCK_MS = 50
_BLOCKS_PER_WINDOW = 256
_BLOCK_ROWS = 16_384  # merging the batches of a block copies its rows, and this bounds the copy


@dataclass
class Block:
    """Rows whose windows close together, at `close_at_ms`.

    `positions` holds the position of each row, ascending. All positions below `stop`, and not below the `stop` of the
    block before, belong to this block, whether their rows still wait or not.
    """

    opened_ms: int
    close_at_ms: int
    stop: int
    batches: list[pa.RecordBatch]
    positions: list[np.ndarray]
    in_file: bool = False

    @property
    def rows(self) -> int:
        return sum(len(held) for held in self.positions)

    @property
    def nbytes(self) -> int:
        return sum(batch.get_total_buffer_size() for batch in self.batches)

    def merged(self) -> tuple[pa.RecordBatch, np.ndarray]:
        if len(self.batches) > 1:
            self.batches = [record_batch.concat(self.batches)]
            self.positions = [np.concatenate(self.positions)]
        return self.batches[0], self.positions[0]


class PendingRows:
    """The blocks whose windows are open.

    When more than `spill.max_rows` rows are in memory, the oldest blocks move to files, where they can be read like the
    others. A step cannot slow down its source instead: Beam gives it no back-pressure, and a bundle that waited for
    windows to close would hold back the timers that close them.
    """

    def __init__(self, window_ms: int, spill: SpillSettings) -> None:
        self._window_ms, self._spill = window_ms, spill
        self._block_ms = max(_BLOCK_MS, window_ms // _BLOCKS_PER_WINDOW)
        self._open: deque[Block] = deque()
        self._in_files = 0  # the oldest blocks
        self._rows_in_memory = 0
        self._held = LowestHeld()

    def add(self, rows: pa.RecordBatch, positions: np.ndarray, now_ms: int) -> None:
        """Adds one or more rows that arrived at `now_ms`; their positions lie above all earlier ones."""
        last = self._open[-1] if self._open else None
        stop, close_at = int(positions[-1]) + 1, now_ms + self._window_ms
        if last and self._takes_more(last, now_ms):
            last.batches.append(rows)
            last.positions.append(positions)
            last.stop, last.close_at_ms = stop, close_at
            self._held.add(rows_lowest(rows))
            self._rows_in_memory += rows.num_rows
            self._bound_memory()
        else:
            self.add_block(Block(now_ms, close_at, stop, [rows], [positions]), rows_lowest(rows))

    def add_block(self, block: Block, lowest: Mapping[int, int]) -> None:
        """Adds a block after the others; it closes no earlier than they do.

        Args:
          lowest: {source partition: lowest offset of its rows}.
        """
        self._open.append(block)
        self._held.add_group()
        self._held.add(lowest)
        self._rows_in_memory += block.rows
        self._bound_memory()

    def take(self, positions: np.ndarray) -> pa.RecordBatch:
        """The rows at `positions`, int64 [n], one or more, ascending; they stay pending."""
        stops = np.array([block.stop for block in self._open])
        owner = np.searchsorted(stops, positions, side="right")
        taken = []
        for number in np.unique(owner).tolist():
            rows, held = self._open[number].merged()
            taken.append(rows.take(pa.array(np.searchsorted(held, positions[owner == number]))))
        return record_batch.concat(taken)

    def pop_expired(self, now_ms: int) -> list[Block]:
        """Removes and returns the blocks that close at `now_ms` or before."""
        expired = []
        while self._open and self._open[0].close_at_ms <= now_ms:
            block = self._open.popleft()
            self._held.remove_group()
            if block.in_file:
                self._in_files -= 1
            else:
                self._rows_in_memory -= block.rows
            expired.append(block)
        return expired

    def blocks(self) -> list[Block]:
        return list(self._open)

    def held(self) -> dict[int, int]:
        """{source partition: offset}: no row from a record below it waits.

        The rows of a block count until it closes, whether they still wait or not.
        """
        return self._held.lowest()

    @property
    def next_close_ms(self) -> int | None:
        return self._open[0].close_at_ms if self._open else None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in memory."""
        return sum(block.nbytes for block in self._open if not block.in_file)

    @property
    def spilled_bytes(self) -> int:
        """Bytes of the rows in files."""
        return sum(block.nbytes for block in self._open if block.in_file)

    def _takes_more(self, block: Block, now_ms: int) -> bool:
        fits = now_ms - block.opened_ms <= self._block_ms and block.rows < _BLOCK_ROWS
        return fits and bool(block.positions) and not block.in_file

    def _bound_memory(self) -> None:
        limit = self._spill.max_rows
        while limit is not None and self._rows_in_memory > limit:
            block = self._open[self._in_files]
            self._rows_in_memory -= block.rows
            if block.batches:
                block.batches = [spilled(block.merged()[0], self._spill.folder)]
            block.in_file = True
            self._in_files += 1
