"""Each way in which an event can end in the join."""

import pytest

from millrace.transforms.feed.join import JoinCounters, JoinIndex
from tests.transforms.feed.join_rows import NOW, SKEW_MS, actions, config, impressions, waiting_actions

_CONFIG = config()


def _index() -> JoinIndex:
    return JoinIndex(_CONFIG, SKEW_MS)


def test_a_positive_leaves_at_once_when_its_action_arrives() -> None:
    index = _index()
    assert index.add_impressions(impressions(("r", 1, 0), ("r", 2, 0)), NOW).num_rows == 0
    left = index.add_actions(actions(("r", 2, "click", 900)), NOW + 1000)
    assert left.column("item_id").to_pylist() == [2]
    assert left.column("actions").to_pylist() == [["click"]]
    assert left.column("event_time_ms").to_pylist() == [NOW + 900]
    assert index.pending_rows == 1


def test_an_impression_without_an_action_is_a_negative_when_its_window_closes() -> None:
    index = _index()
    index.add_impressions(impressions(("r", 1, 0)), NOW)
    assert index.close_expired(NOW + 4999).num_rows == 0
    left = index.close_expired(NOW + 5000)
    assert left.column("actions").to_pylist() == [[]]
    assert left.column("event_time_ms").to_pylist() == [NOW]


def test_an_action_that_comes_first_waits_for_its_impression() -> None:
    index = _index()
    assert index.add_actions(actions(("r", 1, "click", 50)), NOW).num_rows == 0
    assert waiting_actions(index) == 1
    assert index.add_impressions(impressions(("r", 1, 0)), NOW + 4000).num_rows == 1
    assert waiting_actions(index) == 0


@pytest.mark.parametrize(
    ("at", "counter"),
    [
        (5000, "positives"),
        (5001, "late_actions"),
        (-SKEW_MS, "positives"),
        (-SKEW_MS - 1, "actions_before_impression"),
    ],
)
def test_only_actions_within_window_and_skew_join(at: int, counter: str) -> None:
    index = _index()
    index.add_impressions(impressions(("r", 1, 0)), NOW)
    index.add_actions(actions(("r", 1, "click", at)), NOW + 10)
    assert getattr(index.counters, counter) == 1


def test_a_late_action_is_counted() -> None:
    index = _index()
    index.add_impressions(impressions(("r", 1, 0)), NOW)
    index.close_expired(NOW + 5000)
    assert index.add_actions(actions(("r", 1, "click", 4000)), NOW + 5001).num_rows == 0
    assert index.counters.late_actions == 1


def test_repeated_and_second_actions_are_counted_apart() -> None:
    index = _index()
    index.add_impressions(impressions(("r", 1, 0)), NOW)
    index.add_actions(actions(("r", 1, "click", 10)), NOW + 20)
    index.add_actions(actions(("r", 1, "click", 10), ("r", 1, "like", 30), ("r", 1, "share", 9)), NOW + 40)
    counters = index.counters
    assert (counters.duplicate_actions, counters.superseded_actions, counters.ignored_actions) == (1, 1, 1)


def test_an_action_without_an_impression_is_an_orphan() -> None:
    index = _index()
    index.add_actions(actions(("r", 1, "click", 10)), NOW)
    index.close_expired(NOW + 5000)
    assert index.counters.orphan_actions == 1
    assert waiting_actions(index) == 0


def test_a_repeated_impression_is_dropped_and_counted_even_after_its_row_left() -> None:
    index = _index()
    index.add_impressions(impressions(("r", 1, 0), ("r", 1, 0)), NOW)
    index.add_actions(actions(("r", 1, "click", 10)), NOW + 20)
    index.add_impressions(impressions(("r", 1, 0)), NOW + 30)
    assert index.counters.duplicate_impressions == 2


def test_everything_is_forgotten_after_two_windows() -> None:
    index = _index()
    index.add_impressions(impressions(*((f"r{i}", i, 0) for i in range(100))), NOW)
    index.close_expired(NOW + 5000)
    index.close_expired(NOW + 10_000)
    assert index.next_close_ms is None
    assert index.add_impressions(impressions(("r1", 1, 0)), NOW + 10_001).num_rows == 0
    assert index.counters.duplicate_impressions == 0


def test_a_restored_row_that_left_stays_behind_an_earlier_one_whose_window_closed_meanwhile() -> None:
    index = _index()
    index.add_impressions(impressions(("a", 0, 0)), NOW)
    index.add_impressions(impressions(("b", 1, 0)), NOW + 60)
    index.add_actions(actions(("b", 1, "click", 0)), NOW + 120)
    index.add_impressions(impressions(), NOW + 5060)  # both windows have closed, nobody has asked for negatives yet
    index = JoinIndex.from_states(_CONFIG, [index.to_state()], SKEW_MS)
    index.close_expired(NOW + 5100)
    index = JoinIndex.from_states(_CONFIG, [index.to_state()], SKEW_MS)
    index.counters = JoinCounters()
    assert index.add_impressions(impressions(("b", 1, 0)), NOW + 10_010).num_rows == 0
    index.close_expired(NOW + 10_030)  # the first row is forgotten, the second not yet
    assert index.add_impressions(impressions(("a", 0, 0)), NOW + 10_040).num_rows == 0
    assert index.counters.duplicate_impressions == 1


def test_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not an Arrow IPC stream"):
        JoinIndex.from_states(_CONFIG, [b"garbage"])


def test_rows_that_arrive_within_a_moment_close_together() -> None:
    index = _index()
    index.add_impressions(impressions(("a", 1, 0)), NOW)
    index.add_impressions(impressions(("b", 1, 40)), NOW + 40)
    index.add_impressions(impressions(("c", 1, 60)), NOW + 60)
    assert index.next_close_ms == NOW + 5040
    assert index.close_expired(NOW + 5040).column("request_id").to_pylist() == ["a", "b"]
    left = index.add_actions(actions(("c", 1, "click", 100)), NOW + 5050)
    assert left.column("request_id").to_pylist() == ["c"]


def test_a_row_is_remembered_for_the_allowed_lateness() -> None:
    index = JoinIndex(config(allowed_lateness_seconds=1.0, routed_actions=("late", "orphan")), SKEW_MS)
    index.add_impressions(impressions(("r", 1, 0)), NOW)
    index.close_expired(NOW + 5000)
    index.add_actions(actions(("r", 1, "click", 5900), value=4.5), NOW + 5900)
    index.close_expired(NOW + 6000)
    index.add_actions(actions(("r", 1, "click", 5950)), NOW + 6001)
    index.close_expired(NOW + 12_000)
    assert index.take_routed().to_pylist() == [
        {
            "request_id": "r",
            "item_id": 1,
            "action": "click",
            "timestamp_ms": NOW + 5900,
            "value": 4.5,
            "reason": "late",
        },
        {
            "request_id": "r",
            "item_id": 1,
            "action": "click",
            "timestamp_ms": NOW + 5950,
            "value": None,
            "reason": "orphan",
        },
    ]
    assert index.take_routed().num_rows == 0
    assert (index.counters.late_actions, index.counters.orphan_actions) == (1, 1)


def test_duplicates_are_counted_and_routed_only_when_asked() -> None:
    for routed in ((), ("duplicate",)):
        index = JoinIndex(config(routed_actions=routed), SKEW_MS)
        index.add_impressions(impressions(("r", 1, 0)), NOW)
        index.add_actions(actions(("r", 1, "click", 10), ("r", 1, "click", 10)), NOW + 20)
        assert index.take_routed().column("reason").to_pylist() == list(routed)
        assert index.counters.duplicate_actions == 1


def test_with_early_negatives_a_row_leaves_at_once_and_again_with_its_action() -> None:
    index = JoinIndex(config(early_negatives=True), SKEW_MS)
    first = index.add_impressions(impressions(("r", 1, 0), ("r", 2, 0)), NOW)
    second = index.add_actions(actions(("r", 2, "click", 900)), NOW + 1000)
    assert first.column("actions").to_pylist() == [[], []]
    assert second.column("actions").to_pylist() == [["click"]]
    assert first.column("__SOURCE_ROW__").to_pylist() == [1, 0]
    assert second.column("__SOURCE_ROW__").to_pylist() == [64]
    assert index.close_expired(NOW + 5000).num_rows == 0
    counters = index.counters
    assert (counters.early_negatives, counters.positives, counters.negatives) == (2, 1, 1)


def test_with_early_negatives_an_action_that_came_first_does_not_save_the_negative() -> None:
    index = JoinIndex(config(early_negatives=True), SKEW_MS)
    index.add_actions(actions(("r", 2, "click", 0)), NOW)
    left = index.add_impressions(impressions(("r", 2, 0)), NOW + 100)
    assert left.column("actions").to_pylist() == [[], ["click"]]


def test_blocks_grow_with_the_window() -> None:
    index = JoinIndex(config(window_seconds=3600.0))
    index.add_impressions(impressions(("a", 1, 0)), NOW)
    index.add_impressions(impressions(("b", 1, 0)), NOW + 10_000)
    assert index.close_expired(NOW + 3_609_999).num_rows == 0
    assert index.close_expired(NOW + 3_610_000).num_rows == 2
