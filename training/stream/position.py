"""How far a trainer has come: next offsets of the train topic, and which source rows it has applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from millrace.training.stream.seen_rows import SeenRows


@dataclass(frozen=True)
class Passed:
    """What is true once the rows before it are applied.

    Attributes:
      offsets: {partition of the train topic: next offset}.
      topic_ids: {partition of the train topic: id of the topic's incarnation}; empty where a broker tells none.
      bases: {source partition: offset}; rows of records below it are refused from now on.
      duplicates, too_old: rows that were refused since the one before.
      dead_letters: number of the last dead letter that was sent for the blocks before `offsets`; 0 before the first.
      left_out: provenance (partition, offset, row: int64 [n] each) of rows that are not to be learned, by block.
    """

    offsets: Mapping[int, int] = field(default_factory=dict)
    topic_ids: Mapping[int, str] = field(default_factory=dict)
    bases: Mapping[int, int] = field(default_factory=dict)
    duplicates: int = 0
    too_old: int = 0
    dead_letters: int = 0
    left_out: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...] = ()


@dataclass
class Position:
    """What a checkpoint says about the input: rows before `offsets` are in the model, and later ones that `seen` has.

    Attributes:
      offsets: {partition of the train topic: next offset to read}; every row before it was applied or refused.
      topic_ids: {partition of the train topic: id of the incarnation that `offsets` counts in}.
      seen: source rows that were applied, or that are not to be applied.
      rows_applied, rows_duplicate, rows_too_old: since the model was born.
      rows_not_finite: rows that were not learned since their update was not finite, since the model was born.
      dead_letters: number of the last dead letter of this process for what lies before `offsets`; it is not saved.
    """

    offsets: dict[int, int] = field(default_factory=dict)
    seen: SeenRows = field(default_factory=SeenRows)
    rows_applied: int = 0
    rows_duplicate: int = 0
    rows_too_old: int = 0
    topic_ids: dict[int, str] = field(default_factory=dict)
    dead_letters: int = 0
    rows_not_finite: int = 0

    def applied(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> None:
        """Records rows that a step has just learned: int64 [n] each, provenance that a Batcher admitted."""
        self.seen.mark(partition, offset, row)
        self.rows_applied += len(row)

    def not_finite(self, partition: np.ndarray, offset: np.ndarray, row: np.ndarray) -> None:
        """Records rows that were not learned and are not to be tried again; the arguments are those of `applied`."""
        self.seen.mark(partition, offset, row)
        self.rows_not_finite += len(row)

    def passed(self, passed: Passed) -> None:
        """Records that all blocks before `passed.offsets` are applied or refused.

        Offsets go back where a topic was made anew; the reader decides that.
        """
        self.offsets |= passed.offsets
        self.topic_ids |= passed.topic_ids
        self.seen.raise_bases(passed.bases)
        self.rows_duplicate += passed.duplicates
        self.rows_too_old += passed.too_old
        self.dead_letters = max(self.dead_letters, passed.dead_letters)
        for rows in passed.left_out:
            self.seen.mark(*rows)

    def copy(self) -> "Position":
        """An independent copy; cheap, see `SeenRows.copy`."""
        return Position(
            dict(self.offsets), self.seen.copy(), self.rows_applied, self.rows_duplicate, self.rows_too_old,
            dict(self.topic_ids), self.dead_letters, self.rows_not_finite,
        )  # fmt: skip
