"""`guard.json` of a model directory: that the guard stopped publishing, since when, and which rows are passed over."""

import json
from dataclasses import asdict, dataclass
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
      version: the version that servers are held at, 0 when there was none.
      suspect_offsets, offsets: {partition of the train topic: next offset} then and at the alarm. The blocks between
        are passed over after `--resume-from-good`.
      resumed: whether training goes on from before `suspect_ms`.
      released: whether servers follow again.
    """

    reason: str
    suspect_ms: int
    version: int
    suspect_offsets: dict[int, int]
    offsets: dict[int, int]
    resumed: bool = False
    released: bool = False

    def __contains__(self, place: tuple[int, int]) -> bool:
        """Whether the block at (partition, offset) is passed over."""
        partition, offset = place
        first = self.suspect_offsets.get(partition, 0)
        return self.resumed and first <= offset < self.offsets.get(partition, 0)

    def is_behind(self, offsets: dict[int, int]) -> bool:
        """Whether training that stands at `offsets` has passed all of these blocks."""
        return all(offsets.get(partition, 0) >= offset for partition, offset in self.offsets.items())


def read_guard_state(model_dir: Path) -> GuardState | None:
    """None when no alarm is in force. Raises UserError for a file that holds something else."""
    path = model_dir / _NAME
    try:
        fields = json.loads(path.read_text("utf-8"))
        for name in ("suspect_offsets", "offsets"):
            fields[name] = {int(partition): int(offset) for partition, offset in fields[name].items()}
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
