"""Counts whose memory does not grow with what they count."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.pipelines.records.source import Part
from millrace.pipelines.records.stats import LENGTHS, DistinctCount, FeatureStats, RecordStats, ValueCounts
from millrace.transforms.batch import dead_letter, record_batch
from millrace.transforms.batch.row_digest import value_digests
from tests.reference.record_rows import random_rows

NO_DEAD_LETTERS = record_batch.empty(dead_letter.SCHEMA)


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=5))
def test_few_distinct_values_are_counted_exactly(parts: list[list[int]]) -> None:
    count = DistinctCount()
    for part in parts:
        count.add(value_digests(pa.array(part, pa.int64())))
    assert count.estimate == len({value for part in parts for value in part})


def test_many_distinct_values_are_estimated() -> None:
    count = DistinctCount()
    for start in range(0, 400_000, 50_000):  # each value twice
        count.add(value_digests(pa.array(np.arange(start, start + 100_000))))
    assert count.estimate == pytest.approx(450_000, rel=0.05)


def test_values_beyond_the_first_thousand_are_counted_together() -> None:
    counts = ValueCounts()
    counts.add(pa.array(np.arange(1500)))
    counts.add(pa.array([7, 1499]))
    found = counts.as_json()
    assert len(found) == 1001
    assert (found["7"], found["other"]) == (2, 501)


def test_lengths_of_lists_are_counted_by_their_size() -> None:
    lists = [None, [], [1], [1] * 2, [1] * 3, [1] * 4, [1] * 5, [1] * 8, [1] * 9, [1] * 32, [1] * 33, [1] * 99]
    column = pa.array(lists, pa.list_(pa.int64()))
    stats = FeatureStats(pa.field("x", column.type))
    stats.add(column)
    assert stats.as_json()["lengths"] == dict(zip(LENGTHS, (1, 1, 1, 2, 2, 1, 1, 2), strict=True))
    assert stats.rows == 11


def test_slices_of_a_batch_give_what_the_whole_batch_gives() -> None:
    rows = random_rows(60)
    whole, pieces = RecordStats(), RecordStats()
    whole.add(Part(rows, NO_DEAD_LETTERS, 0))
    for start in (0, 1, 20):
        pieces.add(Part(rows.slice(start, {0: 1, 1: 19, 20: 40}[start]), NO_DEAD_LETTERS, 0))
    pieces.add(Part(rows.slice(0, 0), NO_DEAD_LETTERS, 0))
    assert pieces.as_json() == whole.as_json()


def test_labels_that_say_nothing_are_told_as_such() -> None:
    labels = pa.array([[1.0, record_batch.INVALID_LABEL], [0.0], None, []], pa.list_(pa.float32()))
    stats = RecordStats()
    stats.add(Part(pa.record_batch({record_batch.LABEL: labels}), NO_DEAD_LETTERS, 0))
    assert stats.as_json()["labels"] == [{"1": 1, "0": 1}, {"invalid": 1}]
