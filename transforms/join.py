"""Joins impression rows with the actions on them; pure, vectorised, clocked by its caller.

The rule. A row leaves with the first action (by event time, then name, then value) that some label rule names, as soon
as row and action are both there, if -skew <= action time - impression time <= window. A row that waited for `window`
since its arrival leaves without an action: a negative. An action that comes before its row waits for `window` since its
arrival. What a row stands for is remembered for one more window, so that repeated impressions, repeated actions and
late ones are counted as such; every event ends in exactly one counter of `JoinCounters`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import join_state, record_batch
from transforms.event_schemas import impression_schema
from transforms.feature_list import FeedConfig
from transforms.join_state import CLOSED, EMITTED, PENDING, EarlyActions, RowStates, Snapshot
from transforms.key_index import row_keys

DEFAULT_SKEW_MS = 1000
"""How much an action's clock may lag its impression's: they are stamped by different machines."""

# Rows that arrive within this time share a block and close together: fewer, larger Arrow blocks.
_BLOCK_MS = 50
_BLOCK_ROWS = 16_384

EVENT_TIME_MS = "event_time_ms"
JOINED_ACTIONS = "actions"
JOINED_VALUES = "action_values"


def joined_schema(config: FeedConfig) -> pa.Schema:
    """Impression rows and what happened to them: `event_time_ms`, `actions`, `action_values` (null where none)."""
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
      positives: rows that left with an action (whatever its label).
      negatives: rows that left without one.
      duplicate_impressions: rows whose (request, item) was there already; dropped.
      actions: actions that came in; equals positives + the counters below + actions still waiting.
      duplicate_actions: the row had left with the same action.
      superseded_actions: the row had left with another action.
      late_actions: beyond the window, or after the row left as a negative.
      actions_before_impression: earlier than the row by more than the skew.
      orphan_actions: no row came within the window.
      ignored_actions: no label rule names them.
    """

    impression_rows: int = 0
    positives: int = 0
    negatives: int = 0
    duplicate_impressions: int = 0
    actions: int = 0
    duplicate_actions: int = 0
    superseded_actions: int = 0
    late_actions: int = 0
    actions_before_impression: int = 0
    orphan_actions: int = 0
    ignored_actions: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def take(self) -> dict[str, int]:
        """The non-zero counts since the last call, which start again from zero."""
        taken = {name: count for name, count in asdict(self).items() if count}
        for field in fields(self):
            setattr(self, field.name, 0)
        return taken


@dataclass
class _Block:
    """Rows that close together. `positions` are theirs, ascending; the block owns all positions below `stop`."""

    opened_ms: int
    close_at_ms: int
    stop: int
    batches: list[pa.RecordBatch]
    positions: list[np.ndarray]

    @property
    def rows(self) -> int:
        return sum(len(held) for held in self.positions)

    def merged(self) -> tuple[pa.RecordBatch, np.ndarray]:
        if len(self.batches) > 1:
            self.batches = [record_batch.concat(self.batches)]
            self.positions = [np.concatenate(self.positions)]
        return self.batches[0], self.positions[0]


class JoinIndex:
    """Rows that wait for actions and actions that wait for rows.

    `now_ms` is processing time and must not go back; a step back is taken as standing still.
    """

    def __init__(self, config: FeedConfig, skew_ms: int = DEFAULT_SKEW_MS) -> None:
        self._config = config
        self._schema = joined_schema(config)
        self._window_ms = config.window_ms
        self._skew_ms = skew_ms
        self._actions = pa.array(config.label_actions, pa.string())
        self._states = RowStates()
        self._early = EarlyActions.none()
        self._open: deque[_Block] = deque()
        self._remembered: deque[tuple[int, int]] = deque()  # (forget at, positions below)
        self._now_ms = 0
        self.counters = JoinCounters()

    def add_impressions(self, rows: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        """Takes rows of `impression_schema`; returns those whose action was waiting (`joined_schema`)."""
        now_ms = self._advance(now_ms)
        self.counters.impression_rows += rows.num_rows
        keys = row_keys(rows.column("request_id"), record_batch.numpy_column(rows, "item_id"))
        fresh = self._states.find(keys) < 0
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        fresh &= first
        if not fresh.all():
            self.counters.duplicate_impressions += int((~fresh).sum())
            rows, keys = rows.filter(pa.array(fresh)), keys[fresh]
        if not len(keys):
            return record_batch.empty(self._schema)
        positions = self._states.add(keys, record_batch.numpy_column(rows, "timestamp_ms"))
        self._open_block(rows, positions, now_ms)
        matched, early_positions = self._early.match(keys, positions)
        if not matched.any():
            return record_batch.empty(self._schema)
        found = self._early.select(matched)
        self._early = self._early.select(~matched)
        return self._apply(early_positions, found)

    def add_actions(self, actions: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        """Takes rows of `ACTION_SCHEMA`; returns the rows that leave with one of them (`joined_schema`)."""
        now_ms = self._advance(now_ms)
        self.counters.actions += actions.num_rows
        codes = pc.fill_null(pc.index_in(actions.column("action"), value_set=self._actions), -1)
        named = codes.to_numpy(zero_copy_only=False) >= 0
        if not named.all():
            self.counters.ignored_actions += int((~named).sum())
            actions, codes = actions.filter(pa.array(named)), codes.filter(pa.array(named))
        if not actions.num_rows:
            return record_batch.empty(self._schema)
        keys = row_keys(actions.column("request_id"), record_batch.numpy_column(actions, "item_id"))
        arrived = EarlyActions(
            keys=keys,
            timestamps=record_batch.numpy_column(actions, "timestamp_ms"),
            codes=codes.to_numpy(zero_copy_only=False).astype(np.int16),
            values=actions.column("value").to_numpy(zero_copy_only=False),
            expires=np.full(len(keys), now_ms + self._window_ms, np.int64),
        )
        positions = self._states.find(keys)
        known = positions >= 0
        if not known.all():
            self._early = self._early.append(arrived.select(~known))
        return self._apply(positions[known], arrived.select(known))

    def close_expired(self, now_ms: int) -> pa.RecordBatch:
        """The rows whose window has closed, as negatives; forgets what is older still."""
        now_ms = self._advance(now_ms)
        leaving = []
        while self._open and self._open[0].close_at_ms <= now_ms:
            leaving.append(self._close(self._open.popleft()))
        while self._remembered and self._remembered[0][0] <= now_ms:
            self._states.forget_below(self._remembered.popleft()[1])
        expired = self._early.expires <= now_ms
        if expired.any():
            self.counters.orphan_actions += int(expired.sum())
            self._early = self._early.select(~expired)
        return record_batch.concat([batch for batch in leaving if batch.num_rows], self._schema)

    def close_all(self) -> pa.RecordBatch:
        """The end of a bounded input: every pending row leaves, every waiting action is an orphan."""
        last = max([self._now_ms, *(block.close_at_ms for block in self._open), *self._early.expires.tolist()])
        return self.close_expired(last)

    @property
    def pending_rows(self) -> int:
        return self._states.count(PENDING)

    @property
    def waiting_actions(self) -> int:
        return len(self._early.keys)

    @property
    def next_close_ms(self) -> int | None:
        """When `close_expired` next has something to do; None while nothing waits."""
        times = [block.close_at_ms for block in list(self._open)[:1]] + [at for at, _ in list(self._remembered)[:1]]
        if len(self._early.expires):
            times.append(int(self._early.expires.min()))
        return min(times, default=None)

    @property
    def nbytes(self) -> int:
        """Bytes held: about 100 a pending row, 35 a remembered one, 34 a waiting action."""
        rows = sum(batch.get_total_buffer_size() for block in self._open for batch in block.batches)
        return rows + self._states.nbytes + self._early.nbytes

    def to_block(self) -> bytes:
        """Everything that is held, for `from_blocks`; counters are not part of it."""
        return self._snapshot().to_bytes()

    @classmethod
    def from_blocks(cls, config: FeedConfig, blocks: Sequence[bytes], skew_ms: int = DEFAULT_SKEW_MS) -> "JoinIndex":
        """The index that `to_block` wrote; several blocks are united. ValueError for bytes of anything else."""
        index = cls(config, skew_ms)
        schema = impression_schema(config.context_fields())
        index._restore(Snapshot.union([Snapshot.from_bytes(block) for block in blocks], schema))
        return index

    def _advance(self, now_ms: int) -> int:
        self._now_ms = max(self._now_ms, now_ms)
        return self._now_ms

    def _open_block(self, rows: pa.RecordBatch, positions: np.ndarray, now_ms: int) -> None:
        stop = int(positions[-1]) + 1
        last = self._open[-1] if self._open else None
        if last and last.positions and now_ms - last.opened_ms <= _BLOCK_MS and last.rows < _BLOCK_ROWS:
            last.batches.append(rows)
            last.positions.append(positions)
            last.stop, last.close_at_ms = stop, now_ms + self._window_ms
        else:
            self._open.append(_Block(now_ms, now_ms + self._window_ms, stop, [rows], [positions]))

    def _close(self, block: _Block) -> pa.RecordBatch:
        self._remembered.append((block.close_at_ms + self._window_ms, block.stop))
        if not block.batches:
            return record_batch.empty(self._schema)
        rows, positions = block.merged()
        pending = self._states.state(positions) == PENDING
        self._states.set(positions[pending], CLOSED, -1)
        self.counters.negatives += int(pending.sum())
        left = rows.filter(pa.array(pending))
        nothing = pa.ListArray.from_arrays(pa.array(np.zeros(left.num_rows + 1, np.int32)), pa.array([], pa.string()))
        no_values = pa.ListArray.from_arrays(nothing.offsets, pa.array([], pa.float64()))
        columns = [*left.columns, left.column("timestamp_ms"), nothing, no_values]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _apply(self, positions: np.ndarray, actions: EarlyActions) -> pa.RecordBatch:
        """Applies actions to known rows; returns the rows that leave, in order of arrival."""
        order = np.lexsort((actions.values, actions.codes, actions.timestamps, positions))
        positions, actions = positions[order], actions.select(order)
        delay = actions.timestamps - self._states.timestamp(positions)
        state = self._states.state(positions)
        late = (delay > self._window_ms) | (state == CLOSED)
        before = (delay < -self._skew_ms) & ~late
        in_time = ~late & ~before
        eligible = np.flatnonzero(in_time & (state == PENDING))
        joining = eligible[np.unique(positions[eligible], return_index=True)[1]]
        self._states.set(positions[joining], EMITTED, actions.codes[joining])
        spare = in_time.copy()
        spare[joining] = False
        same = self._states.code(positions) == actions.codes
        self.counters.positives += len(joining)
        self.counters.late_actions += int(late.sum())
        self.counters.actions_before_impression += int(before.sum())
        self.counters.duplicate_actions += int((spare & same).sum())
        self.counters.superseded_actions += int((spare & ~same).sum())
        return self._emit(positions[joining], actions.select(joining))

    def _emit(self, positions: np.ndarray, actions: EarlyActions) -> pa.RecordBatch:
        """Rows at `positions` (ascending), each with its action."""
        if not len(positions):
            return record_batch.empty(self._schema)
        stops = np.array([block.stop for block in self._open])
        owner = np.searchsorted(stops, positions, side="right")
        taken = []
        for number in np.unique(owner).tolist():
            rows, held = self._open[number].merged()
            taken.append(rows.take(pa.array(np.searchsorted(held, positions[owner == number]))))
        rows = record_batch.concat(taken)
        one_each = pa.array(np.arange(rows.num_rows + 1, dtype=np.int32))
        names = self._actions.take(pa.array(actions.codes))
        values = pa.array(actions.values, pa.float64(), from_pandas=True)
        columns = [
            *rows.columns,
            pa.array(np.maximum(actions.timestamps, record_batch.numpy_column(rows, "timestamp_ms"))),
            pa.ListArray.from_arrays(one_each, names),
            pa.ListArray.from_arrays(one_each, values),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _snapshot(self) -> Snapshot:
        merged = [(block, *block.merged()) for block in self._open if block.batches]
        rows = record_batch.concat([batch for _, batch, _ in merged], impression_schema(self._config.context_fields()))
        positions = np.concatenate([np.zeros(0, np.int64), *(held for _, _, held in merged)])
        stops = [stop for _, stop in self._remembered] + [block.stop for block in self._open]
        forget_at = [at for at, _ in self._remembered]
        forget_at += [block.close_at_ms + self._window_ms for block in self._open]
        marks = self._states.marks(np.array(stops, np.int64), np.array(forget_at, np.int64))
        pending = self._states.state(positions) == PENDING
        return Snapshot(
            self._now_ms, rows.filter(pa.array(pending)), self._states.key(positions[pending]), marks, self._early
        )

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
            close_at, stop = forget_at - self._window_ms, int(positions[-1]) + 1
            # A block behind an open one stays open as well: blocks close, and are forgotten, in order of position.
            if self._open or close_at > self._now_ms or pending.any():
                rows = snapshot.rows.take(pa.array(row_of_mark[chosen[pending]]))
                batches, held = ([rows], [positions[pending]]) if rows.num_rows else ([], [])
                self._open.append(_Block(close_at - self._window_ms, close_at, stop, batches, held))
            else:
                self._remembered.append((forget_at, stop))


def join_bounded(
    impressions: pa.RecordBatch, actions: pa.RecordBatch, config: FeedConfig, skew_ms: int = DEFAULT_SKEW_MS
) -> tuple[pa.RecordBatch, JoinCounters]:
    """Joins a finished set of events by event time alone: the rows that streaming gives when all arrive in time.

    Returns: (rows of `joined_schema` ordered by event time and provenance, counters).
    """
    index = JoinIndex(config, skew_ms)
    order = [("timestamp_ms", "ascending"), *((name, "ascending") for name in _PROVENANCE)]
    index.add_impressions(impressions.take(pc.sort_indices(impressions, sort_keys=order)), 0)
    parts = [index.add_actions(actions, 0), index.close_all()]
    rows = record_batch.concat([part for part in parts if part.num_rows], joined_schema(config))
    order[0] = (EVENT_TIME_MS, "ascending")
    return rows.take(pc.sort_indices(rows, sort_keys=order)), index.counters


_PROVENANCE = (record_batch.SOURCE_PARTITION, record_batch.SOURCE_OFFSET, record_batch.SOURCE_ROW)
