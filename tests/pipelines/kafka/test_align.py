"""Records of partitions that are read unevenly come in the order of their times, each once."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.kafka.align import SILENT_SECONDS, PartitionAligner
from millrace.pipelines.kafka.reader import KafkaBlockReader, ReaderSettings
from millrace.runtime.kafka_positions import Positions
from millrace.runtime.kafka_records import TopicRecords, join_records
from millrace.runtime.kafka_topics import KafkaTopic

A, B, C = ("a", 0), ("b", 0), ("a", 1)
PARTITIONS = (A, B, C)
ALIGN_MS = 50
MAX_RECORDS = 8
NOW_MS = 1_000_000

Logs = dict[tuple[str, int], list[int]]


class _Clock:
    def __init__(self) -> None:
        self.now = NOW_MS / 1000

    def __call__(self) -> float:
        return self.now


class _LogClient:
    """Reads `logs` ({partition: times}) as `turns` say: (partition, most records) each; then all in turn."""

    def __init__(self, logs: Logs, turns: list[tuple[int, int]], start: Positions) -> None:
        self.logs, self.turns, self.next = logs, list(turns), dict(start)
        self.paused: set[tuple[str, int]] = set()

    def read(self, max_records: int, seconds: float, troubled: dict | None = None) -> list[TopicRecords]:
        if self.turns:
            index, most = self.turns.pop(0)
            return self._blocks({PARTITIONS[index]: min(most, max_records)})
        return self._blocks(dict.fromkeys(PARTITIONS, max_records // len(PARTITIONS)))

    def _blocks(self, counts: Mapping[tuple[str, int], int]) -> list[TopicRecords]:
        blocks: dict[str, list[TopicRecords]] = {}
        for key, count in counts.items():
            block = _block(key, self.logs[key], self.next[key], count if key not in self.paused else 0)
            self.next[key] += len(block.values)
            if block.values:
                blocks.setdefault(key[0], []).append(block)
        return [join_records(some) for some in blocks.values()]

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, KafkaTopic]:
        return {topic: KafkaTopic("cluster", topic, ()) for topic in topics}

    def lags(self) -> dict[tuple[str, int], int | None]:
        return {key: len(log) - self.next[key] for key, log in self.logs.items()}

    def pause(self, partitions: Collection[tuple[str, int]]) -> None:
        assert not self.paused & set(partitions)
        self.paused |= set(partitions)

    def resume(self, partitions: Collection[tuple[str, int]]) -> None:
        assert self.paused >= set(partitions)
        self.paused -= set(partitions)

    def commit(self, positions: Positions) -> None:
        pass

    def close(self) -> None:
        pass


class _Given(NamedTuple):
    key: tuple[str, int]
    offset: int
    time_ms: int


def _block(key: tuple[str, int], log: list[int], start: int, count: int) -> TopicRecords:
    times = log[start : start + count]
    offsets = list(range(start, start + len(times)))
    return TopicRecords(key[0], [b"x"] * len(times), [key[1]] * len(times), offsets, times)


def _records(blocks: list[TopicRecords]) -> list[_Given]:
    return [
        _Given((block.topic, partition), offset, time_ms)
        for block in blocks
        for partition, offset, time_ms in zip(block.partitions, block.offsets, block.timestamps_ms, strict=True)
    ]


def _aligner(clock: _Clock | None = None, partitions: Collection[tuple[str, int]] = PARTITIONS) -> PartitionAligner:
    clock = clock or _Clock()
    return PartitionAligner(partitions, ALIGN_MS, MAX_RECORDS, clock, clock)


def _nearly_sorted(steps: list[int]) -> list[int]:
    return [max(0, int(time)) for time in 1000 + np.cumsum(steps)]


LOGS = st.fixed_dictionaries(
    {key: st.lists(st.integers(-20, 100), max_size=100).map(_nearly_sorted) for key in PARTITIONS}
)
TURNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, MAX_RECORDS)), max_size=60)
ROUNDS = st.lists(st.integers(0, 3), max_size=60)


def _offsets(records: list[_Given], key: tuple[str, int]) -> list[int]:
    return [record.offset for record in records if record.key == key]


@given(LOGS, TURNS, ROUNDS)
def test_every_record_is_given_once_in_order_and_none_far_ahead_of_what_is_left(
    logs: Logs, turns: list[tuple[int, int]], rounds: list[int]
) -> None:
    client, aligner = _LogClient(logs, turns, dict.fromkeys(PARTITIONS, 0)), _aligner()
    newest = {key: np.maximum.accumulate(np.array(log, np.int64)) for key, log in logs.items()}
    given_records: list[_Given] = []

    def give() -> int:
        blocks = aligner.give()
        assert all(len(block.values) <= MAX_RECORDS for block in blocks)
        records = _records(blocks)
        given_records.extend(records)
        latest = max((int(newest[key][offset]) for key, offset, _ in records), default=0)
        for key, lag in client.lags().items():
            left = newest[key][len(_offsets(given_records, key)) :]
            assert not (lag and records) or left[0] + ALIGN_MS >= latest
        return len(records)

    for count in rounds:
        aligner.take(client.read(MAX_RECORDS, 0.0), client.lags())
        for _ in range(count):
            give()
    client.turns = []
    while any(client.lags().values()):
        aligner.take(client.read(MAX_RECORDS, 0.0), client.lags())
    while give():
        pass
    for key, log in logs.items():
        assert _offsets(given_records, key) == list(range(len(log)))


@given(LOGS, TURNS, st.integers(0, 40))
def test_who_resumes_from_a_mark_reads_what_was_not_given(
    logs: Logs, turns: list[tuple[int, int]], advances: int
) -> None:
    def read(start: Positions, advances: int) -> tuple[list[_Given], Positions]:
        def open_at(positions: Positions) -> _LogClient:
            return _LogClient(logs, turns, positions)

        clock = _Clock()
        settings = ReaderSettings(MAX_RECORDS, align_ms=ALIGN_MS)
        reader = KafkaBlockReader(open_at, start, settings, ("a", "b"), None, clock, clock)  # type: ignore[arg-type]
        records: list[_Given] = []
        for _ in range(advances):
            if not reader.advance():
                reader.get_checkpoint_mark()
                continue
            batch = reader.get_current()
            topic = batch.schema.metadata[b"topic"].decode()
            places = zip(*(batch.column(name).to_pylist() for name in batch.schema.names[1:]), strict=True)
            records += [_Given((topic, partition), offset, time_ms) for partition, offset, time_ms in places]
        mark = reader.get_checkpoint_mark().positions
        reader.close()
        return records, mark

    first, mark = read(dict.fromkeys(PARTITIONS, 0), advances)
    rest, end = read(mark, 1000)
    assert end == {key: len(log) for key, log in logs.items()}
    for key, log in logs.items():
        assert _offsets(first, key) == list(range(mark[key]))
        assert _offsets(first + rest, key) == list(range(len(log)))


def test_what_is_ahead_waits_for_what_lags() -> None:
    aligner = _aligner(partitions=[A, B])
    aligner.take([_block(A, [1000, 1040, 1051, 1200], 0, 4), _block(B, [1000], 0, 1)], {A: 0, B: 5})
    assert _records(aligner.give()) == [(A, 0, 1000), (A, 1, 1040), (B, 0, 1000)]
    assert aligner.give() == []
    aligner.take([_block(B, [1000, 1001], 1, 1)], {A: 0, B: 4})
    assert _records(aligner.give()) == [(A, 2, 1051), (B, 1, 1001)]


def test_a_partition_at_its_end_holds_nobody_back() -> None:
    aligner = _aligner(partitions=[A, B])
    aligner.take([_block(A, [5000], 0, 1)], {A: 3, B: 0})
    assert _records(aligner.give()) == [(A, 0, 5000)]


def test_a_partition_of_which_nothing_is_known_holds_the_others_back_for_a_bounded_time_and_is_told_once() -> None:
    clock = _Clock()
    aligner = _aligner(clock, [A, B])
    silent = [aligner.take([_block(A, [5000], 0, 1)], {A: 0, B: None})]
    for _ in range(int(SILENT_SECONDS) + 3):
        held_back = aligner.give() == []
        clock.now += 1.0
        silent.append(aligner.take([], {A: 0}))
        assert held_back or silent.count([B]) == 1
    assert silent.count([B]) == 1 and aligner.held(A) == 0


def test_time_in_which_nobody_reads_does_not_make_a_partition_silent() -> None:
    clock = _Clock()
    aligner = _aligner(clock, [A, B])
    aligner.take([_block(A, [5000], 0, 1)], {A: 0, B: 7})
    clock.now += 100 * SILENT_SECONDS
    assert aligner.take([], {A: 0, B: 7}) == []
    assert aligner.give() == []


def _seconds_held_back(aligner: PartitionAligner, clock: _Clock, lags: dict[tuple[str, int], int | None]) -> float:
    """How long what is held has to wait for partitions that give nothing."""
    began = clock.now
    while not aligner.give():
        clock.now += 0.5
        aligner.take([], lags)
    return clock.now - began


def test_a_silent_partition_that_gives_again_holds_the_others_back_again_for_half_as_long() -> None:
    clock = _Clock()
    aligner, waits = _aligner(clock, [A, B]), []
    for round_number in range(3):
        lags: dict[tuple[str, int], int | None] = {A: 0, B: 7 - round_number}
        aligner.take([_block(A, [5000] * 3, round_number, 1), _block(B, [1000] * 3, round_number, 1)], lags)
        assert {record.key for record in _records(aligner.give())} <= {B}
        waits.append(_seconds_held_back(aligner, clock, lags))
    assert waits == [SILENT_SECONDS, SILENT_SECONDS / 2, 1.5]
    aligner.take([], {A: 0, B: 0})
    clock.now += 60.0
    aligner.take([_block(A, [int(clock.now * 1000)], 0, 1)], {A: 0, B: 4})
    assert _seconds_held_back(aligner, clock, {A: 0, B: 4}) == SILENT_SECONDS


def test_a_record_on_its_way_holds_nothing_back_when_its_partition_was_at_its_end_just_now() -> None:
    clock = _Clock()
    aligner = _aligner(clock, [A, B])
    aligner.take([_block(B, [1000], 0, 1)], {A: 0, B: 0})
    aligner.give()
    clock.now += 0.04
    aligner.take([_block(A, [NOW_MS + 30], 0, 1)], {A: 0, B: 1})  # B's next record is a minute of quiet later
    assert _records(aligner.give()) == [(A, 0, NOW_MS + 30)]


def test_a_time_to_come_counts_as_now() -> None:
    aligner = _aligner(partitions=[A, B])
    aligner.take([_block(A, [NOW_MS * 9, NOW_MS], 0, 2), _block(B, [NOW_MS], 0, 1)], {A: 5, B: 5})
    assert len(_records(aligner.give())) == 3


def test_records_without_a_time_do_not_wait() -> None:
    aligner = _aligner(partitions=[A, B])
    aligner.take([_block(A, [0] * 20, 0, 20)], {A: 5, B: 5})
    assert [len(block.values) for block in aligner.give()] == [8, 8, 4]


def test_the_oldest_records_are_given_first_when_there_are_many() -> None:
    aligner = _aligner(partitions=[A, B])
    times = list(range(1000, 1020))
    aligner.take([_block(A, times, 0, 20), _block(B, times, 0, 20)], {A: 0, B: 0})
    rounds = [_records(aligner.give()) for _ in range(3)]
    assert [{record.time_ms for record in records} for records in rounds] == [
        set(times[:8]),
        set(times[8:16]),
        set(times[16:]),
    ]


@pytest.mark.parametrize(
    ("values", "count"),
    [([b"x"] * (4 * MAX_RECORDS + 1), 4 * MAX_RECORDS + 1), ([bytes(9 << 20)] * 2, 2)],
    ids=["records", "bytes"],
)
def test_a_partition_of_which_much_is_held_is_paused_until_half_is_left(values: list[bytes], count: int) -> None:
    aligner = _aligner(partitions=[A, B])
    aligner.take(
        [TopicRecords("a", values, [0] * count, list(range(count)), list(range(5000, 5000 + count)))], {A: 1, B: 1}
    )
    assert aligner.throttle() == ({A}, set())
    assert aligner.throttle() == (set(), set())
    aligner.take([], {A: 1, B: 0})
    while aligner.give():
        pass
    assert aligner.throttle() == (set(), {A})
    assert aligner.throttle() == (set(), set())


def test_a_partition_that_is_added_holds_the_others_back_until_it_is_known() -> None:
    aligner = _aligner(partitions=[A])
    aligner.add([B])
    aligner.take([_block(A, [5000], 0, 1)], {A: 0})
    assert aligner.give() == []
    aligner.take([], {A: 0, B: 0})
    assert _records(aligner.give()) == [(A, 0, 5000)]


def test_no_partition_gives_nothing() -> None:
    aligner = _aligner(partitions=[])
    aligner.take([], {})
    assert aligner.give() == []
