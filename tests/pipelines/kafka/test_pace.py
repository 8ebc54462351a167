"""A reader waits for the join, commits only what has left it, and wakes it when its timer does not come."""

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.kafka import reader as kafka_reader
from millrace.pipelines.kafka.pace import FeedProgress, UnderWay
from millrace.pipelines.kafka.reader import KafkaBlockReader, ReaderSettings
from millrace.pipelines.kafka.topic_sources import number_of
from millrace.runtime.kafka_positions import Positions
from millrace.runtime.kafka_records import TopicRecords
from millrace.runtime.kafka_topics import KafkaTopic
from millrace.transforms.batch.provenance import source_partition
from millrace.transforms.feed.spans import Span, spans_of

TOPIC = KafkaTopic("cluster", "id", (0,))
NUMBER = source_partition(number_of(TOPIC), 0)


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Client:
    """Has `left` times ten records more."""

    def __init__(self) -> None:
        self.next, self.left, self.commits = 0, 100, []

    def read(self, max_records: int, seconds: float, troubled: dict) -> list[TopicRecords]:
        if not self.left:
            return []
        self.left -= 1
        offsets = list(range(self.next, self.next + 10))
        self.next += 10
        return [TopicRecords("t", [b""] * 10, [0] * 10, offsets, [0] * 10)]

    def lags(self) -> dict:
        return {}

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic]:
        return dict.fromkeys(topics, TOPIC)

    def commit(self, positions: Positions, tags: Mapping[str, str]) -> None:
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
def progress(clock: _Clock) -> FeedProgress:
    return FeedProgress(clock)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, clock: _Clock, client: _Client, progress: FeedProgress) -> KafkaBlockReader:
    monkeypatch.setattr(kafka_reader, "_MAX_UNDER_WAY", 30)
    monkeypatch.setattr(kafka_reader, "progress_of", lambda _: progress)
    settings = ReaderSettings(10, timestamp_policy="processing_time", feed_id="feed", paced=True)
    return KafkaBlockReader(lambda _: client, {("t", 0): 0}, settings, ("t",), None, clock, clock)


def _give(reader: KafkaBlockReader, clock: _Clock) -> bool:
    clock.now += 1.0
    given = reader.advance()
    reader.get_checkpoint_mark().finalize_checkpoint()
    return given


def test_a_reader_waits_while_too_much_is_under_way(
    reader: KafkaBlockReader, clock: _Clock, progress: FeedProgress
) -> None:
    assert [_give(reader, clock) for _ in range(5)] == [True, True, True, False, False]
    progress.finished(0, 2, {NUMBER: 20}, {NUMBER: 0})
    assert not _give(reader, clock)  # another shard has not processed anything
    progress.finished(1, 2, {NUMBER: 30}, {NUMBER: 0})
    assert [_give(reader, clock) for _ in range(4)] == [True, True, False, False]


def test_offsets_are_committed_when_all_shards_have_let_go_of_what_is_below_them(
    reader: KafkaBlockReader, clock: _Clock, client: _Client, progress: FeedProgress
) -> None:
    for _ in range(3):
        _give(reader, clock)
    progress.finished(0, 2, {NUMBER: 30}, {NUMBER: 30})
    _give(reader, clock)
    assert client.commits == []
    progress.finished(1, 2, {NUMBER: 30}, {NUMBER: 12})
    _give(reader, clock)
    assert client.commits == [12]


def test_blocks_say_which_offsets_they_cover(reader: KafkaBlockReader, clock: _Clock) -> None:
    spans = []
    for _ in range(2):
        _give(reader, clock)
        spans += spans_of(reader.get_current()) or []
    assert spans == [Span(NUMBER, 0, 0, 10), Span(NUMBER, 0, 10, 20)]


def test_a_reader_with_nothing_to_give_wakes_a_step_whose_timer_is_late(
    reader: KafkaBlockReader, clock: _Clock, client: _Client, progress: FeedProgress
) -> None:
    client.left = 1
    assert _give(reader, clock) and not _give(reader, clock)
    progress.finished(0, 1, {NUMBER: 10}, {NUMBER: 0}, due_seconds=5.0)
    assert not any(_give(reader, clock) for _ in range(8))
    assert _give(reader, clock)
    assert reader.get_current().num_rows == 0 and spans_of(reader.get_current()) == []
    progress.finished(0, 1, {NUMBER: 10}, {NUMBER: 10})
    assert not _give(reader, clock)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(0, 100)), max_size=30))
def test_the_slowest_shard_tells_how_far_the_join_has_come(reports: list[tuple[int, int, int]]) -> None:
    progress, ends, floors = FeedProgress(), {}, {}
    for shard, end, floor in reports:
        progress.finished(shard, 3, {5: end}, {5: floor})
        ends[shard], floors[shard] = end, floor
    assert progress.processed(5) == (min(ends.values()) if len(ends) == 3 else None)
    assert progress.floor(5) == (min(floors.values()) if len(ends) == 3 else None)
    assert progress.floor(6) is None


def test_records_are_counted_from_where_the_reader_began() -> None:
    progress = FeedProgress()
    under_way = UnderWay(progress)
    under_way.given([Span(5, 1000, 1000, 1007), Span(6, 0, 0, 1)])
    assert under_way.records() == 8
    progress.finished(0, 1, {5: 1003}, {})
    assert under_way.records() == 5
