"""Joins impression rows with the actions on them, over whole batches; the caller gives the time.

A row leaves the join with the first action (by event time, then name, then value) that some label rule names, as soon
as row and action are both there, if -skew <= action time - impression time <= window. A row that has waited for
`window` since its arrival leaves without an action, as a negative. An action that arrives before its row waits for it
for `window`, and at least for `skew`, from its own arrival. The key and the state of each row are remembered for the
allowed lateness after its window, so that repeated impressions, repeated actions and late actions are counted as such.
Every event ends in exactly one counter of `JoinCounters`.

With `early_negatives` every row leaves as a negative when it arrives, and once more with its action, as copy 1 of 2 of
the same source row. Which rows leave does not depend on when events arrive within their windows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batch import list_columns, record_batch
from millrace.transforms.batch.provenance import PROVENANCE, derived_rows, provenance_of
from millrace.transforms.feed import join_state
from millrace.transforms.feed.config import FeedConfig
from millrace.transforms.feed.event_schemas import ACTION_SCHEMA, ROUTED_ACTION_SCHEMA, impression_schema
from millrace.transforms.feed.join_state import CLOSED, EMITTED, PENDING, EarlyActions, RowStates, Snapshot
from millrace.transforms.feed.key_index import row_keys
from millrace.transforms.feed.pending_rows import Block, PendingRows
from millrace.transforms.feed.row_spill import IN_MEMORY, SpillSettings
from millrace.transforms.feed.spans import lowest_of, lowest_offsets, rows_lowest

DEFAULT_SKEW_MS = 1000
"""How much earlier than its impression an action may be: different machines stamp them, and their clocks differ."""

EVENT_TIME_MS = "event_time_ms"
JOINED_ACTIONS = "actions"
JOINED_VALUES = "action_values"


def joined_schema(config: FeedConfig) -> pa.Schema:
    """Impression rows with `event_time_ms`, `actions` and `action_values` (null where an action has no value)."""
    return pa.schema(
        [
            *impression_schema(config.context_fields()),
            pa.field(EVENT_TIME_MS, pa.int64()),
            pa.field(JOINED_ACTIONS, pa.list_(pa.string())),
            pa.field(JOINED_VALUES, pa.list_(pa.float64())),
        ]
    )


@dataclass
class JoinCounters:
    """What became of every row and every action.

    Attributes:
      impression_rows: rows that came in; equals positives + negatives + duplicate_impressions + rows still pending.
      positives: rows that left with an action, whatever their labels.
      negatives: rows whose window closed without one.
      early_negatives: rows that left as negatives when they arrived, before their action could come.
      duplicate_impressions: rows whose (request, item) was known already; they are dropped.
      actions: actions that came in; equals positives + the counters below + actions still waiting.
      duplicate_actions: the row had left with the same action.
      superseded_actions: the row had left with another action.
      late_actions: after the window and within the lateness, or after the row left as a negative.
      actions_before_impression: earlier than the row by more than the skew.
      orphan_actions: no row within window and lateness.
      ignored_actions: no label rule names them.
    """

    impression_rows: int = 0
    positives: int = 0
    negatives: int = 0
    early_negatives: int = 0
    duplicate_impressions: int = 0
    actions: int = 0
    duplicate_actions: int = 0
    superseded_actions: int = 0
    late_actions: int = 0
    actions_before_impression: int = 0
    orphan_actions: int = 0
    ignored_actions: int = 0

    def take(self) -> dict[str, int]:
        """The non-zero counts since the last call, which start again from zero."""
        taken = {name: count for name, count in asdict(self).items() if count}
        for field in fields(self):
            setattr(self, field.name, 0)
        return taken


class Joined(NamedTuple):
    """Result of a bounded join: rows of `joined_schema`, actions of `ROUTED_ACTION_SCHEMA`, counters."""

    rows: pa.RecordBatch
    routed: pa.RecordBatch
    counters: JoinCounters


_COUNTER_OF = {
    "late": "late_actions",
    "orphan": "orphan_actions",
    "before_impression": "actions_before_impression",
    "duplicate": "duplicate_actions",
    "superseded": "superseded_actions",
    "ignored": "ignored_actions",
}
"""{reason of `config.ROUTES`: its counter}."""

_EARLY_NEGATIVE_FANOUT = 2
"""Copies of a row with `early_negatives`: 0 is the negative, 1 the row with its action."""


class JoinIndex:
    """Rows that wait for actions and actions that wait for rows.

    `now_ms` is processing time, Unix milliseconds; the latest time given so far counts, so it never goes back.
    """

    def __init__(self, config: FeedConfig, skew_ms: int = DEFAULT_SKEW_MS, spill: SpillSettings = IN_MEMORY) -> None:
        self._config = config
        self._schema = joined_schema(config)
        self._window_ms, self._lateness_ms, self._skew_ms = config.window_ms, config.lateness_ms, skew_ms
        self._patience_ms = max(self._window_ms, skew_ms)
        self._actions = pa.array(config.label_actions, pa.string())
        self._states = RowStates()
        self._early = EarlyActions.none()
        self._pending = PendingRows(self._window_ms, spill)
        self._routed: list[pa.RecordBatch] = []
        self._remembered: deque[tuple[int, int]] = deque()  # (forget at, positions below)
        self._now_ms = 0
        self.counters = JoinCounters()

    def add_impressions(self, rows: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        """Takes rows of `impression_schema`; returns those whose action was waiting, which leave (`joined_schema`)."""
        now_ms = self._advance(now_ms)
        self.counters.impression_rows += rows.num_rows
        keys = row_keys(rows.column("request_id"), record_batch.numpy_column(rows, "item_id"))
        fresh = self._states.positions_of(keys) < 0
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        fresh &= first
        if not fresh.all():
            self.counters.duplicate_impressions += int((~fresh).sum())
            rows, keys = rows.filter(pa.array(fresh)), keys[fresh]
        if not len(keys):
            return record_batch.empty(self._schema)
        positions = self._states.add(keys, record_batch.numpy_column(rows, "timestamp_ms"))
        self._pending.add(rows, positions, now_ms)
        leaving = [self._early_negatives(rows)] if self._config.early_negatives else []
        matched, early_positions = self._early.match(keys, positions)
        if matched.any():
            found = self._early.select(matched)
            self._early = self._early.select(~matched)
            leaving.append(self._apply(early_positions, found))
        return self._all(leaving)

    def add_actions(self, actions: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        """Takes actions of `PLACED_ACTION_SCHEMA`; returns the rows that leave with one of them (`joined_schema`)."""
        now_ms = self._advance(now_ms)
        self.counters.actions += actions.num_rows
        codes = pc.fill_null(pc.index_in(actions.column("action"), value_set=self._actions), -1)
        named = codes.to_numpy(zero_copy_only=False) >= 0
        if not named.all():
            self._end("ignored", actions.filter(pa.array(~named)))
            actions, codes = actions.filter(pa.array(named)), codes.filter(pa.array(named))
        if not actions.num_rows:
            return record_batch.empty(self._schema)
        item_ids = record_batch.numpy_column(actions, "item_id")
        keys = row_keys(actions.column("request_id"), item_ids)
        arrived = EarlyActions(
            keys=keys,
            timestamps=record_batch.numpy_column(actions, "timestamp_ms"),
            codes=codes.to_numpy(zero_copy_only=False).astype(np.int16),
            values=actions.column("value").to_numpy(zero_copy_only=False),
            expires=np.full(len(keys), now_ms + self._patience_ms, np.int64),
            request_ids=actions.column("request_id"),
            item_ids=item_ids,
            source_partitions=record_batch.numpy_column(actions, record_batch.SOURCE_PARTITION),
            source_offsets=record_batch.numpy_column(actions, record_batch.SOURCE_OFFSET),
        )
        positions = self._states.positions_of(keys)
        known = positions >= 0
        if known.all():
            return self._apply(positions, arrived)
        self._early = self._early.append(arrived.select(~known))
        return self._apply(positions[known], arrived.select(known))

    def close_expired(self, now_ms: int) -> pa.RecordBatch:
        """Returns the rows whose windows have closed, as negatives; forgets rows and actions whose time is over."""
        now_ms = self._advance(now_ms)
        leaving = [self._close(block) for block in self._pending.pop_expired(now_ms)]
        while self._remembered and self._remembered[0][0] <= now_ms:
            self._states.forget_below(self._remembered.popleft()[1])
        expired = self._early.expires <= now_ms
        if expired.any():
            self._end_early("orphan", self._early, np.flatnonzero(expired))
            self._early = self._early.select(~expired)
        return self._all(leaving)

    def close_all(self) -> pa.RecordBatch:
        """Ends a bounded input: returns all pending rows as negatives; all waiting actions become orphans."""
        ends = [block.close_at_ms for block in self._pending.blocks()]
        return self.close_expired(max([self._now_ms, *ends, *self._early.expires.tolist()]))

    def take_routed(self) -> pa.RecordBatch:
        """The actions since the last call that did not join for a reason in `config.routed_actions`."""
        routed, self._routed = self._routed, []
        return record_batch.concat(routed, ROUTED_ACTION_SCHEMA)

    @property
    def pending_rows(self) -> int:
        return self._states.count(PENDING)

    def held(self) -> dict[int, int]:
        """{source partition: offset}: no row and no action from a record below it waits; without those that hold none.

        What came together counts until the last of it has gone.
        """
        early = lowest_offsets(self._early.source_partitions, self._early.source_offsets)
        return lowest_of([self._pending.held(), early])

    @property
    def next_close_ms(self) -> int | None:
        """When `close_expired` next has something to do, Unix milliseconds; None while nothing waits."""
        times = [self._remembered[0][0]] if self._remembered else []
        if self._pending.next_close_ms is not None:
            times.append(self._pending.next_close_ms)
        if len(self._early.expires):
            times.append(int(self._early.expires.min()))
        return min(times, default=None)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: about 100 per pending row, 35 per remembered row, 60 per waiting action."""
        return self._pending.nbytes + self._states.nbytes + self._early.nbytes

    @property
    def spilled_bytes(self) -> int:
        """Bytes of rows held in files."""
        return self._pending.spilled_bytes

    def to_state(self) -> bytes:
        """All rows and actions held, as bytes for `from_states`; counters and routed actions are not part of it."""
        return self._snapshot().to_bytes()

    @classmethod
    def from_states(
        cls,
        config: FeedConfig,
        states: Sequence[bytes],
        skew_ms: int = DEFAULT_SKEW_MS,
        spill: SpillSettings = IN_MEMORY,
    ) -> "JoinIndex":
        """The index that `to_state` wrote, or several merged into one. ValueError for bytes of anything else."""
        index = cls(config, skew_ms, spill)
        if states:
            schema = impression_schema(config.context_fields())
            index._restore(Snapshot.union([Snapshot.from_bytes(state) for state in states], schema))
        return index

    def _advance(self, now_ms: int) -> int:
        self._now_ms = max(self._now_ms, now_ms)
        return self._now_ms

    def _all(self, leaving: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        return record_batch.concat([batch for batch in leaving if batch.num_rows], self._schema)

    def _early_negatives(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        self.counters.early_negatives += rows.num_rows
        return self._without_action(self._copy(rows, 0))

    def _close(self, block: Block) -> pa.RecordBatch:
        self._remembered.append((block.close_at_ms + self._lateness_ms, block.stop))
        if not block.batches:
            return record_batch.empty(self._schema)
        rows, positions = self._pending_part(block)
        self._states.set(positions, CLOSED, -1)
        self.counters.negatives += rows.num_rows
        if self._config.early_negatives:
            return record_batch.empty(self._schema)
        return self._without_action(rows)

    def _without_action(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        nothing = pa.ListArray.from_arrays(pa.array(np.zeros(rows.num_rows + 1, np.int32)), pa.array([], pa.string()))
        no_values = pa.ListArray.from_arrays(nothing.offsets, pa.array([], pa.float64()))
        columns = [*rows.columns, rows.column("timestamp_ms"), nothing, no_values]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _copy(self, rows: pa.RecordBatch, copy: int) -> pa.RecordBatch:
        """The rows as copy 0 or 1 of themselves."""
        source_row = record_batch.numpy_column(rows, record_batch.SOURCE_ROW)
        derived = derived_rows(source_row, np.full(rows.num_rows, copy), _EARLY_NEGATIVE_FANOUT)
        return record_batch.with_column(rows, rows.schema.field(record_batch.SOURCE_ROW), pa.array(derived))

    def _apply(self, positions: np.ndarray, actions: EarlyActions) -> pa.RecordBatch:
        """Applies actions to known rows; returns the rows that leave, in order of arrival."""
        order = np.lexsort((actions.values, actions.codes, actions.timestamps, positions))
        positions, codes = positions[order], actions.codes[order]
        delay = actions.timestamps[order] - self._states.timestamp(positions)
        state = self._states.state(positions)
        strange = (delay > self._window_ms + self._lateness_ms) | (delay < -self._patience_ms)
        late = ((delay > self._window_ms) | (state == CLOSED)) & ~strange
        before = (delay < -self._skew_ms) & ~late & ~strange
        in_time = ~(late | before | strange)
        eligible = np.flatnonzero(in_time & (state == PENDING))
        joining = eligible[np.unique(positions[eligible], return_index=True)[1]]
        self._states.set(positions[joining], EMITTED, codes[joining])
        spare = in_time.copy()
        spare[joining] = False
        same = self._states.code(positions) == codes
        self.counters.positives += len(joining)
        ends = {"late": late, "before_impression": before, "orphan": strange}
        for reason, rows in (ends | {"duplicate": spare & same, "superseded": spare & ~same}).items():
            self._end_early(reason, actions, order[rows])
        return self._emit(positions[joining], actions, order[joining])

    def _emit(self, positions: np.ndarray, actions: EarlyActions, chosen: np.ndarray) -> pa.RecordBatch:
        """Rows at `positions`, ascending, each with its action: those of `actions` at `chosen`."""
        if not len(positions):
            return record_batch.empty(self._schema)
        rows = self._pending.take(positions)
        if self._config.early_negatives:
            rows = self._copy(rows, 1)
        one_each = pa.array(np.arange(rows.num_rows + 1, dtype=np.int32))
        names = self._actions.take(pa.array(actions.codes[chosen]))
        values = pa.array(actions.values[chosen], pa.float64(), from_pandas=True)
        columns = [
            *rows.columns,
            pa.array(np.maximum(actions.timestamps[chosen], record_batch.numpy_column(rows, "timestamp_ms"))),
            pa.ListArray.from_arrays(one_each, names),
            pa.ListArray.from_arrays(one_each, values),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _end(self, reason: str, actions: pa.RecordBatch) -> None:
        """Counts actions that do not join, and keeps them if `reason` is routed."""
        name = _COUNTER_OF[reason]
        setattr(self.counters, name, getattr(self.counters, name) + actions.num_rows)
        if actions.num_rows and reason in self._config.routed_actions:
            reasons = pa.repeat(pa.scalar(reason), actions.num_rows)
            columns = [*actions.select(ACTION_SCHEMA.names).columns, reasons]
            self._routed.append(pa.RecordBatch.from_arrays(columns, schema=ROUTED_ACTION_SCHEMA))

    def _end_early(self, reason: str, actions: EarlyActions, chosen: np.ndarray) -> None:
        if not len(chosen):
            return
        ended = actions.select(chosen)
        columns = {
            "request_id": ended.request_ids,
            "item_id": pa.array(ended.item_ids),
            "action": self._actions.take(pa.array(ended.codes)),
            "timestamp_ms": pa.array(ended.timestamps),
            "value": pa.array(ended.values, pa.float64(), from_pandas=True),
        }
        self._end(reason, pa.RecordBatch.from_pydict(columns, schema=ACTION_SCHEMA))

    def _snapshot(self) -> Snapshot:
        blocks = self._pending.blocks()
        pending = [self._pending_part(block) for block in blocks if block.batches]
        rows = record_batch.concat([batch for batch, _ in pending], impression_schema(self._config.context_fields()))
        positions = np.concatenate([np.zeros(0, np.int64), *(held for _, held in pending)])
        stops = [stop for _, stop in self._remembered] + [block.stop for block in blocks]
        forget_at = [at for at, _ in self._remembered]
        forget_at += [block.close_at_ms + self._lateness_ms for block in blocks]
        marks = self._states.marks(np.array(stops, np.int64), np.array(forget_at, np.int64))
        return Snapshot(self._now_ms, rows, self._states.key(positions), marks, self._early)

    def _pending_part(self, block: Block) -> tuple[pa.RecordBatch, np.ndarray]:
        """The rows of a block that still wait, and their positions."""
        rows, positions = block.merged()
        pending = self._states.state(positions) == PENDING
        return rows.filter(pa.array(pending)), positions[pending]

    def _restore(self, snapshot: Snapshot) -> None:
        self._now_ms = snapshot.now_ms
        self._early = snapshot.early
        marks = snapshot.marks
        row_of_mark = join_state.locate(snapshot.row_keys, marks.keys)
        for forget_at in np.unique(marks.forget_at).tolist():
            chosen = np.flatnonzero(marks.forget_at == forget_at)
            positions = self._states.add(marks.keys[chosen], marks.timestamps[chosen])
            self._states.set(positions, marks.states[chosen], marks.codes[chosen])
            pending = marks.states[chosen] == PENDING
            close_at, stop = forget_at - self._lateness_ms, int(positions[-1]) + 1
            # A block after an open one stays open too: blocks close, and are forgotten, in order of position.
            if self._pending.next_close_ms is not None or close_at > self._now_ms or pending.any():
                rows = snapshot.rows.take(pa.array(row_of_mark[chosen[pending]]))
                batches, held = ([rows], [positions[pending]]) if rows.num_rows else ([], [])
                block = Block(close_at - self._window_ms, close_at, stop, batches, held)
                self._pending.add_block(block, rows_lowest(rows))
            else:
                self._remembered.append((forget_at, stop))


def join_bounded(
    impressions: pa.RecordBatch, actions: pa.RecordBatch, config: FeedConfig, skew_ms: int = DEFAULT_SKEW_MS
) -> Joined:
    """Joins a finished set of events by event time alone, with the result of a stream whose events arrive at that time.

    Rows are in the order in which the stream would let them go: at the time of their action, or for negatives at the
    end of the window; at equal times by provenance. Repeated impressions are dropped however far apart they are.
    """
    index = JoinIndex(config, skew_ms)
    order = [("timestamp_ms", "ascending"), *((name, "ascending") for name in PROVENANCE)]
    parts = [index.add_impressions(impressions.take(pc.sort_indices(impressions, sort_keys=order)), 0)]
    parts += [index.add_actions(actions, 0), index.close_all()]
    rows = record_batch.concat([part for part in parts if part.num_rows], joined_schema(config))
    routed = index.take_routed()
    sorted_routed = routed.take(pc.sort_indices(routed, sort_keys=[(name, "ascending") for name in _ROUTED_ORDER]))
    return Joined(rows.take(pa.array(_leaving_order(rows, config))), sorted_routed, index.counters)


def _leaving_order(rows: pa.RecordBatch, config: FeedConfig) -> np.ndarray:
    """int64 [rows]: the joined rows in order of leaving."""
    leave_at = record_batch.numpy_column(rows, EVENT_TIME_MS)
    if not config.early_negatives:
        negative = list_columns.lengths(rows.column(JOINED_ACTIONS)) == 0
        leave_at = leave_at + np.where(negative, config.window_ms, 0)
    return np.lexsort((*reversed(provenance_of(rows)), leave_at))


_ROUTED_ORDER = ("timestamp_ms", "request_id", "item_id", "action", "value")
