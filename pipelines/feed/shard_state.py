"""One state machine per feed shard, persisted through the runner's state: for keyed steps that must be fast and exact.

The key of the state is the number of a feed shard, of which there are few. So state, timers and bundles cost a few
round trips to the runner per second, however many users there are.

A shard's machine lives in memory. The runner's state holds a log of what the machine was told: every batch of rows and
every `CLOSE`, with the time of each. When the log has grown larger than the machine, a snapshot of the machine replaces
it. State also holds an epoch, a random number that each bundle draws anew. If the machine in memory has the epoch that
the runner committed, it is used as it is. If not (a retried bundle, a restart, another worker), it is built again from
the log, which is read at no other time. Replaying gives the same machine, because a machine is deterministic and the
log holds its clock.

Prism keeps state in memory and never retries a bundle, but may show a bundle the state from before the last one. There
the machine in memory is used always, and nothing is logged.
"""

import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagRuntimeState,
    BagStateSpec,
    ReadModifyWriteRuntimeState,
    ReadModifyWriteStateSpec,
    RuntimeTimer,
    TimerSpec,
    on_timer,
)
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from millrace.pipelines.feed.fused_steps import FusedSteps
from millrace.pipelines.feed.machine import CLOSE, ROWS, Machine, MachineFactory
from millrace.pipelines.kafka.process import SHARDS, progress_of
from millrace.transforms.batch import record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)

_SNAPSHOT = b"S"
_HEADER = struct.Struct("<cqq")  # kind, number (a bag has no order), processing time in ms
# A log below this size is not replaced by a snapshot: replaying it takes a fraction of a second.
_LOG_BYTES = 1 << 20
_NEVER_MS = 1 << 62  # later than any time


@dataclass
class _Shard:
    """A shard's machine in memory.

    Attributes:
      epoch: what this bundle writes to the state.
      entries: number of the next log entry.
      log_bytes: bytes that were logged since the last snapshot.
      base_bytes: bytes of that snapshot.
      timer_ms: when the timer fires that was set; None while none is.
    """

    machine: Machine
    epoch: bytes = b""
    entries: int = 0
    log_bytes: int = 0
    base_bytes: int = 0
    timer_ms: int | None = None


def _always_rows(_rows: pa.RecordBatch) -> bytes:
    return ROWS


class ShardStateDoFn(beam.DoFn):
    """(feed shard, rows) to (feed shard, the rows that leave its machine), and side rows to their tagged outputs.

    Args:
      machine_factory: makes a shard's machine; called in the worker.
      namespace: metric namespace of `index_loads`, which counts how often a machine was built from its log.
      timer_seconds: how often an idle shard looks for rows that have to leave.
      then: takes each output in the same step, for the reason that `millrace.pipelines.feed.fused_steps` gives; what
        it gives is the output.
      kind_of: returns the `kind` of a batch of rows, for `Machine.apply`.
      clock: seconds since the epoch.
      feed_id: the feed, where its runner, its readers and this step live and end in one process (Prism). Readers are
        told how far this step has come (`millrace.pipelines.kafka.pace`), and nothing is logged. None elsewhere.
    """

    _LOG = BagStateSpec("log", coders.BytesCoder())
    _EPOCH = ReadModifyWriteStateSpec("epoch", coders.BytesCoder())
    _TIMER = TimerSpec("close", TimeDomain.REAL_TIME)

    def __init__(
        self,
        machine_factory: MachineFactory,
        namespace: str,
        timer_seconds: float = 0.2,
        then: beam.DoFn | None = None,
        kind_of: Callable[[pa.RecordBatch], bytes] = _always_rows,
        clock: Callable[[], float] = time.time,
        feed_id: str | None = None,
    ) -> None:
        self._factory, self._kind_of, self._clock = machine_factory, kind_of, clock
        self._then = then or FusedSteps()
        self._timer_ms = round(timer_seconds * 1000)
        self._run_id = uuid.uuid4().hex  # pickled with this object: the same in all its copies
        self._feed_id = feed_id
        self._loads = Metrics.counter(namespace, "index_loads")

    def setup(self) -> None:
        self._open: dict[int, _Shard] = {}
        self._then.setup()

    def teardown(self) -> None:
        if self._feed_id is not None:
            for number in self._open:  # empty unless the bundle has failed
                SHARDS.lose(self._run_id, number)
        self._open = {}
        self._then.teardown()

    def start_bundle(self) -> None:
        self._open = {}
        self._read_at: dict[int, Timestamp] = {}
        self._then.start_bundle()

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        log: BagRuntimeState = beam.DoFn.StateParam(_LOG),  # noqa: B008
        epoch: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(_EPOCH),  # noqa: B008
        timer: RuntimeTimer = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
        read_at: Timestamp = beam.DoFn.TimestampParam,
    ) -> Iterator[Any]:
        number, rows = element
        if self._feed_id is not None:
            self._read_at[number] = max(read_at, self._read_at.get(number, read_at))
        shard = self._shard(number, log, epoch)
        yield from self._apply(number, shard, log, self._kind_of(rows), rows)
        # A runner fires no timers while it has elements to process.
        if (shard.machine.next_close_ms or _NEVER_MS) <= self._now_ms():
            yield from self._apply(number, shard, log, CLOSE, None)
        self._arm(shard, timer)

    @on_timer(_TIMER)
    def close(
        self,
        number: int = beam.DoFn.KeyParam,
        log: BagRuntimeState = beam.DoFn.StateParam(_LOG),  # noqa: B008
        epoch: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(_EPOCH),  # noqa: B008
        timer: RuntimeTimer = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
    ) -> Iterator[Any]:
        shard = self._shard(number, log, epoch)
        shard.timer_ms = None
        yield from self._apply(number, shard, log, CLOSE, None)
        self._arm(shard, timer)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._then.finish_bundle()
        for number, shard in self._open.items():
            shard.machine.publish(number)
            if self._feed_id is not None:
                due_ms = shard.machine.next_close_ms
                due = None if due_ms is None else (due_ms - self._now_ms()) / 1000
                progress_of(self._feed_id).reached(number, self._read_at.get(number), due)
            SHARDS.put(self._run_id, number, shard)
        self._open = {}

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _apply(
        self, number: int, shard: _Shard, log: BagRuntimeState, kind: bytes, rows: pa.RecordBatch | None
    ) -> Iterator[Any]:
        now_ms = self._now_ms()
        left = shard.machine.apply(kind, now_ms, rows)
        if self._feed_id is None:
            _log_entry(shard, log, kind, now_ms, record_batch.to_bytes(rows) if rows is not None else b"")
        if left.num_rows:
            yield from self._then.process((number, left))
        for tag, side in shard.machine.take_side().items():
            yield beam.pvalue.TaggedOutput(tag, side)

    def _shard(self, number: int, log: BagRuntimeState, epoch: ReadModifyWriteRuntimeState) -> _Shard:
        """The shard in the state that the runner committed; it belongs to this bundle until the bundle ends."""
        shard = self._open.get(number)
        if shard is None and self._feed_id is not None:
            shard = self._open[number] = SHARDS.lend(self._run_id, number) or _Shard(self._factory(None))
        elif shard is None:
            committed = epoch.read() or b""
            shard = SHARDS.take(self._run_id, number)
            if shard is None or shard.epoch != committed:
                shard = _load(self._factory, log.read() if committed else ())
                self._loads.inc()
            shard.epoch = uuid.uuid4().bytes
            epoch.write(shard.epoch)
            self._open[number] = shard
        return shard

    def _arm(self, shard: _Shard, timer: RuntimeTimer) -> None:
        """Keeps one timer set while anything waits."""
        next_ms = shard.machine.next_close_ms
        if next_ms is not None and shard.timer_ms is None:
            shard.timer_ms = max(next_ms, self._now_ms() + self._timer_ms)
            timer.set(Timestamp(micros=shard.timer_ms * 1000))


def _log_entry(shard: _Shard, log: BagRuntimeState, kind: bytes, now_ms: int, body: bytes) -> None:
    """Logs what was applied just now, or a snapshot of the machine once the log is larger than the last snapshot."""
    entry = _HEADER.pack(kind, shard.entries, now_ms) + body
    shard.entries += 1
    shard.log_bytes += len(entry)
    if shard.log_bytes <= max(_LOG_BYTES, shard.base_bytes):
        log.add(entry)
        return
    snapshot = _HEADER.pack(_SNAPSHOT, shard.entries - 1, now_ms) + shard.machine.to_bytes()
    log.clear()
    log.add(snapshot)
    shard.log_bytes, shard.base_bytes = 0, len(snapshot)


def _load(factory: MachineFactory, entries: Iterable[bytes]) -> _Shard:
    """Builds a shard from its log, and drops the rows and counts of the replay: they were given before."""
    shard = _Shard(factory(None))
    for entry in sorted(entries, key=_entry_number):
        kind, number, now_ms = _HEADER.unpack_from(entry)
        body = memoryview(entry)[_HEADER.size :]
        shard.entries = number + 1
        if kind == _SNAPSHOT:
            shard.machine = factory(bytes(body))
            shard.base_bytes = len(entry)
        else:
            shard.machine.apply(kind, now_ms, record_batch.from_bytes(body) if len(body) else None)
            shard.log_bytes += len(entry)
        shard.machine.take_side()
    shard.machine.take_counts()
    return shard


def _entry_number(entry: bytes) -> int:
    return int(_HEADER.unpack_from(entry)[1])
