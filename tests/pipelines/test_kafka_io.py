"""Source, marks, trailing commits and the writer's promise, without a broker."""

from collections.abc import Mapping

import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from pipelines import kafka_io
from pipelines.kafka_io import (
    KafkaBlockReader,
    KafkaMark,
    KafkaMarkCoder,
    KafkaRecord,
    KafkaSource,
    ReadFromKafka,
    cut_ranges,
    raw_batch,
)
from runtime.kafka_blocks import Block, Positions
from runtime.kafka_client import KafkaConnection, UndeliveredError
from transforms import record_batch

CONNECTION = KafkaConnection("127.0.0.1:1")


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _FakeBlockReader:
    def __init__(self, reads: list[list[Block]]) -> None:
        self.reads, self.commits, self.closed = reads, [], False

    def read(self, max_records: int, seconds: float) -> list[Block]:
        return self.reads.pop(0) if self.reads else []

    def commit(self, positions: Mapping[tuple[str, int], int]) -> None:
        self.commits.append(dict(positions))

    def close(self) -> None:
        self.closed = True


def _block(topic: str, partition: int, offsets: range, timestamp_ms: int = 500_000) -> Block:
    count = len(offsets)
    return Block(topic, [b"{}"] * count, [partition] * count, list(offsets), [timestamp_ms] * count)


def _reader(
    reads: list[list[Block]], start: Positions, max_records: int = 10, delay: float = 0.0, clock: _Clock | None = None
) -> tuple[KafkaBlockReader, _FakeBlockReader, _Clock]:
    fake, clock = _FakeBlockReader(reads), clock or _Clock()
    return KafkaBlockReader(lambda _: fake, start, max_records, delay, "g", clock, clock), fake, clock


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
    reader, _, clock = _reader([[_block("a", 0, range(5, 6), 900_000)]], START)
    reader.start()
    assert reader.get_current_timestamp() == reader.get_watermark() == Timestamp(900)
    clock.now = 1100.0
    assert reader.get_watermark() == Timestamp(1098)


def test_a_record_from_the_future_does_not_hold_the_watermark_there() -> None:
    reader, _, _ = _reader([[_block("a", 0, range(5, 6), 10**15)]], START)
    reader.start()
    assert reader.get_current_timestamp() == Timestamp(1000)


def test_commits_trail_by_the_delay_and_come_once_a_second() -> None:
    reads = [[_block("a", 0, range(offset, offset + 1))] for offset in range(5, 45)]
    reader, fake, clock = _reader(reads, {("a", 0): 5}, delay=3.0)
    for _ in range(40):
        reader.advance()
        reader.get_checkpoint_mark().finalize_checkpoint()
        clock.now += 0.25
    # At 1003 s what was read at 1000 s is committed, then four more a second.
    assert [commit["a", 0] for commit in fake.commits] == [6, 10, 14, 18, 22, 26, 30]


def test_finalising_after_the_reader_was_closed_does_nothing() -> None:
    reader, fake, _ = _reader([[_block("a", 0, range(5, 6))]], START)
    reader.start()
    mark = reader.get_checkpoint_mark()
    reader.close()
    mark.finalize_checkpoint()
    assert fake.commits == []


def _source(monkeypatch: pytest.MonkeyPatch, clients: list[_FakeBlockReader]) -> KafkaSource:
    monkeypatch.setattr("pipelines.kafka_io.BlockReader", lambda *_: clients.pop(0))
    return KafkaSource(CONNECTION, (("a", 0), 5), "resting", 1, 10, 0.0)  # type: ignore[arg-type]


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


def test_splits_share_the_partitions() -> None:
    start = tuple((("t", partition), 0) for partition in range(5))
    parts = KafkaSource(CONNECTION, start, "g", 2, 10, 0.0).split(20)
    assert sorted(each for part in parts for each in part.start) == sorted(start)
    assert len(parts) == 2


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_ranges_cover_every_offset_once(first: int, count: int, size: int) -> None:
    ranges = list(cut_ranges({("t", 0): first}, {("t", 0): first + count}, size))
    assert [offset for each in ranges for offset in range(each.start, each.end)] == list(range(first, first + count))
    assert all(each.end - each.start <= size for each in ranges)


@pytest.mark.parametrize(
    "arguments",
    [{"start": {}}, {"start": START, "splits": 0}, {"start": START, "poll_seconds": 0}, {"start": START, "end": {}}],
)
def test_wrong_arguments_are_refused_at_construction(arguments: dict) -> None:
    with pytest.raises(ValueError, match="got|out of range"):
        ReadFromKafka(CONNECTION, **arguments)


def test_a_tombstone_is_a_null_value() -> None:
    batch = raw_batch(Block("t", [None, b"x"], [0, 0], [1, 2], [3, 4]))
    assert batch.column("value").to_pylist() == [None, b"x"]
    assert record_batch.raw_topic(batch) == "t"
    assert batch.schema.equals(record_batch.raw_schema("t"))
    assert isinstance(batch, pa.RecordBatch)


class _FakeProducer:
    """Acknowledges on flush, with `error` if there is one."""

    def __init__(self, error: object = None, acknowledges: bool = True) -> None:
        self.error, self.acknowledges, self.callbacks, self.values = error, acknowledges, [], []

    def produce(self, topic: str, value: bytes, on_delivery: object, **_: object) -> None:
        self.values.append(value)
        self.callbacks.append(on_delivery)

    def poll(self, seconds: float) -> int:
        return 0

    def flush(self, seconds: float) -> int:
        while self.acknowledges and self.callbacks:
            self.callbacks.pop()(self.error, None)
        return len(self.callbacks)


class _Error:
    def str(self) -> str:
        return "broker says no"


def _write(monkeypatch: pytest.MonkeyPatch, producer: _FakeProducer) -> None:
    monkeypatch.setattr(kafka_io, "make_producer", lambda *_, **__: producer)
    monkeypatch.setattr(kafka_io, "_shared_producers", kafka_io._SharedProducers())
    do_fn = kafka_io.WriteToKafkaDoFn(CONNECTION, "t")
    do_fn.start_bundle()
    do_fn.process(KafkaRecord(b"1"))
    do_fn.process(KafkaRecord(b"2", b"k", 3, (("h", b"v"),)))
    do_fn.finish_bundle()


def test_a_bundle_ends_when_its_messages_are_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = _FakeProducer()
    _write(monkeypatch, producer)
    assert producer.values == [b"1", b"2"]


def test_a_delivery_error_fails_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndeliveredError, match="t: broker says no"):
        _write(monkeypatch, _FakeProducer(_Error()))


def test_a_missing_acknowledgement_fails_the_bundle_and_replaces_the_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndeliveredError, match="2 messages not acknowledged"):
        _write(monkeypatch, _FakeProducer(acknowledges=False))
    assert kafka_io._shared_producers._producers == {}
