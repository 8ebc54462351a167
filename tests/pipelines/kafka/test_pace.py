"""A reader waits for the join, and commits only what has left it."""

from collections.abc import Collection

import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.kafka import reader as kafka_reader
from millrace.pipelines.kafka.pace import JoinProgress, UnderWay
from millrace.pipelines.kafka.reader import KafkaBlockReader, ReaderSettings
from millrace.runtime.kafka_positions import Positions
from millrace.runtime.kafka_records import TopicRecords
from millrace.runtime.kafka_topics import KafkaTopic


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Client:
    """Always has ten records more."""

    def __init__(self) -> None:
        self.next, self.commits = 0, []

    def read(self, max_records: int, seconds: float) -> list[TopicRecords]:
        offsets = list(range(self.next, self.next + 10))
        self.next += 10
        return [TopicRecords("t", [b""] * 10, [0] * 10, offsets, [0] * 10)]

    def lags(self) -> dict:
        return {}

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic]:
        return {topic: KafkaTopic("cluster", topic, (0,)) for topic in topics}

    def commit(self, positions: Positions) -> None:
        self.commits.append(positions["t", 0])

    def close(self) -> None:
        pass


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def client() -> _Client:
    return _Client()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, clock: _Clock, client: _Client) -> KafkaBlockReader:
    monkeypatch.setattr(kafka_reader, "_MAX_UNDER_WAY", 30)
    progress = JoinProgress(clock)
    monkeypatch.setattr(kafka_reader, "progress_of", lambda _: progress)
    settings = ReaderSettings(10, commit_delay_seconds=5.0, timestamp_policy="processing_time", feed_id="feed")
    paced = KafkaBlockReader(lambda _: client, {("t", 0): 0}, settings, ("t",), None, clock, clock)
    paced.progress = progress  # type: ignore[attr-defined]
    return paced


def _give(reader: KafkaBlockReader, clock: _Clock) -> bool:
    clock.now += 1.0
    given = reader.advance()
    reader.get_checkpoint_mark().finalize_checkpoint()
    return given


def test_a_reader_waits_while_too_much_is_under_way(reader: KafkaBlockReader, clock: _Clock) -> None:
    assert [_give(reader, clock) for _ in range(5)] == [True, True, True, False, False]
    reader.progress.reached(0, Timestamp(1002), 0.0)  # type: ignore[attr-defined]
    assert [_give(reader, clock) for _ in range(4)] == [True, True, False, False]


def test_offsets_are_committed_when_the_join_has_let_go_of_what_is_before_them(
    reader: KafkaBlockReader, clock: _Clock, client: _Client
) -> None:
    for _ in range(3):
        _give(reader, clock)
    clock.now += 3.0
    reader.progress.reached(0, Timestamp(1002), 1.0)  # type: ignore[attr-defined]
    for _ in range(8):
        _give(reader, clock)
    assert client.commits == []  # its oldest row was due seven seconds ago, and has not left
    reader.progress.reached(0, None, None)  # type: ignore[attr-defined]
    _give(reader, clock)
    assert client.commits == [20]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), max_size=30))
def test_the_slowest_shard_tells_how_far_the_join_has_come(reports: list[tuple[int, int]]) -> None:
    progress, newest = JoinProgress(), {}
    for shard, read_at in reports:
        progress.reached(shard, Timestamp(read_at), None)
        newest[shard] = max(read_at, newest.get(shard, 0))
    if newest:
        assert progress.read_at() == Timestamp(min(newest.values()))


def test_records_of_which_the_join_never_hears_are_done_when_it_has_nothing_to_do(clock: _Clock) -> None:
    idle = False
    under_way = UnderWay(JoinProgress(clock), lambda: idle)
    under_way.given(Timestamp(1), 7)
    clock.now += 6.0
    assert under_way.records() == 7 and not under_way.processed(Timestamp(1))
    idle = True
    assert under_way.records() == 0 and under_way.processed(Timestamp(1))
