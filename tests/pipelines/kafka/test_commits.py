"""Offsets are committed only when nothing below them is held or unsent."""

from collections.abc import Iterable

from millrace.pipelines.kafka.commits import FloorCommits
from millrace.runtime.kafka_positions import Partition, Positions


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Floors:
    def __init__(self, **floors: int) -> None:
        self.known = {(topic, 0): floor for topic, floor in floors.items()}

    def __call__(self, partitions: Iterable[Partition]) -> Positions:
        return {key: self.known[key] for key in partitions if key in self.known}


def test_floors_are_committed_and_not_what_was_read() -> None:
    clock, commits, floors = _Clock(), [], _Floors(a=3)
    trailing = FloorCommits(commits.append, clock, floors)
    for second in range(4):
        trailing.reached({("a", 0): 100 + second, ("b", 0): 7})
        clock.now += 1.0
    assert commits == [{("a", 0): 3}]  # nothing is known of b, and a floor that stays is committed once
    floors.known["a", 0] = 50
    trailing.reached({("a", 0): 104})
    assert commits[1:] == [{("a", 0): 50}]


def test_commits_come_once_a_second_and_end_with_the_client() -> None:
    clock, commits = _Clock(), []
    trailing = FloorCommits(commits.append, clock)
    for offset in range(9):
        trailing.reached({("a", 0): offset})
        clock.now += 0.25
    assert commits == [{("a", 0): 0}, {("a", 0): 4}, {("a", 0): 8}]
    trailing.end()
    clock.now += 5.0
    trailing.reached({("a", 0): 9})
    assert len(commits) == 3
