"""The base classes of steps: a step is a function over batches, with counters and with random choices that repeat.

A step knows nothing of Beam: `transforms/recipe/chain.py` runs several one after the other, and
`transforms/beam/steps.py` makes PTransforms of them.
"""

import abc
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from millrace.runtime.errors import UserError
from millrace.transforms.batch.draws import uniform
from millrace.transforms.batch.provenance import provenance_of
from millrace.transforms.batch.take_rows import take_rows

Counts = Counter[str]
"""{counter of a step: number of rows} of one or several batches."""


class StepContext(NamedTuple):
    """What a step is told in addition to its settings.

    Attributes:
      seed: the seed of the recipe's random choices.
      id: name of the step in its recipe. Random choices depend on it, so that two equal steps choose differently.
    """

    seed: int = 0
    id: str = "step"


class Step(abc.ABC):
    """One step of a chain. Subclasses take `(config, context)`: their message of `protos/transform_config.proto`.

    Attributes:
      counters: {name: meaning} of what `process` counts; the chain counts `rows_in` and `rows_out`.
      example: the step as it stands in a recipe, YAML.
      fanout: the largest number of rows that one row can become, itself included.
      gives_rows: whether the output holds rows. A step without rows can only be the last one.
    """

    counters: ClassVar[Mapping[str, str]] = {}
    example: ClassVar[str] = ""
    fanout: int = 1
    gives_rows: ClassVar[bool] = True

    def __init__(self, config: Any, context: StepContext = StepContext()) -> None:
        self.config, self.context = config, context

    @abc.abstractmethod
    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        """The rows that the step makes of `batch`, which is not changed; adds to `counts`."""

    def field(self, name: str) -> str:
        """The name of the setting `name` in an error message."""
        return f"{self.context.id}.{name}"

    def wrong(self, name: str, value: object, problem: str, remedy: str) -> UserError:
        """The error that tells of a wrong setting."""
        return UserError(self.field(name), value, problem, remedy)

    def draw(self, batch: pa.RecordBatch, purpose: str = "") -> np.ndarray:
        """float64 [rows] in [0, 1): a hash of seed, step, purpose and provenance, the same whenever it is drawn."""
        return uniform(self.context.seed, f"{self.context.id}/{purpose}", *provenance_of(batch))


class Predicate(Step):
    """A step that keeps rows or drops them, and changes none."""

    counters: ClassVar[Mapping[str, str]] = {"rows_dropped": "rows that the filter drops"}

    @abc.abstractmethod
    def keep(self, batch: pa.RecordBatch) -> np.ndarray:
        """bool [rows]: true for the rows that stay."""

    def process(self, batch: pa.RecordBatch, counts: Counts) -> pa.RecordBatch:
        return keep_rows(batch, self.keep(batch), counts)


class StatefulStep(Step):
    """A step whose output depends on the batches before. The same batches in the same order give the same output.

    Attributes:
      stateful: whether it does so with the settings that it has.
      warms: whether a bounded run shows it all rows before the first one is processed.
    """

    stateful: bool = True
    warms: bool = False

    def warm(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Learns from `batch` in a pass over a bounded input that comes before all `process`, if the step `warms`.

        Returns: the rows that the next step sees in that pass.
        """
        return batch

    def write_snapshots(self) -> list[Path]:
        """Writes what was learnt to files that another run starts from, where the settings name a folder for them."""
        return []

    @abc.abstractmethod
    def save(self) -> bytes:
        """What the step knows of earlier batches, for `restore`."""

    @abc.abstractmethod
    def restore(self, data: bytes) -> None:
        """Replaces this step's state by what `save` returned; ValueError for bytes of anything else."""


def keep_rows(batch: pa.RecordBatch, keep: np.ndarray, counts: Counts, counter: str = "rows_dropped") -> pa.RecordBatch:
    """The rows where `keep`, bool [rows], is true; the others are counted."""
    dropped = len(keep) - int(np.count_nonzero(keep))
    if not dropped:
        return batch
    counts[counter] += dropped
    return take_rows(batch, np.flatnonzero(keep))


def join_states(states: Sequence[bytes]) -> bytes:
    """What several steps saved as one string of bytes: a JSON list of lengths, a line feed, the states."""
    header = json.dumps([len(each) for each in states]).encode()
    return b"".join([header, b"\n", *states])


def split_states(data: bytes, count: int) -> list[bytes]:
    """The `count` states that `join_states` joined; ValueError for bytes of anything else."""
    header, _, body = bytes(data).partition(b"\n")
    sizes = json.loads(header)
    right = isinstance(sizes, list) and all(isinstance(size, int) and size >= 0 for size in sizes)
    if not right or len(sizes) != count or sum(sizes) != len(body):
        raise ValueError(f"the state is not one of {count} stateful steps")
    ends = list(itertools.accumulate(sizes))
    return [body[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def check_priority(step: Step, priority: Sequence[int]) -> None:
    """UserError naming `action_priority` when an action is in it twice."""
    seen: set[int] = set()
    for action in priority:
        if action in seen:
            raise step.wrong("action_priority", action, "the action is there twice", "name it once")
        seen.add(action)
