"""A first checkpoint from the entries of another system: tables come from EntryDump files, dense weights are new."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from millrace.ops.embedding_table import EmbeddingStore
from millrace.ops.entry_dump import import_entry_dumps
from millrace.runtime.errors import UserError
from millrace.training.state.checkpoint import Checkpoints, newest_first
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.position import Position
from millrace.training.task import Task


def import_checkpoint(task: Task, files: Mapping[str, Sequence[Path]], model_dir: Path) -> dict[str, int]:
    """Writes checkpoint 0 of `model_dir`, from which a trainer goes on; returns {table: records that were read}.

    Args:
      files: {table of the task: TFRecord files of EntryDump, a whole set}. Tables without files start empty.

    Raises:
      UserError: `model_dir` has checkpoints, a table is unknown, or its files are damaged, missing or of another table.
    """
    if newest_first(model_dir / "checkpoints"):
        raise UserError("--model-dir", model_dir, "holds checkpoints already", "name a folder without any")
    tables = [table.name for table in task.tables()]
    for name in files:
        if name not in tables:
            raise UserError("--table", name, f"task {task.name} has no such table", f"choose {', '.join(tables)}")
    batches = BatchQueue(TrainLayout.of(task), f"{task.name}/import")
    store, _ = new_stores(task, batches.name, audit=False)
    step = TrainStep(task, store, batches)
    records = {name: _import_table(store, name, paths) for name, paths in files.items()}
    checkpoints = Checkpoints(model_dir, task.name, task.schema_fingerprint())
    checkpoints.finish(checkpoints.cut(step, Position(), delta_sequence=0))
    return records


def _import_table(store: EmbeddingStore, name: str, paths: Sequence[Path]) -> int:
    try:
        return import_entry_dumps(store, name, paths)
    except (ValueError, tf.errors.DataLossError) as error:
        problem = error.message if isinstance(error, tf.errors.OpError) else str(error)
        raise UserError("--table", name, problem, "give the files of one whole checkpoint of this table") from error
