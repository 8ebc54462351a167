"""A bounded run through stored rows in order: each batch is predicted, then learned by the step of online training."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from millrace.runtime.errors import UserError
from millrace.training.movielens import is_movielens, read_movielens
from millrace.training.step.metrics import auc, calibration, last_third, log_loss
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.event_clock import EventClock
from millrace.training.stream.layout import TrainLayout
from millrace.training.task import Task
from millrace.transforms.batch import record_batch, train_check
from millrace.transforms.batch.record_batch import is_valid_label
from millrace.transforms.feed.rows_folder import DEAD_LETTERS_FOLDER, ROUTED_ACTIONS_FOLDER

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True)
class OfflineResult:
    """Speed of a run, and quality of its predictions, each of which was made before its row was learned.

    Attributes:
      rows: rows of the data.
      delay_rows: rows between a prediction and the learning of its row, beside the batch that is predicted as a whole.
      auc, auc_last_third, log_loss, calibration: of the first head, over rows with a valid label.
      seconds, rows_per_second: of predicting and learning, without reading.
    """

    rows: int
    delay_rows: int
    auc: float
    auc_last_third: float
    log_loss: float
    calibration: float
    seconds: float
    rows_per_second: float


def read_input(path: Path, task: Task) -> pa.RecordBatch:
    """All rows at `path` as one train batch.

    Args:
      path: a MovieLens folder, a Parquet file, or a folder whose Parquet files are read in the order of their paths,
        with those of its subfolders. Dead letters, routed actions and hidden files (still being written) are left out.

    Raises:
      UserError: there is no data, or it is not that of a feed of `task`.
    """
    if is_movielens(path):
        return read_movielens(path, task)
    files = _parquet_files(path) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError("--input", path, "no Parquet file and no ratings.csv there", "name a file or folder with data")
    names = [*TrainLayout.of(task).fid_columns, *(field.name for field in record_batch.METADATA_FIELDS)]
    try:
        table = pa.concat_tables([pq.read_table(file, columns=names) for file in files]).combine_chunks()
    except (pa.ArrowException, KeyError) as error:
        raise UserError("--input", path, f"not a train file ({error})", "make it with `millrace feed`") from error
    schema = record_batch.train_schema(TrainLayout.of(task).fid_columns)
    try:
        batches = table.select(schema.names).cast(schema).to_batches()
        whole = record_batch.concat(batches, schema)
        train_check.validate_train_batch(whole, TrainLayout.of(task).fid_columns, len(task.heads))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError("--input", path, str(error), f"make it with `millrace feed` for task {task.name}") from error
    return whole


def _parquet_files(folder: Path) -> list[Path]:
    found = (path.relative_to(folder) for path in folder.rglob("*.parquet"))
    return [folder / path for path in sorted(found) if not any(map(_is_aside, path.parts))]


def _is_aside(name: str) -> bool:
    return name in (DEAD_LETTERS_FOLDER, ROUTED_ACTIONS_FOLDER) or name.startswith(".")


def train(
    task: Task,
    data: pa.RecordBatch,
    batch_size: int = 256,
    delay_rows: int = 0,
    micro_batch: int = 32,
    epochs: int = 2,
    progress: Progress = lambda done, total: None,
) -> tuple[OfflineResult, TrainStep]:
    """Predicts each batch of `data` with what was learned so far, then learns it, `delay_rows` rows later if asked.

    Args:
      data: train rows in the order of time.
      batch_size: rows that are predicted at once.
      delay_rows: at least this many rows lie between a prediction and the learning of its row.
      micro_batch, epochs: rows per update and passes over a batch, see TrainStep.

    Returns:
      The result, and the trained step with its tables.
    """
    layout = TrainLayout.of(task)
    batches = BatchQueue(layout, f"{task.name}/offline", capacity=2)
    store, _ = new_stores(task, batches.name, audit=False)
    step = TrainStep(task, store, batches, micro_batch=micro_batch, epochs=epochs)
    clock = EventClock()
    scores, late = [], deque[pa.RecordBatch]()
    start = time.perf_counter()
    for done, batch in _batches(data, batch_size):
        if delay_rows:
            scores.append(step.predict(layout.arrays(batch)).numpy())
            late.append(batch)
            if (len(late) - 1) * batch_size >= delay_rows:
                _learn(batches, step, late.popleft(), clock)
        else:
            scores.append(_learn(batches, step, batch, clock))
        progress(done, data.num_rows)
    seconds = time.perf_counter() - start
    batches.close()
    return _result(data, np.concatenate(scores), delay_rows, seconds, len(task.heads)), step


def quality_by_delay(
    task: Task,
    data: pa.RecordBatch,
    delays: Sequence[int] = (256, 1024, 8192, 33_000),
    without_ids: Task | None = None,
    without_ids_data: pa.RecordBatch | None = None,
    batch_size: int = 256,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, float | int | str]]:
    """How much worse the predictions are when rows are learned later; trains one model per delay.

    Args:
      delays: in rows; one up to `batch_size` means none, since a batch is predicted as a whole.
      without_ids, without_ids_data: a task without user and item ids, and its rows, for a last point.

    Returns:
      One {"name", "delay_rows", "auc_last_third", "auc"} per delay.
    """
    points: list[dict[str, float | int | str]] = []
    for delay in delays:
        late = 0 if delay <= batch_size else delay
        result, _ = train(task, data, batch_size, late, epochs=2 if not late else 1, progress=progress)
        points.append(_point(f"{delay:,} rows late", delay, result))
    if without_ids is not None and without_ids_data is not None:
        result, _ = train(without_ids, without_ids_data, batch_size, epochs=1, progress=progress)
        points.append(_point("without ids", 0, result))
    return points


def _point(name: str, delay: int, result: OfflineResult) -> dict[str, float | int | str]:
    return {"name": name, "delay_rows": delay, "auc_last_third": result.auc_last_third, "auc": result.auc}


def _learn(batches: BatchQueue, step: TrainStep, batch: pa.RecordBatch, clock: EventClock) -> np.ndarray:
    ticket = Ticket.of(batch, batches.layout.heads)
    batches.put(ticket, batch)
    batches.next_ticket(0.0)
    return np.asarray(step.step(clock.add(ticket.event_times_ms)).logits)


def _batches(data: pa.RecordBatch, size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    for start in range(0, data.num_rows, size):
        batch = data.slice(start, size)
        yield start + batch.num_rows, batch


def _result(data: pa.RecordBatch, logits: np.ndarray, delay: int, seconds: float, heads: int) -> OfflineResult:
    labels = np.asarray(data.column(record_batch.LABEL).flatten()).reshape(-1, heads)[:, 0]
    known = is_valid_label(labels)
    labels, scores = labels[known], 1 / (1 + np.exp(-logits[known, 0].astype(np.float64)))
    return OfflineResult(
        rows=data.num_rows,
        delay_rows=delay,
        auc=auc(labels, scores),
        auc_last_third=last_third(labels, scores),
        log_loss=log_loss(labels, scores),
        calibration=calibration(labels, scores),
        seconds=seconds,
        rows_per_second=data.num_rows / seconds,
    )
