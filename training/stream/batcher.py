"""From train blocks to batches: repeated rows are refused, the others are cut into batches of at most so many rows."""

from dataclasses import dataclass, replace

import pyarrow as pa

from millrace.training.stream.batch_queue import Ticket
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.provenance import provenance_of


@dataclass(frozen=True)
class _Mark:
    """What is true once all rows of a block are applied: where to go on, and how many of its rows were refused."""

    partition: int
    next_offset: int
    duplicates: int = 0
    too_old: int = 0


class Batcher:
    """Cuts blocks into batches of at most `batch_size` new rows, each with the offsets that are reached by applying it.

    Args:
      seen: source rows that were queued or applied before; this object goes on marking them.

    Attributes:
      rows: new rows that wait for `take`.
    """

    def __init__(self, layout: TrainLayout, batch_size: int, seen: SeenRows) -> None:
        self._layout, self._batch_size, self._seen = layout, batch_size, seen
        self._pieces: list[tuple[pa.RecordBatch, _Mark]] = []
        self.rows = 0

    @property
    def pending(self) -> bool:
        """Whether there is anything to `take`: rows, or the offset of a block without new rows."""
        return bool(self._pieces)

    def add(self, block: pa.RecordBatch, partition: int, next_offset: int) -> None:
        """Takes the new rows of one block. The batch with the last of them carries the block's offset.

        Args:
          block: passed `layout.check`.
          partition, next_offset: of the train topic; the offset after the block.

        Raises:
          ProvenanceError: a row's provenance is out of range.
        """
        admission = self._seen.admit(*provenance_of(block))
        rows = self._layout.project(block)
        if not admission.new.all():
            rows = rows.filter(pa.array(admission.new))
        self._pieces.append((rows, _Mark(partition, next_offset, admission.duplicates, admission.too_old)))
        self.rows += rows.num_rows

    def skip(self, partition: int, next_offset: int) -> None:
        """Passes over a block that cannot be used: only its offset is carried on."""
        self._pieces.append((record_batch.empty(self._layout.schema), _Mark(partition, next_offset)))

    def take(self) -> tuple[Ticket, pa.RecordBatch]:
        """The next batch of at most `batch_size` rows, in the order in which they were added, with its ticket."""
        taken: list[pa.RecordBatch] = []
        marks: list[_Mark] = []
        space = self._batch_size
        while self._pieces:
            rows, mark = self._pieces[0]
            if rows.num_rows > space:
                if space:
                    taken.append(rows.slice(0, space))
                    self._pieces[0] = (rows.slice(space), mark)
                break
            taken.append(rows)
            space -= rows.num_rows
            self._pieces.pop(0)
            marks.append(mark)
        batch = record_batch.concat(taken, self._layout.schema)
        self.rows -= batch.num_rows
        ticket = replace(
            Ticket.of(batch, self._layout.heads),
            offsets={mark.partition: mark.next_offset for mark in marks},
            duplicates=sum(mark.duplicates for mark in marks),
            too_old=sum(mark.too_old for mark in marks),
        )
        return ticket, batch
