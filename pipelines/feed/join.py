"""JoinEvents: joins impressions with the actions on them, as one keyed step of a pipeline.

Unbounded, the `transforms.feed.join.JoinIndex` of each feed shard is a machine of `millrace.pipelines.feed.machine`,
with the stage that makes train rows after it, if there is one. Bounded, all events of a shard are grouped and joined at
once, by event time.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from millrace.pipelines.feed.fused_steps import FusedSteps
from millrace.pipelines.feed.machine import CLOSE, ComposedMachineFactory, MachineFactory, RowsStage
from millrace.pipelines.feed.shard_state import ShardStateDoFn
from millrace.runtime import telemetry
from millrace.transforms.batch import record_batch  # noqa: F401 (the coder is registered)
from millrace.transforms.beam import coder  # noqa: F401 (the coder is registered)
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.event_schemas import PLACED_ACTION_SCHEMA, impression_schema
from millrace.transforms.feed.join import JoinIndex, join_bounded
from millrace.transforms.feed.row_spill import IN_MEMORY, SpillSettings
from millrace.transforms.feed.shards import is_actions

ROUTED_ACTIONS = "routed_actions"
"""Tag of the actions that did not join, with the reason."""

_NAMESPACE = telemetry.namespace("pipelines", "join_events")
_COUNTED = telemetry.counter("feed_join", "What became of rows and actions in the join.", ("outcome",))
_PENDING = telemetry.gauge("feed_join_pending_rows", "Rows that wait for an action.", ("shard",))
_HELD = telemetry.gauge("feed_join_bytes", "Bytes that a join holds in memory.", ("shard",))
_SPILLED = telemetry.gauge("feed_join_spilled_bytes", "Bytes that a join holds in files.", ("shard",))

_IMPRESSIONS, _ACTIONS = b"I", b"A"


class JoinEvents(beam.PTransform):
    """(shard, impression or action rows) to `rows`, (shard, joined rows), and `routed_actions`.

    Joined rows have `transforms.feed.join.joined_schema`, or are what `rows_stage` makes of them; routed actions have
    `transforms.feed.event_schemas.ROUTED_ACTION_SCHEMA`. The input must carry its type, `tuple[int, pa.RecordBatch]`.

    Args:
      config: window, lateness, label actions and the other settings of the join.
      streaming: join with state and timers; otherwise the input is bounded and grouped by shard.
      timer_seconds: how often an idle shard looks for windows that have closed.
      then: takes each output in the same step, for the reason that `millrace.pipelines.feed.fused_steps` gives; what
        it gives is the output.
      rows_stage: makes the stage that the joined rows of a shard pass, in the order in which they leave; its state is
        kept with that of the join.
      max_pending_rows: most rows that a shard holds in memory; older ones lie in files of `spill_folder`.
      spill_folder: on a local disk; default: the system's folder of temporary files.
      clock: seconds since the epoch.
      feed_id, in_memory, shards: as of `millrace.pipelines.feed.shard_state.ShardStateDoFn`.
      routed: takes the routed actions in the same step, which then have no output; for streaming.
      floors: whether `then` takes floors too.

    Counters (`pipelines.join_events`): the fields of `transforms.feed.join.JoinCounters`, `index_loads`.
    """

    def __init__(
        self,
        config: FeedConfig,
        streaming: bool,
        timer_seconds: float = 0.2,
        then: beam.DoFn | None = None,
        rows_stage: Callable[[], RowsStage] | None = None,
        max_pending_rows: int | None = None,
        spill_folder: Path | None = None,
        clock: Callable[[], float] = time.time,
        feed_id: str | None = None,
        in_memory: bool = False,
        shards: int = 1,
        routed: beam.DoFn | None = None,
        floors: bool = False,
    ) -> None:
        super().__init__()
        self._feed_id, self._in_memory, self._shards = feed_id, in_memory, shards
        self._routed, self._floors = routed, floors
        self._config, self._streaming, self._then, self._stage = config, streaming, then, rows_stage
        self._spill = SpillSettings(max_pending_rows, spill_folder)
        self._timer_seconds, self._clock = timer_seconds, clock

    def expand(self, sharded: beam.PCollection[tuple[int, pa.RecordBatch]]) -> Any:
        if self._streaming:
            join = join_do_fn(
                self._config,
                self._timer_seconds,
                self._then,
                self._stage,
                self._spill,
                self._clock,
                feed_id=self._feed_id,
                in_memory=self._in_memory,
                shards=self._shards,
                side={} if self._routed is None else {ROUTED_ACTIONS: self._routed},
                floors=self._floors,
            )
            return sharded | "JoinInState" >> _with_routes(join)
        grouped = sharded | "GroupShards" >> beam.GroupByKey()
        return grouped | "JoinGroups" >> _with_routes(JoinBoundedDoFn(self._config, self._stage, self._then))

    def display_data(self) -> dict[str, Any]:
        return {"model": self._config.model, "window_seconds": self._config.window_seconds}


def join_do_fn(
    config: FeedConfig,
    timer_seconds: float = 0.2,
    then: beam.DoFn | None = None,
    rows_stage: Callable[[], RowsStage] | None = None,
    spill: SpillSettings = IN_MEMORY,
    clock: Callable[[], float] = time.time,
    **settings: Any,
) -> ShardStateDoFn:
    """The streaming join, with the arguments of `JoinEvents`; `settings` are those of `ShardStateDoFn`."""
    factory: MachineFactory = JoinMachineFactory(config, spill)
    if rows_stage is not None:
        factory = ComposedMachineFactory(factory, rows_stage)
    kinds = frozenset([_IMPRESSIONS])
    return ShardStateDoFn(factory, _NAMESPACE, timer_seconds, then, _kind_of, clock, kinds=kinds, **settings)


@dataclass(frozen=True)
class JoinMachineFactory:
    """Makes join machines of a feed."""

    config: FeedConfig
    spill: SpillSettings = IN_MEMORY

    def __call__(self, saved: bytes | None) -> "JoinMachine":
        return JoinMachine(JoinIndex.from_states(self.config, [] if saved is None else [saved], spill=self.spill))


class JoinMachine:
    """A `JoinIndex` as a machine of `millrace.pipelines.feed.machine`."""

    def __init__(self, index: JoinIndex) -> None:
        self._index = index

    def apply(self, kind: bytes, now_ms: int, rows: pa.RecordBatch | None) -> pa.RecordBatch:
        if kind == CLOSE:
            return self._index.close_expired(now_ms)
        return self._index.add_actions(rows, now_ms) if kind == _ACTIONS else self._index.add_impressions(rows, now_ms)

    def take_side(self) -> Mapping[str, pa.RecordBatch]:
        routed = self._index.take_routed()
        return {ROUTED_ACTIONS: routed} if routed.num_rows else {}

    def take_counts(self) -> Mapping[str, int]:
        return self._index.counters.take()

    def publish(self, shard: int) -> None:
        _count(self.take_counts())
        _PENDING.labels(str(shard)).set(self._index.pending_rows)
        _HELD.labels(str(shard)).set(self._index.nbytes)
        _SPILLED.labels(str(shard)).set(self._index.spilled_bytes)

    def held(self) -> Mapping[int, int]:
        return self._index.held()

    def to_bytes(self) -> bytes:
        return self._index.to_state()

    @property
    def next_close_ms(self) -> int | None:
        return self._index.next_close_ms


class JoinBoundedDoFn(beam.DoFn):
    """Joins all events of a shard at once, with the arguments of `JoinEvents`."""

    def __init__(
        self, config: FeedConfig, rows_stage: Callable[[], RowsStage] | None = None, then: beam.DoFn | None = None
    ) -> None:
        self._config, self._stage, self._then = config, rows_stage, then or FusedSteps()

    def setup(self) -> None:
        self._then.setup()

    def teardown(self) -> None:
        self._then.teardown()

    def start_bundle(self) -> None:
        self._then.start_bundle()

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        parts = list(element[1])
        schema = impression_schema(self._config.context_fields())
        impressions = record_batch.concat([part for part in parts if not is_actions(part)], schema)
        actions = record_batch.concat([part for part in parts if is_actions(part)], PLACED_ACTION_SCHEMA)
        joined = join_bounded(impressions, actions, self._config)
        _count(joined.counters.take())
        rows = self._staged(joined.rows)
        if rows.num_rows:
            yield from self._then.process((element[0], rows))
        if joined.routed.num_rows:
            yield beam.pvalue.TaggedOutput(ROUTED_ACTIONS, joined.routed)

    def finish_bundle(self) -> Any:
        return self._then.finish_bundle()

    def _staged(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if self._stage is None or not rows.num_rows:
            return rows
        stage = self._stage()
        stage.warm([rows])
        staged = stage.process(rows)
        stage.publish()
        return staged


def _with_routes(do_fn: beam.DoFn) -> beam.ParDo:
    return beam.ParDo(do_fn).with_outputs(ROUTED_ACTIONS, main="rows")


def _kind_of(rows: pa.RecordBatch) -> bytes:
    return _ACTIONS if is_actions(rows) else _IMPRESSIONS


def _count(counts: Mapping[str, int]) -> None:
    """Adds the counts of a join to Beam's metrics and to this process's endpoint."""
    for name, count in counts.items():
        Metrics.counter(_NAMESPACE, name).inc(count)
        _COUNTED.labels(name).inc(count)
