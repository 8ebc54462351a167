"""A first checkpoint from the entries of another system: tables come from EntryDump files, dense weights are new."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.entry_dump import import_entry_dumps
from millrace.runtime.errors import UserError
from millrace.training.state.checkpoint import Checkpoints, newest_first
from millrace.training.state.lease import Lease
from millrace.training.step.train_step import new_step
from millrace.training.stream.position import Position
from millrace.training.task import Task
from millrace.transforms.batch.fid import slot_v2


def import_checkpoint(task: Task, files: Mapping[str, Sequence[Path]], model_dir: Path) -> dict[str, int]:
    """Writes checkpoint 0 of `model_dir`, from which a trainer goes on; returns {table: records that were read}.

    Args:
      files: {table of the task: TFRecord files of EntryDump, a whole set}. Tables without files start empty.

    Raises:
      UserError: `model_dir` has checkpoints or is in use, a table is unknown, or its files are damaged, missing or of
        another table, or its entries have slots of other features.
    """
    _check_has_none(model_dir)
    tables = [table.name for table in task.tables()]
    for name in files:
        if name not in tables:
            raise UserError("--table", name, f"task {task.name} has no such table", f"choose {', '.join(tables)}")
    step = new_step(task, f"{task.name}/import")
    records = {name: _import_table(step.store, name, paths) for name, paths in files.items()}
    for name in files:
        _check_slots(task, step.store, name)
    lease = Lease(model_dir)  # not before: files that are refused leave no folder
    try:
        _check_has_none(model_dir)
        checkpoints = Checkpoints(model_dir, task.name, task.schema_fingerprint())
        checkpoints.finish(checkpoints.cut(step, Position(), delta_sequence=0))
    except tf.errors.OpError as error:
        raise UserError("--model-dir", model_dir, _words(error), "free space there, or name another folder") from error
    finally:
        lease.close()
    return records


def _check_has_none(model_dir: Path) -> None:
    if newest_first(model_dir / "checkpoints"):
        raise UserError("--model-dir", model_dir, "holds checkpoints already", "name a folder without any")


def _import_table(store: EmbeddingStore, name: str, paths: Sequence[Path]) -> int:
    try:
        return import_entry_dumps(store, name, paths)
    except (ValueError, tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        problem = _words(error) if isinstance(error, tf.errors.OpError) else str(error)
        raise UserError("--table", name, problem, "give the files of one whole checkpoint of this table") from error


def _check_slots(task: Task, store: EmbeddingStore, name: str) -> None:
    """Refuses entries of slots that no feature of the table has: no row would ever look them up."""
    slots = {feature.slot for feature in task.features if feature.table_name == name}
    for page in store.entries(name):
        others = set(np.unique(slot_v2(page.ids)).tolist()) - slots
        if others:
            problem = f"entries have slots {sorted(others)[:5]}, the features of the table have {sorted(slots)}"
            raise UserError("--table", name, problem, "name the table of these entries, or give its feature their slot")


def _words(error: tf.errors.OpError) -> str:
    """The library's own words, without TensorFlow's frame around them."""
    return re.sub(r"\{\{.*?\}\} | \[Op:.*", "", error.message)
