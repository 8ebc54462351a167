"""Below which source offsets nothing more comes: what all shards said in all partitions of the train topic."""

import pytest

from millrace.training.stream import floor_tracker
from millrace.training.stream.floor_tracker import FloorTracker
from millrace.transforms.batch.floors import BlockFloors


def said(*floors: tuple[int, int, int], run: str = "run", shards: int = 2, train_partitions: int = 1) -> BlockFloors:
    return BlockFloors(run, shards, train_partitions, floors)


def test_a_base_is_the_lowest_floor_of_all_shards() -> None:
    tracker = FloorTracker()
    assert tracker.add(0, said((0, 7, 50))) == {}
    assert tracker.add(0, said((1, 7, 20))) == {7: 20}
    assert tracker.add(0, said((1, 7, 80), (1, 8, 5))) == {7: 50}


def test_a_base_needs_every_partition_of_the_train_topic() -> None:
    tracker = FloorTracker()
    assert tracker.add(0, said((0, 7, 50), shards=1, train_partitions=2)) == {}
    assert tracker.add(1, said((0, 7, 30), shards=1, train_partitions=2)) == {7: 30}
    assert tracker.add(0, said((0, 7, 60), shards=1, train_partitions=2)) == {7: 30}


def test_floors_of_two_runs_do_not_complete_each_other_and_a_base_does_not_go_back() -> None:
    tracker = FloorTracker()
    assert tracker.add(0, said((0, 7, 50))) == {}
    assert tracker.add(0, said((1, 7, 50), run="next")) == {}
    assert tracker.add(0, said((1, 7, 40))) == {7: 40}
    assert tracker.add(0, said((0, 7, 10), run="next")) == {7: 40}


def test_two_feeds_that_write_one_topic_in_turn_both_move_their_bases() -> None:
    tracker = FloorTracker()
    for shard in (0, 1):
        first = tracker.add(0, said((shard, 7, 50), run="a"))
        second = tracker.add(0, said((shard, 9, 60), run="b"))
    assert (first, second) == ({7: 50}, {9: 60})


def test_source_partitions_that_no_feed_has_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor_tracker, "_MOST_FLOORS", 10)
    tracker = FloorTracker()
    assert tracker.add(0, said((0, 7, 50), shards=1)) == {7: 50}
    bases = set[int]()
    for run in ("run", "other", "third", "fourth"):
        for first in range(100, 200, 5):
            bases |= tracker.add(0, said(*((0, first + i, 60) for i in range(5)), shards=1, run=run)).keys()
    assert len(bases) < 10
    assert tracker.add(0, said((0, 7, 70), shards=1)) == {7: 70}


def test_a_run_that_claims_more_partitions_than_were_read_takes_no_memory_for_them() -> None:
    tracker = FloorTracker()
    assert tracker.add(0, said((0, 7, 50), shards=1, train_partitions=1 << 62)) == {}
    assert tracker.add(0, said((0, 7, 50), shards=1)) == {7: 50}
