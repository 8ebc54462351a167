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

The time of a machine is that of a `shard_clock`, which does not step. The runner's timers follow the clock of its
computer; so a timer only asks the shard's clock what is due, and is set anew for the rest of the time.

Floors: a machine knows below which offsets its shard was given everything and holds nothing. As they are when a bundle
begins, they go into the train blocks of that bundle, because the bundles before it are acknowledged. As they are when a
bundle has ended, a reader may commit them.
"""

import struct
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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

from millrace.pipelines.feed.floored_machine import FlooredMachine, floored
from millrace.pipelines.feed.fused_steps import FusedSteps
from millrace.pipelines.feed.machine import CLOSE, ROWS, MachineFactory
from millrace.pipelines.feed.shard_clock import Clock, ClockWatch, ShardClock
from millrace.pipelines.kafka.process import SHARDS, progress_of
from millrace.transforms.batch import record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)

_SNAPSHOT = b"S"
_HEADER = struct.Struct("<cqq")  # kind, number (a bag has no order), processing time in ms
# A log below this size is not replaced by a snapshot: replaying it takes a fraction of a second.
_LOG_BYTES = 1 << 20
_NEVER_MS = 1 << 62  # later than any time
_LATE_MS = 1000  # a timer that has not come by then is set again


class ShardFloors(NamedTuple):
    """What the step after the machines takes besides their rows: floors of a feed shard as its bundle begins.

    Attributes:
      run: id of the feed's run.
      shard, shards: number of the feed shard, and how many there are.
      floors: {source partition: offset}.
    """

    run: str
    shard: int
    shards: int
    floors: Mapping[int, int]


@dataclass
class _Shard:
    """A shard's machine in memory.

    Attributes:
      clock: of the machine; None until it is first asked.
      epoch: what this bundle writes to the state.
      entries: number of the next log entry.
      log_bytes: bytes that were logged since the last snapshot.
      base_bytes: bytes of that snapshot.
      timer_ms: when, on `clock`, the timer fires that was set; None while none is.
      saved_ms: the latest time in the log; None in a new shard.
    """

    machine: FlooredMachine
    clock: ShardClock | None = None
    epoch: bytes = b""
    entries: int = 0
    log_bytes: int = 0
    base_bytes: int = 0
    timer_ms: int | None = None
    saved_ms: int | None = None


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
      feed_id: the feed whose readers, if they run in this process, are told how far this step has come
        (`millrace.pipelines.kafka.pace`).
      in_memory: whether runner, readers and this step live and end in one process (Prism): then nothing is logged.
      shards: how many feed shards there are.
      kinds: the kinds of rows that come out as train rows.
      side: {tag: takes the side rows of that tag, in the same step}; those of other tags are tagged outputs.
      floors: whether `then` takes `ShardFloors` too.
      monotonic: seconds.
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
        clock: Clock = time.time,
        feed_id: str | None = None,
        in_memory: bool = False,
        shards: int = 1,
        kinds: frozenset[bytes] = frozenset([ROWS]),
        side: Mapping[str, beam.DoFn] | None = None,
        floors: bool = False,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._factory, self._kind_of, self._clock, self._monotonic = machine_factory, kind_of, clock, monotonic
        self._then, self._side = then or FusedSteps(), dict(side or {})
        self._in_memory, self._shards, self._kinds, self._floors = in_memory, shards, kinds, floors
        self._timer_ms = round(timer_seconds * 1000)
        self._run_id = uuid.uuid4().hex  # pickled with this object: the same in all its copies
        self._feed_id = feed_id
        self._loads = Metrics.counter(namespace, "index_loads")

    def setup(self) -> None:
        self._open: dict[int, _Shard] = {}
        self._watch = ClockWatch(self._clock, self._monotonic)
        for step in (self._then, *self._side.values()):
            step.setup()

    def teardown(self) -> None:
        if self._in_memory:
            for number in self._open:  # empty unless the bundle has failed
                SHARDS.lose(self._run_id, number)
        self._open = {}
        for step in (self._then, *self._side.values()):
            step.teardown()

    def start_bundle(self) -> None:
        self._open = {}
        self._watch.look()
        for step in (self._then, *self._side.values()):
            step.start_bundle()

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        log: BagRuntimeState = beam.DoFn.StateParam(_LOG),  # noqa: B008
        epoch: ReadModifyWriteRuntimeState = beam.DoFn.StateParam(_EPOCH),  # noqa: B008
        timer: RuntimeTimer = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
    ) -> Iterator[Any]:
        number, rows = element
        shard = yield from self._opened(number, log, epoch)
        yield from self._apply(number, shard, log, self._kind_of(rows), rows)
        # A runner fires no timers while it has elements to process.
        if (shard.machine.next_close_ms or _NEVER_MS) <= self._now_ms(shard):
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
        shard = yield from self._opened(number, log, epoch)
        shard.timer_ms = None
        yield from self._apply(number, shard, log, CLOSE, None)
        self._arm(shard, timer)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for step in (self._then, *self._side.values()):
            yield from step.finish_bundle() or ()
        for number, shard in self._open.items():
            machine = shard.machine
            machine.publish(number)
            if self._feed_id is not None:
                due_ms = machine.next_close_ms
                due = None if due_ms is None else (due_ms - self._now_ms(shard)) / 1000
                floors = machine.all_floors()
                progress_of(self._feed_id).finished(number, self._shards, machine.ends(), floors, due)
            SHARDS.put(self._run_id, number, shard)
        self._open = {}

    def _now_ms(self, shard: _Shard) -> int:
        if shard.clock is None:
            start_ms = int(self._clock() * 1000) if shard.saved_ms is None else shard.saved_ms
            shard.clock = ShardClock(start_ms, self._monotonic)
        return shard.clock.now_ms()

    def _apply(
        self, number: int, shard: _Shard, log: BagRuntimeState, kind: bytes, rows: pa.RecordBatch | None
    ) -> Iterator[Any]:
        now_ms = self._now_ms(shard)
        left = shard.machine.apply(kind, now_ms, rows)
        if not self._in_memory:
            _log_entry(shard, log, kind, now_ms, record_batch.to_bytes(rows) if rows is not None else b"")
        if left.num_rows:
            yield from self._then.process((number, left))
        for tag, side in shard.machine.take_side().items():
            if tag in self._side:
                yield from self._side[tag].process(side) or ()
            else:
                yield beam.pvalue.TaggedOutput(tag, side)

    def _opened(
        self, number: int, log: BagRuntimeState, epoch: ReadModifyWriteRuntimeState
    ) -> Generator[Any, None, _Shard]:
        """Returns the shard in the state that the runner committed, and passes on its floors in that state.

        It belongs to this bundle until the bundle ends.
        """
        if number in self._open:
            return self._open[number]
        if self._in_memory:
            shard = SHARDS.lend(self._run_id, number) or _Shard(floored(self._factory, self._kinds, None))
        else:
            committed = epoch.read() or b""
            shard = SHARDS.take(self._run_id, number)
            if shard is None or shard.epoch != committed:
                shard = _load(self._restored, log.read() if committed else ())
                self._loads.inc()
            shard.epoch = uuid.uuid4().bytes
            epoch.write(shard.epoch)
        self._open[number] = shard
        if self._floors:
            floors = ShardFloors(self._run_id, number, self._shards, shard.machine.floors())
            yield from self._then.process(floors)
        return shard

    def _restored(self, saved: bytes | None) -> FlooredMachine:
        return floored(self._factory, self._kinds, saved)

    def _arm(self, shard: _Shard, timer: RuntimeTimer) -> None:
        """Keeps one timer set while anything waits. One that is late was set before the runner's clock stepped back."""
        next_ms, now_ms = shard.machine.next_close_ms, self._now_ms(shard)
        if next_ms is None or (shard.timer_ms is not None and now_ms < shard.timer_ms + _LATE_MS):
            return
        shard.timer_ms = max(next_ms, now_ms + self._timer_ms)
        wall_ms = int(self._clock() * 1000) + shard.timer_ms - now_ms
        timer.set(Timestamp(micros=wall_ms * 1000))


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


def _load(factory: Callable[[bytes | None], FlooredMachine], entries: Iterable[bytes]) -> _Shard:
    """Builds a shard from its log, and drops the rows and counts of the replay: they were given before."""
    shard = _Shard(factory(None))
    for entry in sorted(entries, key=_entry_number):
        kind, number, now_ms = _HEADER.unpack_from(entry)
        body = memoryview(entry)[_HEADER.size :]
        shard.entries = number + 1
        shard.saved_ms = max(now_ms, shard.saved_ms or now_ms)
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
