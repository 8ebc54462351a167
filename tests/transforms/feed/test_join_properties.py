"""The join against its row-wise reference: streaming and bounded, with every option."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.transforms.feed.config import ROUTES, FeedConfig
from millrace.transforms.feed.event_schemas import ACTION_SCHEMA
from millrace.transforms.feed.join import JoinCounters, JoinIndex, join_bounded
from millrace.transforms.feed.row_spill import SpillSettings
from tests.reference.join_reference import JoinReference, Left
from tests.transforms.feed.join_rows import NOW, SKEW_MS, actions, config, impressions, waiting_actions

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
_config = st.builds(
    config,
    allowed_lateness_seconds=st.sampled_from([None, 0.0, 0.7, 20.0]),
    early_negatives=st.booleans(),
    routed_actions=st.lists(st.sampled_from(sorted(ROUTES)), unique=True).map(tuple),
)
_spilling = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _reference(feed: FeedConfig, skew_ms: int) -> JoinReference:
    labels = frozenset(feed.label_actions)
    return JoinReference(feed.window_ms, skew_ms, labels, feed.lateness_ms, feed.early_negatives)


@_spilling
@given(_config, _steps, st.sampled_from([None, 0, 1, 4]))
def test_streaming_agrees_with_the_reference_whatever_is_restored_or_spilled(
    tmp_path: Path, feed: FeedConfig, steps: list[tuple[int, tuple[str, Any], bool]], max_rows: int | None
) -> None:
    spill = SpillSettings(max_rows, tmp_path)
    index, counted = JoinIndex(feed, SKEW_MS, spill), JoinCounters()
    reference = _reference(feed, SKEW_MS)
    now, offset, routed = NOW, 0, []
    for elapsed, (kind, content), restore in steps:
        now += elapsed
        if kind == "close":
            left, expected = index.close_expired(now), reference.close_expired(now)
        elif kind == "impressions":
            rows = impressions(*content, first_offset=offset)
            offset += rows.num_rows
            left, expected = index.add_impressions(rows, now), reference.add_impressions(rows.to_pylist(), now)
        else:
            events = actions(*content)
            left, expected = (
                index.add_actions(events, now),
                reference.add_actions(events.select(ACTION_SCHEMA.names).to_pylist(), now),
            )
        assert sorted(map(str, left.to_pylist())) == sorted(str(each.plain()) for each in expected)
        _add(counted, index.counters)
        routed += index.take_routed().to_pylist()
        index.counters = JoinCounters()
        if restore:
            index = JoinIndex.from_states(feed, [index.to_state()], SKEW_MS, spill)
    assert counted == reference.counters
    assert sorted(map(str, routed)) == _wanted(reference, feed)
    pending = counted.impression_rows - counted.positives - counted.negatives - counted.duplicate_impressions
    assert index.pending_rows == pending
    assert waiting_actions(index) == len(reference.early)
    assert not list(tmp_path.iterdir())


@_spilling
@given(_config, _steps, st.sampled_from([0, 1, 4]))
def test_what_is_spilled_leaves_bit_for_bit_as_what_is_not(
    tmp_path: Path, feed: FeedConfig, steps: list[tuple[int, tuple[str, Any], bool]], max_rows: int
) -> None:
    held, spilled = JoinIndex(feed), JoinIndex(feed, spill=SpillSettings(max_rows, tmp_path))
    now = NOW
    for elapsed, (kind, content), _ in steps:
        now += elapsed
        left = []
        for index in (held, spilled):
            if kind == "close":
                left.append(index.close_expired(now))
            elif kind == "impressions":
                left.append(index.add_impressions(impressions(*content), now))
            else:
                left.append(index.add_actions(actions(*content), now))
        assert left[0].equals(left[1], check_metadata=True)
        assert held.to_state() == spilled.to_state()
        assert held.take_routed().equals(spilled.take_routed())
    assert held.counters == spilled.counters


@settings(max_examples=80, deadline=None)
@given(
    _config,
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), _item, st.integers(0, 20_000)), max_size=20, unique_by=lambda r: r[:2]
    ),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), _item, st.sampled_from(["click", "like"]), st.integers(0, 35_000))),
    st.sampled_from([0, 300, 9000]),
)
def test_a_bounded_join_gives_the_rows_of_the_reference_in_its_order(
    feed: FeedConfig,
    shown: list[tuple[str, int, int]],
    taken: list[tuple[str, int, str, int]],
    skew_ms: int,
) -> None:
    rows, events = impressions(*shown), actions(*taken)
    bounded = join_bounded(rows, events, feed, skew_ms)
    reference = _reference(feed, skew_ms)
    left = _as_they_happen(reference, rows, events)
    expected = sorted(left, key=lambda each: (each.at, each.row["__SOURCE_OFFSET__"], each.copy))
    assert bounded.rows.to_pylist() == [each.plain() for each in expected]
    assert bounded.counters == reference.counters
    assert sorted(map(str, bounded.routed.to_pylist())) == _wanted(reference, feed)


def _as_they_happen(reference: JoinReference, rows: pa.RecordBatch, events: pa.RecordBatch) -> list[Left]:
    """Gives the reference each event at its event time, impressions first; a window's last millisecond is in it."""
    happenings: list[tuple[int, str, Any, dict[str, Any]]] = [
        (row["timestamp_ms"], "", reference.add_impressions, row) for row in rows.to_pylist()
    ]
    # Simultaneous actions count by name.
    happenings += [
        (row["timestamp_ms"], row["action"], reference.add_actions, row)
        for row in events.select(ACTION_SCHEMA.names).to_pylist()
    ]
    left = []
    for at, _, take, row in sorted(happenings, key=lambda each: each[:2]):
        left += reference.close_expired(at - 1)
        left += take([row], at)
    return left + reference.close_expired(NOW + 1_000_000)


def _wanted(reference: JoinReference, feed: FeedConfig) -> list[str]:
    return sorted(str(action) for action in reference.routed if action["reason"] in feed.routed_actions)


def _add(total: JoinCounters, part: JoinCounters) -> None:
    for name, count in asdict(part).items():
        setattr(total, name, getattr(total, name) + count)


@pytest.mark.parametrize("early_negatives", [False, True])
def test_a_join_of_nothing_gives_nothing(early_negatives: bool) -> None:
    joined = join_bounded(impressions(), actions(), config(early_negatives=early_negatives))
    assert joined.rows.num_rows == joined.routed.num_rows == 0
    assert joined.counters == JoinCounters()
