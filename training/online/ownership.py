"""What a trainer makes sure of before it publishes: that it is the model's one writer, and that it is this model."""

import uuid
from collections.abc import Callable
from pathlib import Path

from millrace.runtime.errors import UserError
from millrace.training.publish.published import Published
from millrace.training.state.checkpoint import Restored
from millrace.training.state.lease import Owner, read_owner


def choose_lineage(
    published: Published, restored: Restored, before: Owner, model_dir: Path, new_model: bool = False
) -> str:
    """The lineage that a trainer goes on with; of a model that nobody knows, a new one.

    Args:
      published: what readers of the model know.
      restored: the checkpoint of `model_dir`, or none.
      before: the owner of `model_dir` before this trainer.
      new_model: what would be refused becomes a new lineage.

    Raises:
      UserError: readers know a model of which the folder has no checkpoint, or one of another lineage. To go on would
        put a model that has learned nothing, or another one, in the place of the one that is served.
    """
    own = restored.lineage or before.lineage
    if not published.known or _is_continued(published, restored, before, own):
        return own or uuid.uuid4().hex
    if new_model:
        return uuid.uuid4().hex
    found = f"its newest checkpoint is of lineage {own or 'unknown'}" if restored.name else "it holds no checkpoint"
    raise UserError(
        "--model-dir",
        model_dir,
        f"{found}, but model.events knows this model (lineage {published.lineage or 'unknown'}, epoch "
        f"{published.newest_epoch}, newest version {published.version})",
        "mount or name the folder of that model, or give --new-model to replace it by another one",
    )


def _is_continued(published: Published, restored: Restored, before: Owner, own: str) -> bool:
    """Whether the folder goes on with what readers know, or has been told before to replace it."""
    if own != published.lineage and max(before.epoch, restored.epoch) > published.newest_epoch:
        return bool(own)  # of --new-model, and ended before anybody heard of it
    if restored.name:
        return own == published.lineage or not published.lineage  # events of before there were lineages fit any
    return bool(own) and own == published.lineage and not published.saved  # killed before its first checkpoint


def next_epoch(published: Published, restored: Restored, before: Owner, exported: int) -> int:
    """An epoch above all that were ever used for the model, as far as any place knows.

    Args:
      exported: highest epoch of the versions on disk.
    """
    return 1 + max(published.newest_epoch, restored.epoch, before.epoch, exported)


def taken_over_by(read: Callable[[], Published], model_dir: Path, epoch: int) -> str | None:
    """Who publishes the model with an epoch above `epoch`; None when nobody does."""
    newest = read().newest_epoch
    if newest <= epoch:
        return None
    owner = read_owner(model_dir)
    who = f" ({owner})" if owner.epoch == newest else ""
    return f"the trainer of epoch {newest}{who}"
