"""The join against its row-wise reference, and each way in which an event can end."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.join_reference import JoinReference
from transforms.event_schemas import ACTION_SCHEMA, impression_schema
from transforms.feature_list import FeedConfig, FidFeature, LabelRule
from transforms.join import JoinCounters, JoinIndex, join_bounded

_NOW = 1_764_000_000_000
_CONFIG = FeedConfig(
    "m",
    (FidFeature("user", 1, "user_id"), FidFeature("device", 2, "context.device")),
    (LabelRule("click", ("click",)), LabelRule("like", ("like",))),
    window_seconds=5.0,
)
_SKEW = 300


def _impressions(*rows: tuple[str, int, int]) -> pa.RecordBatch:
    """Rows of (request id, item, milliseconds since _NOW)."""
    records = [
        {
            "request_id": request,
            "user_id": 7,
            "item_id": item,
            "timestamp_ms": _NOW + at,
            "context.device": "phone",
            "__SOURCE_PARTITION__": 0,
            "__SOURCE_OFFSET__": index,
            "__SOURCE_ROW__": 0,
        }
        for index, (request, item, at) in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(records, schema=impression_schema(_CONFIG.context_fields()))


def _actions(*rows: tuple[str, int, str, int]) -> pa.RecordBatch:
    """Rows of (request id, item, action, milliseconds since _NOW)."""
    records = [
        {"request_id": request, "item_id": item, "action": action, "timestamp_ms": _NOW + at, "value": None}
        for request, item, action, at in rows
    ]
    return pa.RecordBatch.from_pylist(records, schema=ACTION_SCHEMA)


def _index() -> JoinIndex:
    return JoinIndex(_CONFIG, _SKEW)


def test_a_positive_leaves_at_once_when_its_action_arrives() -> None:
    index = _index()
    assert index.add_impressions(_impressions(("r", 1, 0), ("r", 2, 0)), _NOW).num_rows == 0
    left = index.add_actions(_actions(("r", 2, "click", 900)), _NOW + 1000)
    assert left.column("item_id").to_pylist() == [2]
    assert left.column("actions").to_pylist() == [["click"]]
    assert left.column("event_time_ms").to_pylist() == [_NOW + 900]
    assert index.pending_rows == 1


def test_an_impression_without_an_action_is_a_negative_when_its_window_closes() -> None:
    index = _index()
    index.add_impressions(_impressions(("r", 1, 0)), _NOW)
    assert index.close_expired(_NOW + 4999).num_rows == 0
    left = index.close_expired(_NOW + 5000)
    assert left.column("actions").to_pylist() == [[]]
    assert left.column("event_time_ms").to_pylist() == [_NOW]


def test_an_action_that_comes_first_waits_for_its_impression() -> None:
    index = _index()
    assert index.add_actions(_actions(("r", 1, "click", 50)), _NOW).num_rows == 0
    assert index.waiting_actions == 1
    assert index.add_impressions(_impressions(("r", 1, 0)), _NOW + 4000).num_rows == 1
    assert index.waiting_actions == 0


@pytest.mark.parametrize(
    ("at", "counter"),
    [
        (5000, "positives"),
        (5001, "late_actions"),
        (-_SKEW, "positives"),
        (-_SKEW - 1, "actions_before_impression"),
    ],
)
def test_only_actions_within_window_and_skew_join(at: int, counter: str) -> None:
    index = _index()
    index.add_impressions(_impressions(("r", 1, 0)), _NOW)
    index.add_actions(_actions(("r", 1, "click", at)), _NOW + 10)
    assert getattr(index.counters, counter) == 1


def test_a_late_action_is_counted() -> None:
    index = _index()
    index.add_impressions(_impressions(("r", 1, 0)), _NOW)
    index.close_expired(_NOW + 5000)
    assert index.add_actions(_actions(("r", 1, "click", 4000)), _NOW + 5001).num_rows == 0
    assert index.counters.late_actions == 1


def test_repeated_and_second_actions_are_counted_apart() -> None:
    index = _index()
    index.add_impressions(_impressions(("r", 1, 0)), _NOW)
    index.add_actions(_actions(("r", 1, "click", 10)), _NOW + 20)
    index.add_actions(_actions(("r", 1, "click", 10), ("r", 1, "like", 30), ("r", 1, "share", 9)), _NOW + 40)
    counters = index.counters
    assert (counters.duplicate_actions, counters.superseded_actions, counters.ignored_actions) == (1, 1, 1)


def test_an_action_without_an_impression_is_an_orphan() -> None:
    index = _index()
    index.add_actions(_actions(("r", 1, "click", 10)), _NOW)
    index.close_expired(_NOW + 5000)
    assert index.counters.orphan_actions == 1
    assert index.waiting_actions == 0


def test_a_repeated_impression_is_dropped_and_counted_even_after_its_row_left() -> None:
    index = _index()
    index.add_impressions(_impressions(("r", 1, 0), ("r", 1, 0)), _NOW)
    index.add_actions(_actions(("r", 1, "click", 10)), _NOW + 20)
    index.add_impressions(_impressions(("r", 1, 0)), _NOW + 30)
    assert index.counters.duplicate_impressions == 2


def test_everything_is_forgotten_after_two_windows() -> None:
    index = _index()
    index.add_impressions(_impressions(*((f"r{i}", i, 0) for i in range(100))), _NOW)
    index.close_expired(_NOW + 5000)
    index.close_expired(_NOW + 10_000)
    assert index.next_close_ms is None
    assert index.add_impressions(_impressions(("r1", 1, 0)), _NOW + 10_001).num_rows == 0
    assert index.counters.duplicate_impressions == 0


def test_a_restored_row_that_left_stays_behind_an_earlier_one_whose_window_closed_meanwhile() -> None:
    index = _index()
    index.add_impressions(_impressions(("a", 0, 0)), _NOW)
    index.add_impressions(_impressions(("b", 1, 0)), _NOW + 60)
    index.add_actions(_actions(("b", 1, "click", 0)), _NOW + 120)
    index.add_impressions(_impressions(), _NOW + 5060)  # both windows have closed, nobody has asked for negatives yet
    index = JoinIndex.from_blocks(_CONFIG, [index.to_block()], _SKEW)
    index.close_expired(_NOW + 5100)
    index = JoinIndex.from_blocks(_CONFIG, [index.to_block()], _SKEW)
    index.counters = JoinCounters()
    assert index.add_impressions(_impressions(("b", 1, 0)), _NOW + 10_010).num_rows == 0
    index.close_expired(_NOW + 10_030)  # the first row is forgotten, the second not yet
    assert index.add_impressions(_impressions(("a", 0, 0)), _NOW + 10_040).num_rows == 0
    assert index.counters.duplicate_impressions == 1


def test_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not an Arrow IPC stream"):
        JoinIndex.from_blocks(_CONFIG, [b"garbage"])


_request = st.sampled_from(["a", "b", "c"])
_item = st.integers(0, 2)
_at = st.integers(-1000, 12_000)
_impression_step = st.tuples(st.just("impressions"), st.lists(st.tuples(_request, _item, _at), max_size=6))
_action_step = st.tuples(
    st.just("actions"),
    st.lists(st.tuples(_request, _item, st.sampled_from(["click", "like", "share"]), _at), max_size=6),
)
_step = st.one_of(_impression_step, _action_step, st.tuples(st.just("close"), st.none()))
_steps = st.lists(st.tuples(st.integers(60, 4000), _step, st.booleans()), max_size=25)


@settings(max_examples=150, deadline=None)
@given(_steps)
def test_streaming_agrees_with_the_reference_and_survives_a_restore_at_every_step(
    steps: list[tuple[int, tuple[str, Any], bool]],
) -> None:
    index, counted = _index(), JoinCounters()
    reference = JoinReference(_CONFIG.window_ms, _SKEW, frozenset(_CONFIG.label_actions))
    now = _NOW
    for elapsed, (kind, content), restore in steps:
        now += elapsed
        batch = {"impressions": _impressions, "actions": _actions}.get(kind, lambda: None)(*(content or ()))
        if batch is None:
            left, expected = index.close_expired(now), reference.close_expired(now)
        else:
            left = getattr(index, f"add_{kind}")(batch, now)
            expected = getattr(reference, f"add_{kind}")(batch.to_pylist(), now)
        assert _plain(left) == sorted(
            [_row_id(row), [action["action"]] if action else [], _event_time(row, action)] for row, action in expected
        )
        _add(counted, index.counters)
        index.counters = JoinCounters()
        if restore:
            index = JoinIndex.from_blocks(_CONFIG, [index.to_block()], _SKEW)
    assert counted == reference.counters
    pending = counted.impression_rows - counted.positives - counted.negatives - counted.duplicate_impressions
    assert index.pending_rows == pending
    assert index.waiting_actions == len(reference.early)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), _item, st.integers(0, 20_000)), max_size=20, unique_by=lambda r: r[:2]
    ),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), _item, st.sampled_from(["click", "like"]), st.integers(0, 25_000))),
)
def test_a_bounded_run_gives_the_rows_of_a_stream_whose_events_arrive_in_time(
    impressions: list[tuple[str, int, int]], actions: list[tuple[str, int, str, int]]
) -> None:
    bounded, counters = join_bounded(_impressions(*impressions), _actions(*actions), _CONFIG, 0)
    index = JoinIndex(_CONFIG, 0)
    events = [(at, 0, row) for row in impressions for at in row[-1:]]
    # By name within a millisecond: the order in which simultaneous actions count.
    events += [(at, 1, row) for row in sorted(actions, key=lambda row: row[2]) for at in row[-1:]]
    left = []
    offsets = {row: index for index, row in enumerate(impressions)}
    for at, kind, row in sorted(events, key=lambda event: event[:2]):
        # Windows close a moment after their last millisecond, in which an action is still in time.
        left += _plain(index.close_expired(_NOW + at - 1))
        if kind == 0:
            batch = _impressions(row)
            batch = batch.set_column(6, "__SOURCE_OFFSET__", pa.array([offsets[row]]))
            left += _plain(index.add_impressions(batch, _NOW + at))
        else:
            left += _plain(index.add_actions(_actions(row), _NOW + at))
    left += _plain(index.close_all())
    assert sorted(left) == _plain(bounded)
    assert counters.positives == index.counters.positives
    assert bounded.num_rows == len(impressions)


def _plain(left: pa.RecordBatch) -> list[list[Any]]:
    return sorted([_row_id(row), row["actions"], row["event_time_ms"]] for row in left.to_pylist())


def _row_id(row: dict[str, Any]) -> list[Any]:
    return [row["request_id"], row["item_id"], row["timestamp_ms"], row["__SOURCE_OFFSET__"]]


def _event_time(row: dict[str, Any], action: dict[str, Any] | None) -> int:
    return max(row["timestamp_ms"], action["timestamp_ms"]) if action else row["timestamp_ms"]


def _add(total: JoinCounters, part: JoinCounters) -> None:
    for name, count in part.to_dict().items():
        setattr(total, name, getattr(total, name) + count)


def test_rows_that_arrive_within_a_moment_close_together() -> None:
    index = _index()
    index.add_impressions(_impressions(("a", 1, 0)), _NOW)
    index.add_impressions(_impressions(("b", 1, 40)), _NOW + 40)
    index.add_impressions(_impressions(("c", 1, 60)), _NOW + 60)
    assert index.next_close_ms == _NOW + 5040
    assert index.close_expired(_NOW + 5040).column("request_id").to_pylist() == ["a", "b"]
    left = index.add_actions(_actions(("c", 1, "click", 100)), _NOW + 5050)
    assert left.column("request_id").to_pylist() == ["c"]
