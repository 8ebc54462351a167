"""Runs a feed: starts the runner, submits the graph, waits for its end or for a stop."""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options import pipeline_options
from apache_beam.runners.runner import PipelineState

from millrace.pipelines.feed import runners
from millrace.pipelines.feed.folder import mark_success, prepare_folder
from millrace.pipelines.feed.graph import build_feed
from millrace.pipelines.feed.options import FeedOptions, KafkaSettings
from millrace.pipelines.feed.read_plan import ReadPlan, plan_reads
from millrace.pipelines.kafka.process import FIRST_POLL, HEARTBEAT, begin_feed
from millrace.runtime.errors import UserError
from millrace.runtime.memory import share_heaps, trim_heaps
from millrace.runtime.outage import while_away
from millrace.runtime.servers.artifacts import Progress
from millrace.runtime.telemetry import WAITS

__all__ = ["FeedFailedError", "run_feed"]

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.1  # how soon a stop or the end of the job is noticed
_STOP_SECONDS = 10.0  # how long a cancelled job may take to end; the process ends it afterwards
_STILL_SECONDS = 60.0  # readers are asked several times per second; a busy machine takes some seconds
_MOST_PASSED_SECONDS = 1.0
_TRIM_SECONDS = 10.0  # rare enough to cost nothing, often enough that free memory does not pile up


class FeedFailedError(RuntimeError):
    """The pipeline failed; the message is one line."""


def run_feed(
    options: FeedOptions,
    stop: threading.Event,
    on_ready: Callable[[], None] = lambda: None,
    progress: Progress = _LOGGER.info,
) -> dict[str, int]:
    """Runs until the bounded input ends, the pipeline fails or `stop` is set.

    Args:
      on_ready: called once, when the workers have begun to read.
      progress: called with a few words on each step of the start.

    Returns: {counter: value} of the pipeline; {} where the runner does not tell.
    Raises:
      UserError: a setting is wrong, or a runner cannot be reached.
      StoppedError: `stop` was set while brokers were away.
      FeedFailedError: the pipeline failed.
    """
    share_heaps()
    plan = _plan(options, stop)
    if options.parquet is not None:
        prepare_folder(options.parquet, "--output-parquet")
    begin_feed()
    watch = _Watch(options)
    with runners.started(
        options.runner, options.streaming, options.beam_flags, options.work_folder, progress, watch.bundle_failed
    ) as flags:
        pipeline = beam.Pipeline(options=_parsed(options.runner, flags))
        build_feed(pipeline, options, plan)
        job = _Job(pipeline, runners.workers_are_here(options.beam_flags))
        try:
            _wait(job, watch, stop, on_ready)
        finally:
            job.stop()
        counters = job.counters()  # while the runner still runs
    error = watch.error or job.error
    if error is not None and not stop.is_set():
        raise FeedFailedError(_one_line(error)) from error
    if options.parquet is not None and not stop.is_set():
        mark_success(options.parquet, {"counters": counters, "config": options.config.to_json()})
    return counters


def _plan(options: FeedOptions, stop: threading.Event) -> ReadPlan:
    """Where to read; waits for brokers that are away."""
    if not isinstance(options.source, KafkaSettings):
        return plan_reads(options)
    return while_away(lambda: plan_reads(options), f"Kafka at {options.source.connection.bootstrap_servers}", stop)


def _wait(job: "_Job", watch: "_Watch", stop: threading.Event, on_ready: Callable[[], None]) -> None:
    """Returns when `job` has ended or failed, or `stop` is set; meanwhile it gives free memory back to the system."""
    ready, next_trim = False, 0.0
    while not stop.wait(_POLL_SECONDS) and not job.ended and not watch.failed():
        if time.monotonic() >= next_trim:
            trim_heaps()
            next_trim = time.monotonic() + _TRIM_SECONDS
        if not ready and job.reading():
            ready = True
            on_ready()


def _parsed(runner: str, flags: Sequence[str]) -> pipeline_options.PipelineOptions:
    """Beam's options; UserError for a flag that Beam does not know.

    Only Flink's job server knows the flags of Flink, so any flag may be one of them.
    """
    if runner != "flink":
        parser = pipeline_options._BeamArgumentParser(allow_abbrev=False)
        for group in pipeline_options.PipelineOptions.__subclasses__():
            group._add_argparse_args(parser)
        _, unknown = parser.parse_known_args(list(flags))
        if unknown:
            raise UserError(unknown[0].partition("=")[0], "", "neither millrace nor Beam knows this flag", "see --help")
    return pipeline_options.PipelineOptions(list(flags))


class _Watch:
    """Notices that a feed on a runner that retries nothing cannot go on, where the runner itself does not.

    Prism logs the failure of a bundle, and may then wait for ever without ending the job.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, options: FeedOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries, self._reads_here = options.runner_retries, options.in_one_process
        self._clock, self._last_look = clock, clock()
        self._beats, self._still = 0, 0.0
        self.error: BaseException | None = None

    def bundle_failed(self, error: BaseException) -> None:
        """Takes what a bundle raised; the first counts, since others may follow from it."""
        if not self._retries and self.error is None:
            self.error = error

    def failed(self) -> bool:
        """Whether the feed cannot go on; to be called often, since only time between two close calls counts."""
        now = self._clock()
        # A process that was stopped itself, or starved, has not seen its readers stand still.
        passed, self._last_look = min(now - self._last_look, _MOST_PASSED_SECONDS), now
        if self._beats != HEARTBEAT.beats or WAITS.words():
            self._beats, self._still = HEARTBEAT.beats, 0.0
        elif self._beats and self._reads_here:
            self._still += passed
        if self._still > _STILL_SECONDS and self.error is None:
            self.error = FeedFailedError(
                f"no reader was asked for records for {_STILL_SECONDS:g} s, though no server is waited for"
            )
        return self.error is not None


class _Job:
    """A pipeline that runs in a thread: the Direct runner blocks in `run`, and signals reach the main thread only."""

    def __init__(self, pipeline: beam.Pipeline, workers_are_here: bool) -> None:
        self._pipeline, self._workers_are_here = pipeline, workers_are_here
        self._result: Any = None
        self._stopping = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def reading(self) -> bool:
        """Whether workers read. Those of this process say so; of others only the state of the job is known."""
        if FIRST_POLL.is_set():
            return True
        return not self._workers_are_here and self._result is not None and self._result.state == PipelineState.RUNNING

    def stop(self) -> None:
        """Cancels the job unless it has ended."""
        self._stopping = True
        if self.ended or self._result is None:
            return
        # Workers whose runner ends log long tracebacks, though this end is wanted.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        with contextlib.suppress(Exception):
            self._result.cancel()
        self._thread.join(_STOP_SECONDS)

    def counters(self) -> dict[str, int]:
        """Committed counters of this project's steps; {} where the runner does not tell."""
        try:
            found = self._result.metrics().query()["counters"]
        except Exception:  # the runner may have forgotten a cancelled job
            return {}
        ours = [each for each in found if each.key.metric.namespace.startswith("millrace.")]
        sums: Counter[tuple[str, str]] = Counter()  # several steps may have a counter of one name, such as three sinks
        for each in ours:
            sums[each.key.metric.namespace, each.key.metric.name] += each.result or 0
        return {name: count for (_, name), count in sums.items()}

    def _run(self) -> None:
        try:
            self._result = self._pipeline.run()
            state = self._result.wait_until_finish() or self._result.state  # a dry run has nothing to wait for
            if state not in (PipelineState.DONE, PipelineState.CANCELLED) and not self._stopping:
                raise RuntimeError(f"the job ended in state {state}")
        except Exception as error:  # the main thread reports it
            self.error = error


def _one_line(error: BaseException) -> str:
    """The last line that is not empty: messages of Beam hold whole tracebacks of workers."""
    if isinstance(error, grpc.Call):
        return f"the runner has ended ({error.details()}); its log is in the work folder"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
