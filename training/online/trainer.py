"""The endless loop of a trainer: read, predict, learn; and deltas, checkpoints and exports when they are due."""

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from millrace.ops.embedding_table import NOW, EmbeddingStore
from millrace.ops.table_config import NEVER_DAYS
from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError, ensure_topic
from millrace.runtime.outage import while_away
from millrace.runtime.telemetry import Condition, Heartbeat, RefusalStreak, counter
from millrace.runtime.topics import Topics
from millrace.runtime.zookeeper import ZooKeeperSession
from millrace.training.online.bad_blocks import BadBlocks, StepError
from millrace.training.online.guarded import GuardedModel, begin_guarded
from millrace.training.online.not_finite import NotFiniteRows
from millrace.training.online.options import OnlineOptions
from millrace.training.online.progress import Progress
from millrace.training.online.publishing import Publishing
from millrace.training.online.resync import ResyncReader, ResyncRequests
from millrace.training.publish.exporter import ExportCut
from millrace.training.state.checkpoint import CheckpointCut, Checkpoints
from millrace.training.state.guard_file import GuardState
from millrace.training.state.lease import Lease
from millrace.training.state.save_schedule import SaveSchedule
from millrace.training.state.saver import Saver, SaveTimer, start_in_turn
from millrace.training.state.shared_lease import SharedLease
from millrace.training.step.train_step import TrainStep, new_stores
from millrace.training.stream.batch_queue import BatchQueue, Place, Ticket
from millrace.training.stream.event_clock import EventClock
from millrace.training.stream.layout import TrainLayout
from millrace.training.stream.train_topic import place_in_topic
from millrace.training.stream.train_topic_reader import TrainTopicReader
from millrace.training.task import Task

_LOG = logging.getLogger(__name__)
_ROWS = counter("rows_trained", "rows learned by this process")
_DUPLICATE = counter("rows_duplicate", "rows refused because they were learned before")
_TOO_OLD = counter("rows_too_old", "rows refused because the feed has said before that it sends none so old any more")
_STEPS = counter("train_steps", "train steps of this process")
_CHECKPOINTS = counter("checkpoints", "checkpoints whose manifest is in place")
_FORCED = counter("exports_forced", "exports that did not wait for --export-seconds", ("reason",))
_EVICTED = counter("entries_evicted", "embedding entries removed since they were not updated for `expire_days`")

_FIRST_EXPORT_SECONDS = 5.0  # after a restart: servers get back soon what they may have lost, once rows were learned
_REPORT_SECONDS = 1.0  # between two lines of progress: what an eye can follow
_IDLE_SECONDS = 0.02  # longest wait for a batch, so that deltas and saves are not late when no rows come
_STOP_SECONDS = 60.0  # for one save at the end: a supervisor kills what takes longer
_DEAD_LETTER_SECONDS = 30.0  # for what a checkpoint passes; after that it has failed, and is tried again
_FLUSH_SECONDS = 5.0  # for the last delta at the end; entries that a broker did not take are in the checkpoint


def train_online(
    task: Task,
    connection: KafkaConnection,
    topics: Topics,
    options: OnlineOptions,
    stop: threading.Event,
    ready: Callable[[], None] = lambda: None,
    heartbeat: Heartbeat | None = None,
    save_now: threading.Event | None = None,
    intake: RefusalStreak | None = None,
    guard: Condition | None = None,
) -> None:
    """Trains until `stop` is set; then saves and returns. Goes on from the newest checkpoint in `model_dir`.

    When a step raises it goes back to that checkpoint within the process, and passes over the block that caused it.

    It has the lease of `model_dir` meanwhile: no other trainer learns or publishes this model.

    Args:
      ready: called once the first row can be learned.
      heartbeat: beats with each turn of the loop.
      save_now: setting it demands a checkpoint; the trainer clears it.
      intake: is told of each train block whether any of its rows was taken.

    Raises:
      UserError: the train topic is missing, another trainer has the lease, the checkpoint belongs to another
        declaration, or readers know a model that is not in `model_dir`.
      LeaseLostError: another trainer has taken the model over.
      StoppedError: `stop` was set before training could begin.
    """
    heartbeat, save_now = heartbeat or Heartbeat("the training loop"), save_now or threading.Event()
    guard, bad_blocks, is_ready = guard or Condition(), BadBlocks(), False
    while True:
        trainer = OnlineTrainer(task, connection, topics, options, stop, intake, bad_blocks, guard)
        try:
            if not is_ready:
                ready()
            is_ready = True
            trainer.run(stop, heartbeat, save_now)
            return
        except StepError as error:
            bad_blocks.failed(error)
        finally:
            trainer.close()


class _Every:
    """Says every so many seconds that something is due."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, time.monotonic() + seconds

    def due(self) -> bool:
        """Whether the period is over; if so, the next one begins."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class OnlineTrainer:
    """One model in training; `run` is the loop, everything else happens between its steps."""

    def __init__(
        self,
        task: Task,
        connection: KafkaConnection,
        topics: Topics,
        options: OnlineOptions,
        stop: threading.Event,
        intake: RefusalStreak | None = None,
        bad_blocks: BadBlocks | None = None,
        condition: Condition | None = None,
    ) -> None:
        self._closing = ExitStack()
        try:
            self._begin(task, connection, topics, options, stop, intake, bad_blocks, condition)
        except BaseException:
            self._closing.close()
            raise

    def _begin(
        self,
        task: Task,
        connection: KafkaConnection,
        topics: Topics,
        options: OnlineOptions,
        stop: threading.Event,
        intake: RefusalStreak | None,
        bad_blocks: BadBlocks | None,
        condition: Condition | None,
    ) -> None:
        model_dir = options.model_dir
        train_topic = topics.train(task.name)
        if options.create_topics:
            ensure_topic(connection, train_topic, partitions=4)
        self._batches = BatchQueue(TrainLayout.of(task, options.audit), task.name)
        store, audit_store = new_stores(task, self._batches.name, options.audit)
        self._step = TrainStep(task, store, self._batches, audit_store, options.micro_batch)
        self._checkpoints = Checkpoints(
            model_dir, task.name, task.schema_fingerprint(),
            options.keep_checkpoints, options.keep_checkpoint_every_seconds,
        )  # fmt: skip
        self._step.traced.get_concrete_function()  # traced now, so that neither a spare nor the first rows wait for it
        self._lease = Lease(model_dir, options.wait_for_lease, stop.is_set)
        self._closing.callback(self._lease.close)
        may_send = self._shared_lease(task, topics, options, stop)
        guard_state = self._begin_guarded(connection, train_topic, options, stop)
        restored = self._checkpoints.restore(self._step)
        self._position, self._checkpoint_name = restored.position, restored.name
        self._event_clock = EventClock(restored.event_clock)
        self._bad_blocks = bad_blocks = bad_blocks or BadBlocks()
        self._passed_over = guard_state
        self._publishing = Publishing(
            task, connection, topics, options, self._lease, restored, store, self._step.dense, stop, may_send
        )
        self._closing.callback(self._publishing.close)
        self._checkpoints.write_as(self._publishing.writer.lineage, self._publishing.writer.epoch)
        self._deltas, self._events = self._publishing.deltas, self._publishing.events
        self._exporter = self._publishing.exporter
        self._reader = TrainTopicReader(
            connection, train_topic, topics.train_dead_letter, self._batches, self._position,
            options.batch_size, options.max_wait_seconds, intake,
            alone=bad_blocks.alone, skip_reason=self._skip_reason,
        )  # fmt: skip
        self._resyncs = ResyncRequests(task.name, options.namespace)
        self._resync_reader = ResyncReader(connection, topics.serving_status, self._resyncs)
        self._closing.callback(self._resync_reader.close)
        self._not_finite = NotFiniteRows(options.on_not_finite == "stop", self._reader.refuse)
        self._guarded = GuardedModel(
            task, model_dir, self._exporter.base, self._exporter.cut_times(), self._events, guard_state, restored.guard,
            self._position, condition or Condition(),
        )  # fmt: skip
        self._progress = Progress(model_dir, restored.prediction_rows, [head.name for head in task.heads])
        self._steps = int(self._step.global_step.numpy())
        self._event_time_ms = 0
        self._saving_thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._export_saver = self._new_export_saver(options)
        self._checkpoint_saver = self._new_checkpoint_saver(options, restored.global_step if restored.name else None)
        self._savers = deque[Saver[Any]]([self._export_saver, self._checkpoint_saver])
        self._delta_timer, self._report_timer = _Every(options.delta_seconds), _Every(_REPORT_SECONDS)
        _LOG.info(
            "model %s goes on at step %d with %d rows applied", task.name, self._steps, self._position.rows_applied
        )

    def _shared_lease(
        self, task: Task, topics: Topics, options: OnlineOptions, stop: threading.Event
    ) -> Callable[[], bool]:
        """Takes the lease among trainers of other folders too, where they meet; returns what says whether it holds."""
        address = options.zookeeper
        if address is None:
            return lambda: True
        session = while_away(
            lambda: ZooKeeperSession(address, properties_file=options.zookeeper_properties),
            f"ZooKeeper at {address}",
            stop,
        )
        name = f"{topics.prefix}{task.name}"
        shared = SharedLease(session, options.namespace, name, options.model_dir, options.wait_for_lease, stop.is_set)
        self._closing.callback(shared.close)
        return shared.holds

    def _begin_guarded(
        self, connection: KafkaConnection, topic: str, options: OnlineOptions, stop: threading.Event
    ) -> GuardState | None:
        if options.resume_from_good is None:
            return begin_guarded(options.model_dir, self._checkpoints, None)
        find = partial(place_in_topic, connection, topic, options.resume_from_good)
        good_since = partial(while_away, find, f"Kafka at {connection.bootstrap_servers}", stop)
        return begin_guarded(options.model_dir, self._checkpoints, good_since)

    def _new_export_saver(self, options: OnlineOptions) -> Saver[ExportCut]:
        schedule = SaveSchedule(every_seconds=options.export_seconds, allowed=self._may_export)
        schedule.begin_period(self._steps)
        # A server may hold newer values than a restored trainer: learning the rest again sends most of them out anew,
        # and an export soon after the start replaces them all. A model without any export gets one at once.
        schedule.force(min(_FIRST_EXPORT_SECONDS, options.export_seconds) if self._events.version else 0.0)
        return Saver(
            "export", schedule, self._cut_export, self._write_export, self._saving_thread, guards=[SaveTimer("export")]
        )

    def _new_checkpoint_saver(self, options: OnlineOptions, saved_step: int | None) -> Saver[CheckpointCut]:
        schedule = SaveSchedule(options.checkpoint_seconds, options.checkpoint_steps, options.checkpoint_window)
        schedule.begin_period(self._steps)  # now: the first question comes after a first step may have been learned
        return Saver(
            "checkpoint", schedule, self._cut_checkpoint, self._write_checkpoint, self._saving_thread, saved_step,
            guards=[SaveTimer("checkpoint")],
        )  # fmt: skip

    def run(self, stop: threading.Event, heartbeat: Heartbeat, save_now: threading.Event) -> None:
        """Learns until `stop` is set, then publishes and saves what was learned."""
        self._reader.start()
        self._resync_reader.start()
        self._publish_delta()  # readers learn of the epoch before anything that took long
        while not stop.is_set():
            heartbeat.beat()
            if self._guarded.may_learn:
                ticket = self._batches.next_ticket(_IDLE_SECONDS)
                if ticket is not None:
                    self._learn(ticket)
            else:
                stop.wait(_IDLE_SECONDS)
            self._guarded.poll()
            self._publishing.poll()
            if save_now.is_set():
                save_now.clear()
                self._checkpoint_saver.schedule.force()
            self._do_what_is_due()
        self._finish()

    def close(self) -> None:
        """Ends the threads, frees the tables and gives the lease back; nothing is saved."""
        self._reader.stop()
        self._saving_thread.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
        for store in (self._step.store, self._step.audit_store):
            if store is not None:
                EmbeddingStore.release(store.shared_name)
        self._closing.close()

    def _learn(self, ticket: Ticket) -> None:
        if ticket.rows:
            try:
                logits, finite, gradient_rms = (
                    tensor.numpy() for tensor in self._step.step(self._event_clock.add(ticket.event_times_ms))
                )
            except tf.errors.OpError as error:
                raise StepError(ticket.blocks) from error
            if not finite.all():
                self._leave_out(ticket, finite)
            self._guarded.learned(ticket, logits, finite, gradient_rms, self._position)
            if finite.any():
                self._learned(ticket.select(finite), logits[finite])
        self._position.passed(ticket.passed)
        _DUPLICATE.inc(ticket.passed.duplicates)
        _TOO_OLD.inc(ticket.passed.too_old)

    def _skip_reason(self, place: Place) -> str | None:
        """Why a block of the train topic is passed over."""
        if place in self._bad_blocks.skipped:
            return "step_failed"
        return "guard" if self._passed_over is not None and self._passed_over.passes_over(*place) else None

    def _leave_out(self, ticket: Ticket, finite: np.ndarray) -> None:
        last = self._not_finite.handle(ticket, finite)
        left_out = ticket.select(~finite)
        self._position.not_finite(left_out.partition, left_out.offset, left_out.row)
        self._position.dead_letters = max(self._position.dead_letters, last)

    def _learned(self, ticket: Ticket, logits: np.ndarray) -> None:
        self._position.applied(ticket.partition, ticket.offset, ticket.row)
        self._steps += 1
        # One producer's wrong clock must not make the model look fresh for as long as that clock is ahead.
        self._event_time_ms = max(self._event_time_ms, min(ticket.event_time_ms, time.time_ns() // 1_000_000))
        self._progress.add(ticket, logits)
        _ROWS.inc(ticket.rows)
        _STEPS.inc()

    def _do_what_is_due(self) -> None:
        if self._delta_timer.due():
            self._publish_delta()
        if self._report_timer.due():
            self._lease.check()
            self._progress.report(self._steps, self._position)
        if self._deltas.has_lost_ids():
            self._force_export("lost_ids")
        may_export = self._guarded.may_publish and self._may_export() and not self._export_saver.saving
        if may_export and self._resyncs.take(self._events.version):
            self._force_export("resync")
        if not self._guarded.may_learn:
            return  # what is in memory is suspicious
        savers = self._savers if self._guarded.may_publish else deque([self._checkpoint_saver])
        # One save at a time: both cut the same store, which takes one cut at a time.
        start_in_turn(savers, self._steps)

    def _force_export(self, reason: str) -> None:
        _FORCED.labels(reason).inc()
        self._export_saver.saved_step = None  # servers need a version that is new, also of a step that was exported
        self._export_saver.schedule.force()

    def _publish_delta(self) -> None:
        if self._guarded.may_publish:
            self._deltas.publish(self._steps, self._events.version, self._event_time_ms)

    def _may_export(self) -> bool:
        """Never a model that has learned nothing, and none while nobody has heard of the version before."""
        return self._steps > 0 and not self._events.export_waits

    def _cut_checkpoint(self) -> CheckpointCut:
        rows = self._progress.predictions.rows_when_flushed()
        return self._checkpoints.cut(
            self._step,
            self._position,
            self._deltas.position[0],
            rows,
            self._event_clock.now,
            self._guarded.past(),
        )

    def _write_checkpoint(self, cut: CheckpointCut) -> None:
        try:
            self._reader.wait_for_dead_letters(cut.position.dead_letters, _DEAD_LETTER_SECONDS)
        except UndeliveredError:
            cut.drop()
            raise
        self._checkpoints.trusted_ms = self._guarded.trusted_ms
        self._checkpoints.finish(cut)
        self._guarded.saved(cut.position)
        self._checkpoint_name = cut.folder.name
        _CHECKPOINTS.inc()
        self._events.checkpoint(cut.global_step, cut.folder)
        try:
            self._reader.commit(cut.position.offsets)
            self._evict()
        except Exception:  # the checkpoint is durable: it must not be written again for what follows it
            _LOG.exception("checkpoint %s is saved, but offsets are not committed", cut.folder.name)

    def _evict(self) -> None:
        """Removes expired entries; the checkpoint leaves them out already."""
        store = self._step.store
        if any(table.expire_days < NEVER_DAYS or table.slot_expire_days for table in store.tables):
            _EVICTED.inc(int(np.sum(store.evict(self._event_clock.now or NOW))))

    def _cut_export(self) -> ExportCut:
        return self._exporter.cut(
            self._step,
            self._deltas.topic,
            self._deltas.position,
            self._event_time_ms,
            self._progress.quality(self._position.rows_applied),
            self._event_clock.now,
        )

    def _write_export(self, cut: ExportCut) -> None:
        start = time.monotonic()
        self._exporter.trusted = self._guarded.trusted_version
        export = self._exporter.write(cut, self._step)
        if not self._guarded.may_announce(cut.cut_at_ms):
            shutil.rmtree(export.path, ignore_errors=True)  # a server that looks into the folder must not find it
            _LOG.warning(
                "version %d is removed, and announced to nobody: it has what the guard objects to", cut.version
            )
            return
        self._events.export(export, self._checkpoint_name)
        self._guarded.exported(export.version, cut.cut_at_ms)
        _LOG.info("version %d is exported in %.1f s", export.version, time.monotonic() - start)

    def _finish(self) -> None:
        self._reader.stop()
        self._export_saver.wait(_STOP_SECONDS)
        self._checkpoint_saver.wait(_STOP_SECONDS)
        self._deltas.flush(_FLUSH_SECONDS)
        self._publish_delta()
        self._deltas.flush(_FLUSH_SECONDS)
        self._progress.report(self._steps, self._position)
        if self._guarded.may_learn:  # otherwise what is in memory is suspicious
            self._checkpoint_saver.save_at_end(self._steps, _STOP_SECONDS)
        self._guarded.poll()
        self._events.flush(_FLUSH_SECONDS)
        _LOG.info("stopped at step %d with %d rows applied", self._steps, self._position.rows_applied)
