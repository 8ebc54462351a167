"""Source, splits, marks, new partitions and trailing commits, without a broker."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.display import DisplayData
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from millrace.pipelines.kafka.reader import (
    KafkaBlockReader,
    KafkaMark,
    KafkaMarkCoder,
    ReaderSettings,
    counted_block,
)
from millrace.pipelines.kafka.source import KafkaSource, ReadFromKafka
from millrace.pipelines.kafka.topic_sources import commit_tag
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_positions import Positions
from millrace.runtime.kafka_records import KafkaReadError, OffsetGoneError, TopicRecords
from millrace.runtime.kafka_topics import KafkaTopic
from millrace.transforms.batch.raw_block import raw_schema, raw_topic, source_partitions

CONNECTION = KafkaConnection("127.0.0.1:1")
SETTINGS = ReaderSettings(max_records=10)
LOOKING = replace(SETTINGS, metadata_seconds=5.0)


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _FakeBlockReader:
    """Gives `reads` one after the other, at the end of every partition unless `behind` says something else.

    `brokers` knows what partitions there are, `ids` which topics; None when all brokers are down.
    """

    def __init__(self, reads: list[list[TopicRecords]]) -> None:
        self.reads, self.commits, self.closed = reads, [], False
        self.brokers: dict[str, list[int]] | None = {"a": [0], "b": [0]}
        self.added, self.behind, self.ids, self.troubled = {}, {}, {}, {}
        self.removed: list[tuple[str, int]] = []
        self.tags: Mapping[str, str] = {}
        self.start: Positions = {}

    def opened(self, positions: Positions) -> "_FakeBlockReader":
        self.start = positions
        return self

    def read(self, max_records: int, seconds: float, troubled: dict) -> list[TopicRecords]:
        troubled.update(self.troubled)
        self.troubled = {}
        return self.reads.pop(0) if self.reads else []

    def lags(self) -> dict[tuple[str, int], int | None]:
        return dict.fromkeys({**self.start, **self.added}, 0) | self.behind

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic] | None:
        if self.brokers is None:
            return None
        return {
            topic: KafkaTopic("cluster", self.ids.get(topic, topic), tuple(numbers))
            for topic, numbers in self.brokers.items()
            if numbers
        }

    def extent(self, topic: str, partition: int, seconds: float) -> tuple[int, int]:
        return 100 + partition, 300

    def add(self, start: Mapping[tuple[str, int], int]) -> None:
        self.added |= start

    def remove(self, partitions: Collection[tuple[str, int]]) -> None:
        self.removed += partitions

    def positions(self) -> Positions:
        return self.start

    def commit(self, positions: Mapping[tuple[str, int], int], tags: Mapping[str, str]) -> None:
        self.tags = tags
        self.commits.append(dict(positions))

    def close(self) -> None:
        self.closed = True


def _block(topic: str, partition: int, offsets: range, timestamp_ms: int = 500_000) -> TopicRecords:
    count = len(offsets)
    return TopicRecords(topic, [b"{}"] * count, [partition] * count, list(offsets), [timestamp_ms] * count)


def _reader(
    reads: list[list[TopicRecords]], start: Positions, settings: ReaderSettings = SETTINGS
) -> tuple[KafkaBlockReader, _FakeBlockReader, _Clock]:
    fake, clock = _FakeBlockReader(reads), _Clock()
    return KafkaBlockReader(fake.opened, start, settings, ("a", "b"), "g", clock, clock), fake, clock


START = {("a", 0): 5, ("b", 0): 0}


def test_a_mark_covers_only_blocks_that_were_given() -> None:
    reader, _, _ = _reader([[_block("a", 0, range(5, 8)), _block("b", 0, range(0, 2))]], START)
    assert reader.start()
    assert reader.get_checkpoint_mark().positions == {("a", 0): 8, ("b", 0): 0}
    assert reader.advance()
    assert reader.get_current().column("offset").to_pylist() == [0, 1]
    assert reader.get_checkpoint_mark().positions == {("a", 0): 8, ("b", 0): 2}


def test_a_read_that_was_not_full_ends_the_bundle() -> None:
    reader, fake, _ = _reader([[_block("a", 0, range(5, 8))], [_block("a", 0, range(8, 9))]], START)
    assert reader.start()
    assert not reader.advance()
    assert len(fake.reads) == 1
    reader.get_checkpoint_mark()
    assert reader.advance()


def test_a_full_read_is_followed_by_another_at_once() -> None:
    reader, _, _ = _reader([[_block("a", 0, range(5, 15))], [_block("a", 0, range(15, 16))]], START)
    assert reader.start()
    assert reader.advance()


def test_the_watermark_follows_records_and_then_the_clock() -> None:
    reader, fake, clock = _reader([[_block("a", 0, range(5, 6), 900_000)]], {("a", 0): 5})
    reader.start()
    assert reader.get_current_timestamp() == reader.get_watermark() == Timestamp(900)
    fake.behind = {("a", 0): 0}
    clock.now = 1100.0
    reader.get_checkpoint_mark()
    assert not reader.advance()
    assert reader.get_watermark() == Timestamp(1098)


def test_a_partition_that_is_added_is_read_from_its_first_offset_and_is_in_the_mark() -> None:
    reader, fake, clock = _reader([[], [], [_block("a", 2, range(102, 104))]], START, LOOKING)
    fake.brokers = {"a": [0, 2], "b": [0]}
    assert not reader.start()
    assert fake.added == {}  # the start was made of what the brokers had a moment ago
    for _ in range(2):
        clock.now += 5.0
        reader.get_checkpoint_mark()
        found = reader.advance()
    assert found and fake.added == {("a", 2): 102}
    assert reader.get_checkpoint_mark().positions == START | {("a", 2): 104}


def test_the_number_of_a_new_partition_decides_which_split_reads_it() -> None:
    taken = []
    for index in range(3):
        reader, fake, clock = _reader([], {}, replace(LOOKING, splits=3, index=index))
        fake.brokers = {"a": list(range(7)), "b": [0]}
        reader.start()
        clock.now += 5.0
        reader.get_checkpoint_mark()
        reader.advance()
        assert {number % 3 for _, number in fake.added} == {index}
        taken += list(fake.added)
    assert sorted(taken) == [("a", number) for number in range(7)] + [("b", 0)]


def test_brokers_that_do_not_answer_change_nothing() -> None:
    reader, fake, clock = _reader([[]], START, LOOKING)
    reader.advance()
    fake.brokers = None
    for _ in range(4):
        reader.advance()
        reader.get_checkpoint_mark()
        clock.now += 5.0
    assert fake.added == {}


def test_a_partition_that_is_gone_is_an_error_the_second_time() -> None:
    reader, fake, clock = _reader([], START, LOOKING)
    reader.advance()
    fake.brokers = {"a": [0], "b": []}
    for _ in range(2):
        reader.advance()
        reader.get_checkpoint_mark()
        clock.now += 5.0
    with pytest.raises(KafkaReadError, match=r"b\[0\] does not exist any more; was the topic deleted\?"):
        reader.advance()


def test_a_topic_that_is_made_anew_is_read_from_its_beginning_whatever_its_partitions() -> None:
    start = {("a", 0): 5, ("a", 1): 9, ("b", 0): 0}
    reader, fake, clock = _reader([[_block("b", 0, range(0, 2))], []], start, LOOKING)
    fake.brokers = {"a": [0, 1], "b": [0]}
    assert reader.start()
    old = source_partitions(reader.get_current())[0].as_py()
    fake.ids, fake.brokers = {"b": "another", "a": "too"}, {"a": [0], "b": [0]}
    fake.troubled = {("a", 0): OffsetGoneError("beyond its end"), ("a", 1): KafkaReadError("gone")}
    for _ in range(2):  # what is wrong with a partition makes the reader look at once
        clock.now += 1.0
        reader.get_checkpoint_mark()
        reader.advance()
    assert sorted(fake.removed) == sorted(start)
    assert fake.added == {("a", 0): 100, ("b", 0): 100}
    fake.reads = [[_block("b", 0, range(100, 101))]]
    clock.now += 5.0
    reader.get_checkpoint_mark()
    assert reader.advance()
    assert source_partitions(reader.get_current())[0].as_py() != old
    assert reader.get_checkpoint_mark().positions == {("a", 0): 100, ("b", 0): 101}


def test_offsets_of_a_topic_that_had_the_same_name_are_not_gone_on_with() -> None:
    first, _, _ = _reader([[_block("a", 0, range(5, 6))]], START)
    first.start()
    mark = KafkaMarkCoder().decode(KafkaMarkCoder().encode(first.get_checkpoint_mark()))
    fake = _FakeBlockReader([])
    fake.ids = {"a": "another"}
    clock = _Clock()
    reader = KafkaBlockReader(fake.opened, mark.positions, LOOKING, ("a", "b"), "g", clock, clock, mark.sources)
    reader.start()
    assert fake.removed == [("a", 0)] and fake.added == {("a", 0): 100}


def test_offsets_that_retention_removed_are_counted_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    reader, fake, clock = _reader([[], []], START)
    lost = REGISTRY.get_sample_value("millrace_feed_records_lost_total", {"topic": "a", "partition": "0"}) or 0
    reader.start()
    fake.troubled = {("a", 0): OffsetGoneError("below its first")}
    for _ in range(3):
        clock.now += 5.0
        reader.get_checkpoint_mark()
        reader.advance()
    assert fake.removed == [("a", 0)] and fake.added == {("a", 0): 100}
    now = REGISTRY.get_sample_value("millrace_feed_records_lost_total", {"topic": "a", "partition": "0"})
    assert now - lost == 95
    assert "a[0]: offsets 5 to 99 are lost" in caplog.text


def test_a_partition_that_was_cut_short_is_read_on_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"topic": "a", "partition": "0"}

    def counted(name: str) -> float:
        return REGISTRY.get_sample_value(f"millrace_feed_{name}_total", labels) or 0

    lost, cut = counted("records_lost"), counted("partitions_cut_short")
    reader, fake, clock = _reader([[], []], {("a", 0): 1500, ("b", 0): 0})
    reader.start()
    fake.troubled = {("a", 0): OffsetGoneError("a[0]: offset 1500 is out of range")}
    for _ in range(3):
        clock.now += 5.0
        reader.get_checkpoint_mark()
        reader.advance()
    assert fake.removed == [("a", 0)] and fake.added == {("a", 0): 300}
    assert reader.get_checkpoint_mark().positions == {("a", 0): 300, ("b", 0): 0}
    assert (counted("records_lost") - lost, counted("partitions_cut_short") - cut) == (1200, 1)
    assert "a[0] was read up to offset 1500 and is shorter now, with its end at 300" in caplog.text


def test_records_that_came_under_the_position_of_a_topic_that_was_made_anew_are_read_again() -> None:
    dropped = REGISTRY.get_sample_value("millrace_feed_records_dropped_total", {"topic": "a"}) or 0
    reader, fake, _ = _reader([[_block("a", 0, range(5, 7)), _block("b", 0, range(3))], []], START, LOOKING)
    reader.start()
    reader.get_checkpoint_mark()
    fake.reads = [[_block("a", 0, range(7, 20)), _block("b", 0, range(3, 5))]]
    fake.ids = {"a": "another"}
    given = []
    for _ in range(2):
        while reader.advance():
            given.append(raw_topic(reader.get_current()))
        reader.get_checkpoint_mark()
    assert "a" not in given
    assert fake.removed == [("a", 0)] and fake.added == {("a", 0): 100}
    assert reader.get_checkpoint_mark().positions == {("a", 0): 100, ("b", 0): 5}
    now = REGISTRY.get_sample_value("millrace_feed_records_dropped_total", {"topic": "a"})
    assert now - dropped >= 13


def test_records_are_held_until_a_broker_tells_whose_they_are() -> None:
    reader, fake, _ = _reader([[_block("a", 0, range(5, 7))]], START, LOOKING)
    reader.start()
    reader.get_checkpoint_mark()
    fake.reads, brokers = [[_block("a", 0, range(7, 16))], [_block("a", 0, range(16, 17))]], fake.brokers
    for fake.brokers in (None, {"a": [], "b": [0]}):
        assert not reader.advance()
        assert reader.get_checkpoint_mark().positions == {("a", 0): 7, ("b", 0): 0}
    fake.brokers = brokers
    assert reader.advance() and reader.get_current().num_rows == 9
    assert reader.get_checkpoint_mark().positions == {("a", 0): 16, ("b", 0): 0}


def test_an_error_about_the_old_topic_that_comes_late_stops_nothing() -> None:
    reader, fake, clock = _reader([[], [], []], {("a", 0): 120, ("b", 0): 100})
    reader.start()
    fake.troubled = {("a", 0): OffsetGoneError("a[0]: offset 7000 is out of range")}
    for _ in range(3):
        clock.now += 5.0
        reader.get_checkpoint_mark()
        assert not reader.advance()
    assert fake.removed == [("a", 0)] and fake.added == {("a", 0): 120}


def test_commits_say_which_topic_they_are_of() -> None:
    reader, fake, _ = _reader([[_block("a", 0, range(5, 6))]], {("a", 0): 5})
    reader.start()
    mark = reader.get_checkpoint_mark()
    mark.finalize_checkpoint()
    assert fake.commits == [{("a", 0): 6}]
    assert fake.tags["a"] == commit_tag(mark.sources["a"])


def test_finalising_after_the_reader_was_closed_does_nothing() -> None:
    reader, fake, _ = _reader([[_block("a", 0, range(5, 6))]], START)
    reader.start()
    mark = reader.get_checkpoint_mark()
    reader.close()
    mark.finalize_checkpoint()
    assert fake.commits == []


def _source(monkeypatch: pytest.MonkeyPatch, clients: list[_FakeBlockReader]) -> KafkaSource:
    monkeypatch.setattr(
        "millrace.pipelines.kafka.source.PartitionReader", lambda _, start, __: clients.pop(0).opened(start)
    )
    return KafkaSource(CONNECTION, tuple(START.items()), "resting", SETTINGS)


def test_whoever_resumes_from_a_mark_goes_on_with_the_client_that_rests_there(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _FakeBlockReader([[_block("a", 0, range(5, 8)), _block("b", 0, range(0, 2))]])
    source = _source(monkeypatch, [client])
    first = source.create_reader(None, KafkaMark(START))
    assert first.start()
    mark = first.get_checkpoint_mark()
    second = source.create_reader(None, mark)  # another instance of the step: no second client is opened
    assert second.start()
    assert second.get_current().column("offset").to_pylist() == [0, 1]  # what the first had read and not given
    first.close()
    assert not client.closed
    mark.finalize_checkpoint()
    assert client.commits == [{("a", 0): 8, ("b", 0): 0}]
    second.close()
    assert client.closed


def test_a_reader_that_was_handed_on_opens_a_client_of_its_own_when_its_bundle_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = _FakeBlockReader([[_block("a", 0, range(5, 8))], [_block("a", 0, range(8, 9))]])
    again = _FakeBlockReader([[_block("a", 0, range(8, 10))]])
    source = _source(monkeypatch, [client, again])
    first = source.create_reader(None, KafkaMark(START))
    first.start()
    second = source.create_reader(None, first.get_checkpoint_mark())
    assert second.start()
    assert first.advance()
    assert first.get_current().column("offset").to_pylist() == [8, 9]
    assert second.get_current().column("offset").to_pylist() == [8]
    first.close()
    second.close()


def test_a_reader_at_work_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [_FakeBlockReader([[_block("a", 0, range(5, 8))], [_block("a", 0, range(8, 9))]]), _FakeBlockReader([])]
    opened = list(clients)
    source = _source(monkeypatch, clients)
    first = source.create_reader(None, KafkaMark(START))
    first.start()
    mark = first.get_checkpoint_mark()
    first.advance()
    source.create_reader(None, mark).close()
    assert opened[1].closed and not opened[0].closed
    first.close()


@given(st.dictionaries(st.tuples(st.text(), st.integers(0, 2**31 - 1)), st.integers(0, 2**63 - 1)))
def test_a_mark_survives_its_coder(positions: Positions) -> None:
    coder = KafkaMarkCoder()
    assert coder.decode(coder.encode(KafkaMark(positions))) == KafkaMark(positions)


def test_two_splits_that_rest_at_the_same_mark_keep_their_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [_FakeBlockReader([]), _FakeBlockReader([]), _FakeBlockReader([])]
    opened = list(clients)
    source = replace(_source(monkeypatch, clients), settings=replace(SETTINGS, splits=3))
    splits = source.split(20)
    marks = []
    for split in splits[1:]:  # both without a partition
        reader = split.create_reader(None, None)
        reader.start()
        marks.append(reader.get_checkpoint_mark())
    assert marks[0] == marks[1]
    splits[2].create_reader(None, marks[1]).close()
    assert [client.closed for client in opened] == [False, True, False]


def test_splits_share_the_partitions_by_number() -> None:
    start = tuple(((topic, partition), 0) for topic in ("t", "u") for partition in range(5))
    parts = KafkaSource(CONNECTION, start, "g", replace(SETTINGS, splits=2)).split(20)
    assert sorted(each for part in parts for each in part.start) == sorted(start)
    assert [{partition % 2 for (_, partition), _ in part.start} for part in parts] == [{0}, {1}]
    assert all(part.topics == ("t", "u") for part in parts)


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": {}},
        {"start": START, "splits": 0},
        {"start": START, "poll_seconds": 0},
        {"start": START, "metadata_seconds": 0},
        {"start": START, "align_ms": -1},
        {"start": START, "end": {}},
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments: dict) -> None:
    with pytest.raises(ValueError, match="got|out of range"):
        ReadFromKafka(CONNECTION, **arguments)


def test_a_tombstone_is_a_null_value() -> None:
    batch = counted_block(TopicRecords("t", [None, b"x"], [0, 0], [1, 2], [3, 4]), 5)
    assert batch.column("value").to_pylist() == [None, b"x"]
    assert raw_topic(batch) == "t"
    assert batch.schema.equals(raw_schema("t", 5), check_metadata=True)
    assert isinstance(batch, pa.RecordBatch)


def test_an_unknown_timestamp_policy_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="timestamp_policy=create_time: unknown; choose record_time, "):
        ReadFromKafka(CONNECTION, START, timestamp_policy="create_time")  # type: ignore[arg-type]


def test_a_read_shows_where_it_reads_and_has_its_type() -> None:
    read = ReadFromKafka(CONNECTION, START, group_id="g")
    shown = {item.key: item.value for item in DisplayData.create_from(read).items}
    assert (shown["brokers"], shown["topics"], shown["group"]) == ("127.0.0.1:1", "a, b", "g")
    assert (beam.Pipeline() | read).element_type == pa.RecordBatch
