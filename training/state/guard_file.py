"""`guard.json` of a model directory: that the guard stopped publishing, since when, and which rows are passed over."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from millrace.runtime.atomic_file import sync_folder, write_text
from millrace.runtime.errors import UserError

_NAME = "guard.json"


@dataclass(frozen=True)
class GuardState:
    """What an alarm leaves behind.

    Attributes:
      reason: of the alarm.
      suspect_ms: Unix milliseconds; what was learned since may be wrong.
      version, as_of_ms: servers are held at this version, 0 when there was none, with deltas up to this time.
      suspect_offsets, offsets: {partition of the train topic: next offset} then and at the alarm, or later as
        `--resume-from-good` says. The blocks between are passed over once training goes on.
      topic_ids: {partition of the train topic: id of the incarnation that these offsets count in}.
      resumed: whether training goes on from before `suspect_ms`.
      released: whether servers follow again.
    """

    reason: str
    suspect_ms: int
    version: int
    as_of_ms: int
    suspect_offsets: dict[int, int]
    offsets: dict[int, int]
    topic_ids: dict[int, str]
    resumed: bool = False
    released: bool = False

    def passes_over(self, partition: int, offset: int, topic_id: str) -> bool:
        """Whether the block at this place of the train topic is passed over."""
        first, end = self.suspect_offsets.get(partition, 0), self.offsets.get(partition, 0)
        return self.resumed and self._counts_in(partition, topic_id) and first <= offset < end

    def is_behind(self, offsets: Mapping[int, int], topic_ids: Mapping[int, str]) -> bool:
        """Whether training that stands at `offsets` of these incarnations has passed all of these blocks."""
        return all(
            offsets.get(partition, 0) >= offset or not self._counts_in(partition, topic_ids.get(partition, ""))
            for partition, offset in self.offsets.items()
        )

    def go_on(self, ends: Mapping[int, int], topic_id: str) -> "GuardState":
        """The state of training that goes on and passes over all before `ends`, {partition: offset}, too."""
        here = {partition: end for partition, end in ends.items() if self._counts_in(partition, topic_id)}
        later = {partition: max(end, self.offsets.get(partition, 0)) for partition, end in here.items()}
        topic_ids = self.topic_ids | dict.fromkeys(here, topic_id)
        return replace(self, offsets=self.offsets | later, topic_ids=topic_ids, resumed=True)

    def _counts_in(self, partition: int, topic_id: str) -> bool:
        """Whether offsets count in this incarnation of the topic; an id that nobody knows is as good as any."""
        known = self.topic_ids.get(partition, "")
        return not known or not topic_id or known == topic_id


def read_guard_state(model_dir: Path) -> GuardState | None:
    """None when no alarm is in force. Raises UserError for a file that holds something else."""
    path = model_dir / _NAME
    try:
        fields = json.loads(path.read_text("utf-8"))
        for name, kind in (("suspect_offsets", int), ("offsets", int), ("topic_ids", str)):
            fields[name] = {int(partition): kind(value) for partition, value in fields[name].items()}
        return GuardState(**fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            "--model-dir", path, f"cannot be read: {error}", "restore it, or remove it to publish"
        ) from error


def write_guard_state(model_dir: Path, state: GuardState) -> None:
    """Makes `state` durable."""
    write_text(model_dir / _NAME, json.dumps(asdict(state), indent=1))


def remove_guard_state(model_dir: Path) -> None:
    """Ends the alarm."""
    (model_dir / _NAME).unlink(missing_ok=True)
    sync_folder(model_dir)
