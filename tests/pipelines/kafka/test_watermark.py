"""Time stamp policies, and the watermark of several partitions."""

import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.kafka.watermark import PartitionWatermarks, record_times
from millrace.runtime.kafka_records import KafkaReadError, TopicRecords

ONE, TWO = ("t", 1), ("t", 2)


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _block(partitions: list[int], timestamps_ms: list[int], append_times: bool = False) -> TopicRecords:
    count = len(partitions)
    return TopicRecords("t", [b""] * count, partitions, list(range(count)), timestamps_ms, append_times)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2_000_000)), min_size=1))
def test_a_partition_has_the_time_of_its_oldest_record_and_never_one_to_come(records: list[tuple[int, int]]) -> None:
    partitions, times_ms = map(list, zip(*records, strict=True))
    expected = {
        partition: Timestamp.of(min(min(t for p, t in records if p == partition) / 1000, 1000.0))
        for partition in partitions
    }
    assert record_times(_block(partitions, times_ms), "record_time", 1000.0) == expected


def test_processing_time_asks_no_record() -> None:
    assert record_times(_block([1, 2], [0, 5]), "processing_time", 1000.0) == {1: Timestamp(1000), 2: Timestamp(1000)}


def test_append_time_needs_a_topic_that_keeps_it() -> None:
    assert record_times(_block([1], [5000], append_times=True), "log_append_time", 9.0) == {1: Timestamp(5)}
    with pytest.raises(KafkaReadError, match="t does not keep log append times; set its message.timestamp.type"):
        record_times(_block([1], [5000]), "log_append_time", 9.0)


def test_the_watermark_is_the_least_of_the_active_partitions() -> None:
    clock = _Clock()
    watermarks = PartitionWatermarks([ONE, TWO], clock, clock)
    watermarks.read("t", {1: Timestamp(900)})
    assert watermarks.value() == MIN_TIMESTAMP  # nothing is known of the other one yet
    watermarks.read("t", {2: Timestamp(800)})
    assert watermarks.value() == Timestamp(800)


def test_an_idle_partition_holds_nothing_back_unless_it_is_behind() -> None:
    clock = _Clock()
    watermarks = PartitionWatermarks([ONE, TWO], clock, clock)
    watermarks.read("t", {1: Timestamp(900), 2: Timestamp(800)})
    clock.now += 3.0
    watermarks.read("t", {1: Timestamp(910)})
    assert watermarks.value() == Timestamp(800)  # what it holds has not been fetched
    watermarks.caught_up(TWO, True)
    assert watermarks.value() == Timestamp(910)


def test_without_an_active_partition_the_watermark_follows_the_clock() -> None:
    clock = _Clock()
    watermarks = PartitionWatermarks([ONE], clock, clock)
    watermarks.caught_up(ONE, True)
    assert watermarks.value() == MIN_TIMESTAMP
    clock.now += 3.0
    assert watermarks.value() == Timestamp(1001)


def test_a_new_partition_holds_the_watermark_where_it_is() -> None:
    clock = _Clock()
    watermarks = PartitionWatermarks([ONE], clock, clock)
    watermarks.read("t", {1: Timestamp(900)})
    assert watermarks.value() == Timestamp(900)
    watermarks.add([TWO])
    watermarks.read("t", {1: Timestamp(950)})
    assert watermarks.value() == Timestamp(900)
    watermarks.read("t", {2: Timestamp(920)})
    assert watermarks.value() == Timestamp(920)
