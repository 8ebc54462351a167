"""From train blocks to batches: repeated rows are refused, the others are cut into batches of at most so many rows."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa

from millrace.training.stream.batch_queue import BlockRows, Place, Ticket
from millrace.training.stream.floor_tracker import FloorTracker
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Passed
from millrace.training.stream.seen_rows import Admission, SeenRows
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import BlockFloors
from millrace.transforms.batch.provenance import provenance_of


class Batcher:
    """Cuts blocks into batches of at most `batch_size` new rows, each with what is passed by applying it.

    Args:
      seen: source rows that were queued or applied before; this object goes on marking them.
      alone: places of blocks whose rows share no batch with those of others.

    Attributes:
      rows: new rows that wait for `take`.
    """

    def __init__(self, layout: TrainLayout, batch_size: int, seen: SeenRows, alone: Collection[Place] = ()) -> None:
        self._layout, self._batch_size, self._seen, self._alone = layout, batch_size, seen, alone
        self._floors = FloorTracker()
        self._pieces: list[tuple[pa.RecordBatch, Passed]] = []
        self.rows = 0

    @property
    def pending(self) -> bool:
        """Whether there is anything to `take`: rows, or the offset of a block without new rows."""
        return bool(self._pieces)

    def add(
        self,
        block: pa.RecordBatch,
        partition: int,
        next_offset: int,
        floors: BlockFloors | None = None,
        topic_id: str = "",
        dead_letters: int = 0,
        passed_over: bool = False,
    ) -> Admission:
        """Takes the new rows of one block. The batch with the last of them passes the block.

        Args:
          block: rows that the gate let through; a block of which none are left still carries its offset on.
          partition, next_offset, topic_id: of the train topic; the offset after the block.
          floors: of the block; rows that they exclude are refused in later blocks.
          dead_letters: number of the last dead letter that was sent for this block or one before it.
          passed_over: none of the rows is to be learned, nor when a feed sends them again in another block.

        Returns: which of the rows are new.

        Raises:
          ProvenanceError: a row's provenance is out of range.
        """
        admission = self._seen.admit(*provenance_of(block))
        bases = self._floors.add(partition, floors) if floors is not None else {}
        self._seen.raise_bases(bases)
        rows = self._layout.project(block)
        if not admission.new.all():
            rows = rows.filter(pa.array(admission.new))
        left_out = (provenance_of(rows),) if passed_over else ()
        if passed_over:
            rows = record_batch.empty(self._layout.schema)
        passed = Passed(
            {partition: next_offset},
            {partition: topic_id},
            bases,
            admission.duplicates,
            admission.too_old,
            dead_letters,
            left_out,
        )
        self._pieces.append((rows, passed))
        self.rows += rows.num_rows
        return admission

    def skip(self, partition: int, next_offset: int, topic_id: str = "", dead_letters: int = 0) -> None:
        """Passes over a block that cannot be used: only its offset is carried on."""
        passed = Passed({partition: next_offset}, {partition: topic_id}, dead_letters=dead_letters)
        self._pieces.append((record_batch.empty(self._layout.schema), passed))

    def take(self) -> tuple[Ticket, pa.RecordBatch]:
        """The next batch of at most `batch_size` rows, in the order in which they were added, with its ticket."""
        taken: list[pa.RecordBatch] = []
        passed: list[Passed] = []
        blocks: list[BlockRows] = []
        space = self._batch_size
        while self._pieces:
            rows, here = self._pieces[0]
            ((partition, next_offset),) = here.offsets.items()
            block = BlockRows(partition, next_offset - 1, min(rows.num_rows, space), here.topic_ids[partition])
            if blocks and block.rows and self._is_alone(block, blocks[0]):
                break
            if block.rows:
                blocks.append(block)
            if rows.num_rows > space:
                if space:
                    taken.append(rows.slice(0, space))
                    self._pieces[0] = (rows.slice(space), here)
                break
            taken.append(rows)
            space -= rows.num_rows
            self._pieces.pop(0)
            passed.append(here)
        batch = record_batch.concat(taken, self._layout.schema)
        self.rows -= batch.num_rows
        return replace(Ticket.of(batch, self._layout.heads), passed=_merged(passed), blocks=tuple(blocks)), batch

    def _is_alone(self, *blocks: BlockRows) -> bool:
        return any(block.place in self._alone for block in blocks)


def _merged(parts: Sequence[Passed]) -> Passed:
    """What is true when all `parts`, in this order, are."""
    offsets, topic_ids, bases = dict[int, int](), dict[int, str](), dict[int, int]()
    for part in parts:
        offsets |= part.offsets
        topic_ids |= part.topic_ids
        bases |= part.bases  # bases of one partition do not go back
    return Passed(
        offsets,
        topic_ids,
        bases,
        sum(part.duplicates for part in parts),
        sum(part.too_old for part in parts),
        max((part.dead_letters for part in parts), default=0),
        tuple(rows for part in parts for rows in part.left_out),
    )
