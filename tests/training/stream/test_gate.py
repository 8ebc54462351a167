"""What the gate of the train topic lets through, and what it refuses."""

import numpy as np
import pyarrow as pa
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.training.stream.gate import Gate
from millrace.training.stream.layout import TrainLayout
from millrace.transforms.batch import record_batch
from millrace.transforms.batch.floors import BlockFloors
from tests.fakes.poison import BLOCK_FAULTS, ROW_FAULTS, replaced
from tests.fakes.train_blocks import make_batch

TASK = FeedRanking()
WHOLE = make_batch(TASK, 0, 10)
GATE = Gate(TrainLayout.of(TASK, audit=True))


def test_a_good_block_passes_whole_with_its_floors() -> None:
    floors = BlockFloors("run", 2, 4, ((1, 0, 0),))
    checked = GATE.check(record_batch.to_bytes(floors.attach(WHOLE)))
    assert checked.rows is not None and checked.rows.to_pydict() == WHOLE.to_pydict()
    assert (checked.floors, checked.refused) == (floors, ())


def test_a_block_of_floors_alone_passes() -> None:
    floors = BlockFloors("run", 2, 4, ((1, 0, 9),))
    checked = GATE.check(record_batch.to_bytes(floors.attach(WHOLE.slice(0, 0))))
    assert checked.rows is not None and checked.rows.num_rows == 0
    assert (checked.floors, checked.refused) == (floors, ())


@pytest.mark.parametrize("kind", range(6))
def test_a_message_that_says_to_be_of_another_kind_is_no_arrow(kind: int) -> None:
    """The first message is a schema, kind 1; Arrow itself reads whatever comes first as one."""
    value = record_batch.to_bytes(WHOLE)
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(value))
    metadata = reader.read_next_message().metadata.to_pybytes()
    root = int.from_bytes(metadata[:4], "little")
    vtable = root - int.from_bytes(metadata[root : root + 4], "little", signed=True)
    place = 8 + root + int.from_bytes(metadata[vtable + 6 : vtable + 8], "little")
    assert value[place] == 1
    checked = GATE.check(value[:place] + bytes([kind]) + value[place + 1 :])
    assert (checked.rows is None) == (kind != 1)


def test_buffers_of_a_block_without_rows_are_not_used() -> None:
    empty = WHOLE.slice(0, 0)
    column = pa.ListArray.from_buffers(
        pa.list_(pa.int64()), 0, [None, pa.py_buffer(b"\x2d\x7f\xf0\x77")], children=[pa.array([], pa.int64())]
    )
    value = record_batch.to_bytes(replaced(empty, "user", column))
    checked = GATE.check(value)
    assert checked.rows is not None and checked.rows.num_rows == 0 and not checked.refused


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_block_with_bad_rows_loses_only_those(fault: str) -> None:
    reason, change = ROW_FAULTS[fault]
    bad = change(change(WHOLE, 3), 17)
    checked = GATE.check(record_batch.to_bytes(bad))
    assert checked.rows is not None
    keep = np.ones(WHOLE.num_rows, bool)
    keep[[3, 17]] = False
    assert checked.rows.to_pydict() == WHOLE.filter(pa.array(keep)).to_pydict()
    (refused,) = checked.refused
    assert (refused.reason, refused.rows) == (reason, 2)
    dead = record_batch.from_bytes(refused.values[0])
    assert str(dead.to_pylist()) == str(bad.filter(pa.array(~keep)).to_pylist())  # as text: NaN is not equal to NaN


@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_a_block_that_is_bad_as_a_whole_is_refused_with_its_bytes(fault: str) -> None:
    reason, change = BLOCK_FAULTS[fault]
    value = change(WHOLE)
    before = pa.total_allocated_bytes()
    checked = GATE.check(value)
    (refused,) = checked.refused
    assert (checked.rows, refused.reason, refused.rows, refused.values) == (None, reason, 0, (value,))
    assert pa.total_allocated_bytes() - before <= len(value)


def test_a_row_with_two_faults_is_refused_once_and_each_reason_has_its_rows() -> None:
    bad = ROW_FAULTS["weight is NaN"][1](ROW_FAULTS["label is null"][1](WHOLE, 2), 2)
    bad = ROW_FAULTS["weight is NaN"][1](ROW_FAULTS["sample rate is 2"][1](bad, 4), 5)
    checked = GATE.check(record_batch.to_bytes(bad))
    assert [(each.reason, each.rows) for each in checked.refused] == [
        ("null", 1), ("weight_out_of_range", 1), ("sample_rate_out_of_range", 1),
    ]  # fmt: skip
    assert checked.rows is not None and checked.rows.num_rows == WHOLE.num_rows - 3


@pytest.mark.parametrize("label", [record_batch.INVALID_LABEL, float("nan"), float("-inf"), 0.3])
def test_a_label_that_says_nothing_about_its_head_is_no_fault(label: float) -> None:
    labels = pa.array([[label]] * WHOLE.num_rows, pa.list_(pa.float32()))
    checked = GATE.check(record_batch.to_bytes(replaced(WHOLE, record_batch.LABEL, labels)))
    assert checked.rows is not None and checked.rows.num_rows == WHOLE.num_rows and not checked.refused


def test_rows_below_the_floor_of_their_own_block_are_refused() -> None:
    floors = BlockFloors("run", 2, 1, ((0, 0, 4), (1, 0, 2), (1, 9, 1000)))
    checked = GATE.check(record_batch.to_bytes(floors.attach(WHOLE)))
    assert [(each.reason, each.rows) for each in checked.refused] == [("below_floor", 8)]
    assert checked.rows is not None and min(checked.rows[record_batch.SOURCE_OFFSET].to_pylist()) == 2


def test_columns_that_the_task_does_not_read_may_hold_anything() -> None:
    odd = pa.array([[None, "a"], None] * (WHOLE.num_rows // 2))
    nested = pa.array([{"a": 1}] * WHOLE.num_rows)
    checked = GATE.check(record_batch.to_bytes(WHOLE.append_column("odd", odd).append_column("nested", nested)))
    assert checked.rows is not None and checked.rows.num_rows == WHOLE.num_rows and not checked.refused
