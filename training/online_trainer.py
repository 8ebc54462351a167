"""The endless loop: consume, predict, learn; deltas every second, checkpoints and exports now and then."""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from millrace.ops.table_config import NEVER_DAYS
from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError, ensure_topic
from millrace.runtime.telemetry import Heartbeat, counter, gauge
from millrace.runtime.topics import Topics
from millrace.training.publish.delta_publisher import DeltaPublisher
from millrace.training.publish.event_publisher import EventPublisher
from millrace.training.publish.exporter import ExportCut, Exporter
from millrace.training.state.checkpoint import CheckpointCut, Checkpoints
from millrace.training.step.metrics import PredictionFile, Progressive
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Ticket
from millrace.training.stream.layout import TrainLayout, invalid_rows
from millrace.training.stream.train_topic_reader import TrainTopicReader
from millrace.training.task import Task

_LOG = logging.getLogger(__name__)
_ROWS = counter("rows_trained", "rows learned by this process")
_DUPLICATE = counter("rows_duplicate", "rows refused because they were learned before")
_TOO_OLD = counter("rows_too_old", "rows refused because they are older than what provenance remembers")
_STEPS = counter("train_steps", "train steps of this process")
_EXPORTS = counter("exports_published", "versions announced")
_CHECKPOINTS = counter("checkpoints", "checkpoints whose manifest is in place")
_EVICTED = counter("entries_evicted", "embedding entries removed since they were not updated for `expire_days`")
_DISK_FAILURES = counter("save_failures", "checkpoints and exports that failed and will be tried again", ("what",))
_AUC = gauge("progressive_auc", "predict-then-train AUC over the last rows")
_LOG_LOSS = gauge("progressive_log_loss", "predict-then-train log loss over the last rows")
_CALIBRATION = gauge("progressive_calibration", "mean prediction over mean label, last rows")
_GLOBAL_STEP = gauge("global_step", "train steps since the model was born")

_SAVE_ERRORS = (OSError, tf.errors.OpError, UndeliveredError)
_RETRY_SECONDS = 5.0
_FIRST_EXPORT_SECONDS = 5.0
_IDLE_SECONDS = 0.02
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class OnlineOptions:
    """Settings of `train_online`.

    Args:
      model_dir: checkpoints/, exports/, events/, progress.jsonl and predictions.bin.
      audit: count in an audit table how often each source row was applied; the feed must have the same setting.
      batch_size: most rows of a step.
      max_wait_seconds: how long the first row of a batch waits for more.
      micro_batch: rows of one update within a step; 0: the whole batch.
      create_topics: create the train topic when it is missing, instead of refusing to start.
    """

    model_dir: Path
    audit: bool = False
    export_seconds: float = 20.0
    checkpoint_seconds: float = 20.0
    delta_seconds: float = 1.0
    batch_size: int = 512
    max_wait_seconds: float = 0.05
    micro_batch: int = 64
    create_topics: bool = False


def train_online(
    task: Task,
    connection: KafkaConnection,
    topics: Topics,
    options: OnlineOptions,
    stop: threading.Event,
    ready: Callable[[], None] = lambda: None,
    heartbeat: Heartbeat | None = None,
) -> None:
    """Trains until `stop` is set; then saves and returns. Goes on from the newest checkpoint in `model_dir`.

    Raises:
      UserError: the train topic is missing, or the checkpoint belongs to another declaration.
    """
    trainer = OnlineTrainer(task, connection, topics, options)
    try:
        ready()
        trainer.run(stop, heartbeat or Heartbeat("the training loop"))
    finally:
        trainer.close()


class _Timer:
    """Says when something is due again."""

    def __init__(self, seconds: float, first: float | None = None) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + (seconds if first is None else first)

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def restart(self, seconds: float | None = None) -> None:
        self._next = time.monotonic() + (self._seconds if seconds is None else seconds)


class OnlineTrainer:
    """One model in training; `run` is the loop, everything else happens between its steps."""

    def __init__(self, task: Task, connection: KafkaConnection, topics: Topics, options: OnlineOptions) -> None:
        self._options = options
        model_dir = options.model_dir
        model_dir.mkdir(parents=True, exist_ok=True)
        train_topic = topics.train(task.name)
        if options.create_topics:
            ensure_topic(connection, train_topic, partitions=4)
        self._queue = BatchQueue(TrainLayout.of(task, options.audit), task.name)
        store, audit_store = new_stores(task, self._queue.name, options.audit)
        self._step = TrainStep(task, store, self._queue, audit_store, options.micro_batch)
        self._checkpoints = Checkpoints(model_dir, task.name, task.schema_fingerprint())
        restored = self._checkpoints.restore(self._step)
        self._position, self._checkpoint_name = restored.position, restored.name
        self._step.step.get_concrete_function()  # traced now, so that the first rows do not wait for it
        self._reader = TrainTopicReader(
            connection, train_topic, self._queue, dict(self._position.offsets), self._position.seen,
            options.batch_size, options.max_wait_seconds,
        )  # fmt: skip
        self._deltas = DeltaPublisher(connection, topics.deltas(task.name), task.name, store, self._step.dense)
        self._events = EventPublisher(connection, topics, task.name)
        self._exporter = Exporter(task, model_dir)
        self._progress = _Progress(model_dir, restored.prediction_rows)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saving: Future[None] | None = None
        self._steps = int(self._step.global_step.numpy())
        self._event_time_ms = 0
        # What was saved at this step need not be saved again.
        self._checkpoint_step = restored.global_step if restored.name else -1
        self._export_step = -1
        self._base_version = max(self._exporter.versions(), default=0)
        # A server may hold newer values than a restored trainer: learning the rest again sends most of them out anew,
        # and an export soon after the start replaces them all. A model without any export gets one at once.
        first = min(_FIRST_EXPORT_SECONDS, options.export_seconds) if self._base_version else 0.0
        self._export_timer = _Timer(options.export_seconds, first)
        self._checkpoint_timer = _Timer(options.checkpoint_seconds)
        self._delta_timer, self._progress_timer = _Timer(options.delta_seconds), _Timer(1.0)
        _LOG.info(
            "model %s goes on at step %d with %d rows applied", task.name, self._steps, self._position.rows_applied
        )

    def run(self, stop: threading.Event, heartbeat: Heartbeat) -> None:
        """Learns until `stop` is set, then publishes and saves what was learned."""
        self._reader.start()
        while not stop.is_set():
            heartbeat.beat()
            ticket = self._queue.next_ticket(_IDLE_SECONDS)
            if ticket is not None:
                self._learn(ticket)
            self._deltas.poll()
            self._do_what_is_due()
        self._finish()

    def close(self) -> None:
        """Ends the threads; nothing is saved."""
        self._reader.stop()
        self._background.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _learn(self, ticket: Ticket) -> None:
        if ticket.rows:
            logits = self._step.step().numpy()
            self._position.applied(ticket.partition, ticket.offset, ticket.row)
            self._steps += 1
            self._event_time_ms = max(self._event_time_ms, ticket.event_time_ms)
            self._progress.add(ticket, logits)
            _ROWS.inc(ticket.rows)
            _STEPS.inc()
        self._position.passed(ticket.offsets, ticket.duplicates, ticket.too_old)
        _DUPLICATE.inc(ticket.duplicates)
        _TOO_OLD.inc(ticket.too_old)

    def _do_what_is_due(self) -> None:
        if self._delta_timer.due():
            self._delta_timer.restart()
            self._deltas.publish(self._steps, self._base_version, self._event_time_ms)
        if self._progress_timer.due():
            self._progress_timer.restart()
            self._progress.report(self._steps, self._position.rows_applied, vars(self._position))
        if self._saving is not None and not self._saving.done():
            return
        if self._export_timer.due() or self._deltas.has_lost_ids():
            self._export_timer.restart()
            self._start_export()
        elif self._checkpoint_timer.due():
            self._checkpoint_timer.restart()
            self._start_checkpoint()

    def _start_checkpoint(self) -> None:
        if self._steps == self._checkpoint_step:
            return
        try:
            rows = self._progress.predictions.rows_when_flushed()
            cut = self._checkpoints.cut(self._step, self._position, self._deltas.sequence, rows)
        except _SAVE_ERRORS as error:
            self._save_failed("checkpoint", error)
        else:
            self._saving = self._background.submit(self._finish_checkpoint, cut)

    def _finish_checkpoint(self, cut: CheckpointCut) -> None:
        try:
            self._checkpoints.finish(cut)
            self._checkpoint_name, self._checkpoint_step = cut.folder.name, cut.global_step
            _CHECKPOINTS.inc()
            self._reader.commit(cut.position.offsets)
            self._events.checkpoint(cut.global_step, cut.folder)
            self._evict()
        except Exception as error:  # on the saving thread nobody else would hear of it
            self._save_failed("checkpoint", error)

    def _evict(self) -> None:
        """Removes expired entries; a checkpoint leaves them out already."""
        store = self._step.store
        if any(table.expire_days < NEVER_DAYS or table.slot_expire_days for table in store.tables):
            _EVICTED.inc(int(np.sum(store.evict())))

    def _start_export(self) -> None:
        if self._steps == self._export_step:
            return
        try:
            cut = self._exporter.cut(self._step, self._deltas.topic, self._deltas.sequence, self._deltas.next_offset)
        except _SAVE_ERRORS as error:
            self._save_failed("export", error)
        else:
            self._saving = self._background.submit(self._finish_export, cut)

    def _finish_export(self, cut: ExportCut) -> None:
        try:
            start = time.monotonic()
            export = self._exporter.write(cut, self._step)
            self._events.export(export, self._checkpoint_name)
            self._base_version, self._export_step = export.version, export.global_step
            _EXPORTS.inc()
            _LOG.info("version %d is exported in %.1f s", export.version, time.monotonic() - start)
        except Exception as error:  # on the saving thread nobody else would hear of it
            self._save_failed("export", error)

    def _save_failed(self, what: str, error: Exception) -> None:
        """Training goes on: what failed is tried again soon, and a restart goes on from the checkpoint before."""
        _DISK_FAILURES.labels(what).inc()
        expected = isinstance(error, _SAVE_ERRORS)
        _LOG.warning("%s failed, will be tried again: %s", what, error, exc_info=None if expected else error)
        timer, seconds = (
            (self._checkpoint_timer, self._options.checkpoint_seconds)
            if what == "checkpoint"
            else (self._export_timer, self._options.export_seconds)
        )
        timer.restart(min(_RETRY_SECONDS, seconds))

    def _finish(self) -> None:
        self._reader.stop()
        if self._saving is not None:
            self._saving.result(timeout=_STOP_SECONDS)
        self._deltas.publish(self._steps, self._base_version, self._event_time_ms)
        self._deltas.flush(_RETRY_SECONDS)
        self._progress.report(self._steps, self._position.rows_applied, vars(self._position))
        self._start_checkpoint()
        if self._saving is not None:
            self._saving.result(timeout=_STOP_SECONDS)
        _LOG.info("saved at step %d with %d rows applied", self._steps, self._position.rows_applied)


class _Progress:
    """Progressive metrics to Prometheus, TensorBoard, progress.jsonl and predictions.bin; a bad disk is no matter."""

    def __init__(self, model_dir: Path, prediction_rows: int) -> None:
        self._window = Progressive()
        self.predictions = PredictionFile(model_dir / "predictions.bin")
        self.predictions.truncate(prediction_rows)
        self._path = model_dir / "progress.jsonl"
        self._summaries = tf.summary.create_file_writer(str(model_dir / "events"))

    def add(self, ticket: Ticket, logits: np.ndarray) -> None:
        """Predictions of the first head, on the scale of the sampled labels."""
        labels = ticket.labels[:, 0]
        known = ~invalid_rows(labels)
        corrected = logits[known, 0] - np.log(np.clip(ticket.sample_rates[known], 1e-12, 1.0))
        probabilities = 1 / (1 + np.exp(-corrected.astype(np.float64)))
        self._window.add(labels[known], probabilities)
        self.predictions.add(labels[known], probabilities)

    def report(self, global_step: int, rows: int, position: dict[str, int]) -> None:
        figures = self._window.result()
        for metric, name in ((_AUC, "auc"), (_LOG_LOSS, "log_loss"), (_CALIBRATION, "calibration")):
            metric.set(figures[name])
        _GLOBAL_STEP.set(global_step)
        self.predictions.flush()
        line = {
            "time_ms": time.time_ns() // 1_000_000,
            "global_step": global_step,
            "rows_trained": rows,
            "rows_duplicate": position["rows_duplicate"],
            "rows_too_old": position["rows_too_old"],
            **{name: None if np.isnan(value) else value for name, value in figures.items()},
        }
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            with self._summaries.as_default(step=global_step):
                for name, value in figures.items():
                    tf.summary.scalar(f"progressive/{name}", value)
                tf.summary.scalar("rows_trained", rows)
            self._summaries.flush()
        except (OSError, tf.errors.OpError) as error:
            _LOG.warning("progress is not written: %s", error)
