"""Blocks of the train topic that the train step fails on: which are learned alone, and which are passed over."""

import logging
from collections.abc import Sequence

from millrace.runtime.telemetry import counter
from millrace.training.stream.batch_queue import BlockRows, Place

_LOG = logging.getLogger(__name__)
_SKIPPED = counter("train_blocks_skipped", "blocks that were passed over since the step failed on them twice")
_RESTORES = counter("train_restores", "returns to the newest checkpoint since a step failed")
_MOST_SKIPPED = 32  # in one process: when the step fails on more, the cause is not in the blocks


class StepError(Exception):
    """The train step raised; its cause says what. `blocks` are those that the batch had rows of."""

    def __init__(self, blocks: Sequence[BlockRows]) -> None:
        super().__init__(f"the train step failed on {_listed(blocks)}")
        self.blocks = tuple(blocks)


class BadBlocks:
    """What is known of blocks, named by their place in the train topic, that steps of this process failed on.

    A batch has rows of several blocks. After its first failure each of them is learned in a batch of its own; the one
    that fails then is passed over from there on.

    Attributes:
      alone: the blocks that share no batch.
      skipped: the blocks that are passed over.
    """

    def __init__(self) -> None:
        self.alone: set[Place] = set()
        self.skipped: set[Place] = set()

    def failed(self, error: StepError) -> None:
        """Notes a failure. Raises the step's own error when too many blocks are passed over already."""
        places = {block.place for block in error.blocks}
        again = places & self.alone
        self.alone |= places
        _RESTORES.inc()
        if not again:
            _LOG.error(
                "%s: %s. Training goes back to the newest checkpoint; each of these blocks is then learned alone",
                error, error.__cause__,
            )  # fmt: skip
            return
        if len(self.skipped | again) > _MOST_SKIPPED:
            raise error.__cause__ or error
        self.skipped |= again
        _SKIPPED.inc(len(again))
        _LOG.error(
            "%s for the second time: %s. It is passed over, its rows are not learned; training goes back to the newest "
            "checkpoint", error, error.__cause__,
        )  # fmt: skip


def _listed(blocks: Sequence[BlockRows]) -> str:
    return ", ".join(f"[{block.partition}] offset {block.offset}" for block in blocks) or "no block"
