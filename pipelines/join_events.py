"""JoinEvents: the stateful shell around `transforms.join.JoinIndex`.

Streaming, the key is one of a few shards of the request id, so that state, timers and bundles cost a few round trips a
second however many users there are. Each shard's index lives in this process. What a runner keeps is a log: every block
that the index took, every time it closed windows, and now and then, in place of all that, the whole index. An epoch in
state, a random number of the last bundle, tells whether the index in memory is the one that the runner committed: if
not (a retried bundle, a restart, another worker), it is built again from the log, which is read at no other time.
Replaying gives the same index because the log holds the clock.

Bounded, the shards are grouped and joined at once by event time.
"""

import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.chain import Chain
from runtime import telemetry
from transforms import beam_coder, record_batch  # noqa: F401 (the coder is registered)
from transforms.event_schemas import ACTION_SCHEMA, impression_schema
from transforms.feature_list import FeedConfig
from transforms.fid import siphash24
from transforms.join import JoinIndex, join_bounded

_NAMESPACE = telemetry.namespace("pipelines", "join_events")
_COUNTED = telemetry.counter("feed_join", "What became of rows and actions in the join.", ("outcome",))
_PENDING = telemetry.gauge("feed_join_pending_rows", "Rows that wait for an action.", ("shard",))

_SHARD_KEY = b"millrace-shard-1"
# Below this size a log is not worth replacing.
_LOG_BYTES = 1 << 20

_IMPRESSIONS, _ACTIONS, _CLOSE, _SNAPSHOT = b"I", b"A", b"C", b"S"
_HEADER = struct.Struct("<cqq")  # kind, number (a bag has no order), processing time in ms


def split_by_shard(rows: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(shard, rows) by hash of `request_id`: an impression and its actions meet in one shard."""
    if shards == 1:
        yield 0, rows
        return
    shard = (siphash24(rows.column("request_id"), _SHARD_KEY) % np.uint64(shards)).astype(np.int64)
    order = np.argsort(shard, kind="stable")
    edges = np.searchsorted(shard[order], np.arange(shards + 1)).tolist()
    sorted_rows = rows.take(pa.array(order))
    for number in range(shards):
        start, stop = edges[number], edges[number + 1]
        if stop > start:
            yield number, sorted_rows.slice(start, stop - start)


def is_actions(rows: pa.RecordBatch) -> bool:
    """Whether `rows` are actions; else they are impression rows."""
    return "action" in rows.schema.names


class JoinEvents(beam.PTransform):
    """(shard, impression or action rows) to (shard, joined rows of `transforms.join.joined_schema`).

    The input must carry its type, `tuple[int, pa.RecordBatch]`.

    Args:
      config: window and label actions.
      streaming: with state and timers; otherwise the input is bounded and grouped by shard.
      timer_seconds: how often a shard looks for windows that have closed.
      then: takes each output in the same step (`pipelines.chain` says why); what it gives is the output.
      clock: seconds since the epoch.

    Counters (`millrace.pipelines.join_events`): the fields of `transforms.join.JoinCounters`, `index_loads`.
    """

    def __init__(
        self,
        config: FeedConfig,
        streaming: bool,
        timer_seconds: float = 0.2,
        then: beam.DoFn | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._config, self._streaming, self._then = config, streaming, then or Chain()
        self._timer_seconds, self._clock = timer_seconds, clock

    def expand(self, sharded: beam.PCollection[tuple[int, pa.RecordBatch]]) -> beam.PCollection[Any]:
        if self._streaming:
            join = _JoinDoFn(self._config, uuid.uuid4().hex, self._timer_seconds, self._clock, self._then)
            return sharded | "JoinInState" >> beam.ParDo(join)
        grouped = sharded | "GroupShards" >> beam.GroupByKey()
        return grouped | "JoinGroups" >> beam.ParDo(Chain(_JoinBoundedDoFn(self._config), self._then))


class _Counters:
    """Adds the counts of a join to Beam's metrics and to this process's endpoint."""

    def add(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            Metrics.counter(_NAMESPACE, name).inc(count)
            _COUNTED.labels(name).inc(count)


@dataclass
class _Shard:
    """A shard's index in memory.

    Attributes:
      entries: number of the next log entry.
      log_bytes: what was logged since the last snapshot, which has `base_bytes`.
    """

    index: JoinIndex
    epoch: bytes = b""
    entries: int = 0
    log_bytes: int = 0
    base_bytes: int = 0
    timer_ms: int | None = None


class _ShardCache:
    """Shards between bundles, for all DoFn instances of this process; a bundle takes a shard out while it works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[tuple[str, int], _Shard] = {}

    def take(self, run_id: str, number: int) -> _Shard | None:
        with self._lock:
            return self._shards.pop((run_id, number), None)

    def put(self, run_id: str, number: int, shard: _Shard) -> None:
        with self._lock:
            self._shards[run_id, number] = shard


_cache = _ShardCache()


class _JoinDoFn(beam.DoFn):
    _LOG = BagStateSpec("log", coders.BytesCoder())
    _EPOCH = ReadModifyWriteStateSpec("epoch", coders.BytesCoder())
    _TIMER = TimerSpec("close", TimeDomain.REAL_TIME)

    def __init__(
        self,
        config: FeedConfig,
        run_id: str,
        timer_seconds: float,
        clock: Callable[[], float],
        then: beam.DoFn,
    ) -> None:
        self._config, self._run_id, self._clock, self._then = config, run_id, clock, then
        self._timer_ms = round(timer_seconds * 1000)
        self._counters = _Counters()
        self._loads = Metrics.counter(_NAMESPACE, "index_loads")

    def setup(self) -> None:
        self._then.setup()

    def teardown(self) -> None:
        self._then.teardown()

    def start_bundle(self) -> None:
        self._open: dict[int, _Shard] = {}
        self._then.start_bundle()

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        log: beam.transforms.userstate.BagRuntimeState = beam.DoFn.StateParam(_LOG),  # noqa: B008
        epoch: beam.transforms.userstate.ReadModifyWriteRuntimeState = beam.DoFn.StateParam(_EPOCH),  # noqa: B008
        timer: beam.transforms.userstate.RuntimeTimer = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
    ) -> Iterator[Any]:
        number, rows = element
        shard = self._shard(number, log, epoch)
        now_ms = self._now_ms()
        kind = _ACTIONS if is_actions(rows) else _IMPRESSIONS
        left = _apply(shard.index, kind, now_ms, rows)
        self._note(shard, log, kind, now_ms, record_batch.encode_ipc(rows))
        self._arm(shard, timer, now_ms)
        if left.num_rows:
            yield from self._then.process((number, left))

    @on_timer(_TIMER)
    def close(
        self,
        number: int = beam.DoFn.KeyParam,
        log: beam.transforms.userstate.BagRuntimeState = beam.DoFn.StateParam(_LOG),  # noqa: B008
        epoch: beam.transforms.userstate.ReadModifyWriteRuntimeState = beam.DoFn.StateParam(_EPOCH),  # noqa: B008
        timer: beam.transforms.userstate.RuntimeTimer = beam.DoFn.TimerParam(_TIMER),  # noqa: B008
    ) -> Iterator[Any]:
        shard = self._shard(number, log, epoch)
        now_ms = self._now_ms()
        left = shard.index.close_expired(now_ms)
        self._note(shard, log, _CLOSE, now_ms, b"")
        shard.timer_ms = None
        self._arm(shard, timer, now_ms)
        if left.num_rows:
            yield from self._then.process((number, left))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._then.finish_bundle()
        for number, shard in self._open.items():
            self._counters.add(shard.index.counters.take())
            _PENDING.labels(str(number)).set(shard.index.pending_rows)
            _cache.put(self._run_id, number, shard)
        self._open = {}

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _shard(
        self,
        number: int,
        log: beam.transforms.userstate.BagRuntimeState,
        epoch: beam.transforms.userstate.ReadModifyWriteRuntimeState,
    ) -> _Shard:
        """The shard as the runner committed it; it belongs to this bundle until the bundle ends."""
        shard = self._open.get(number)
        if shard is None:
            committed = epoch.read() or b""
            shard = _cache.take(self._run_id, number)
            if shard is None or shard.epoch != committed:
                shard = _load(self._config, log.read() if committed else ())
                self._loads.inc()
            shard.epoch = uuid.uuid4().bytes
            epoch.write(shard.epoch)
            self._open[number] = shard
        return shard

    def _note(
        self, shard: _Shard, log: beam.transforms.userstate.BagRuntimeState, kind: bytes, now_ms: int, body: bytes
    ) -> None:
        """Logs what was just applied, or the whole index once the log has outgrown it."""
        entry = _HEADER.pack(kind, shard.entries, now_ms) + body
        shard.entries += 1
        shard.log_bytes += len(entry)
        if shard.log_bytes <= max(_LOG_BYTES, shard.base_bytes):
            log.add(entry)
            return
        snapshot = _HEADER.pack(_SNAPSHOT, shard.entries - 1, now_ms) + shard.index.to_block()
        log.clear()
        log.add(snapshot)
        shard.log_bytes, shard.base_bytes = 0, len(snapshot)

    def _arm(self, shard: _Shard, timer: beam.transforms.userstate.RuntimeTimer, now_ms: int) -> None:
        """Keeps one timer set while anything waits."""
        next_ms = shard.index.next_close_ms
        if next_ms is not None and shard.timer_ms is None:
            shard.timer_ms = max(next_ms, now_ms + self._timer_ms)
            timer.set(Timestamp(micros=shard.timer_ms * 1000))


def _apply(index: JoinIndex, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
    if kind == _CLOSE:
        return index.close_expired(now_ms)
    return index.add_actions(rows, now_ms) if kind == _ACTIONS else index.add_impressions(rows, now_ms)


def _load(config: FeedConfig, entries: Iterable[bytes]) -> _Shard:
    """Replays a log; what left then has left, and was counted."""
    shard = _Shard(JoinIndex(config))
    for entry in sorted(entries, key=_entry_number):
        kind, number, now_ms = _HEADER.unpack_from(entry)
        body = memoryview(entry)[_HEADER.size :]
        shard.entries = number + 1
        if kind == _SNAPSHOT:
            shard.index = JoinIndex.from_blocks(config, [bytes(body)])
            shard.base_bytes = len(entry)
        else:
            _apply(shard.index, kind, now_ms, record_batch.decode_ipc(body) if len(body) else None)
            shard.log_bytes += len(entry)
    shard.index.counters.take()
    return shard


def _entry_number(entry: bytes) -> int:
    return int(_HEADER.unpack_from(entry)[1])


class _JoinBoundedDoFn(beam.DoFn):
    def __init__(self, config: FeedConfig) -> None:
        self._config = config
        self._counters = _Counters()

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        config = self._config
        parts = list(element[1])
        impressions = record_batch.concat(
            [p for p in parts if not is_actions(p)], impression_schema(config.context_fields())
        )
        actions = record_batch.concat([p for p in parts if is_actions(p)], ACTION_SCHEMA)
        joined, counters = join_bounded(impressions, actions, config)
        self._counters.add(counters.take())
        if joined.num_rows:
            yield element[0], joined
