from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.serving.deltas.delta_order import DeltaError
from tests.fakes.deltas import MemoryModel, MemoryVariable, make_delta


@pytest.fixture
def model() -> MemoryModel:
    return MemoryModel(kernel=MemoryVariable(2, 3))


def test_entries_are_assigned_and_erased_and_dense_variables_replaced(model: MemoryModel) -> None:
    model.take(make_delta(11, {1: 0.5, 2: 1.5}, bias=[3.0, 4.0]))
    model.take(make_delta(12, {1: 2.5}, evicted=(2,)))
    assert model.items == {1: [2.5, -2.5]}
    assert model.variables["bias"].value.tolist() == [3.0, 4.0]
    assert not model.applier.resync_required


def test_a_heartbeat_is_applied_and_changes_nothing(model: MemoryModel) -> None:
    assert model.take(make_delta(11))
    assert model.take(make_delta(12, {1: 1.0}))
    assert not model.applier.resync_required


def test_what_is_inside_the_export_or_was_applied_is_ignored(model: MemoryModel) -> None:
    assert not model.take(make_delta(10, {1: 9.0}))
    assert model.take(make_delta(11, {1: 1.0}))
    assert not model.take(make_delta(11, {1: 9.0}))
    assert model.items == {1: [1.0, -1.0]}
    assert not model.applier.resync_required


def test_a_gap_asks_for_a_resync_and_later_deltas_still_apply(model: MemoryModel) -> None:
    model.take(make_delta(11, {1: 1.0}))
    model.take(make_delta(13, {1: 3.0}))
    assert model.applier.resync_required
    assert model.items == {1: [3.0, -3.0]}


def test_each_shard_has_its_own_sequence(model: MemoryModel) -> None:
    model.take(make_delta(11, {1: 1.0}, shard=0))
    model.take(make_delta(11, {2: 1.0}, shard=1))
    assert set(model.items) == {1, 2}
    assert not model.applier.resync_required


@pytest.mark.parametrize(
    ("fields", "reason", "problem", "resync"),
    [
        ({"model_name": "other"}, "model", "of model 'other', not of 'm'", False),
        ({"lineage": "other"}, "lineage", "of lineage 'other', the export of 'born'", True),
        ({"lineage": "", "epoch": 0, "schema_version": 1}, "lineage", "of lineage ''", True),
        ({"epoch": 1 << 62}, "malformed", "must be below", True),
        ({"sequence": (1 << 63) - 1}, "malformed", "must be below", True),
        ({"epoch": 2}, "epoch", "of epoch 2, whose trainer was replaced by that of epoch 3", False),
    ],
)
def test_a_giant_sequence_of_another_model_lineage_or_old_epoch_silences_nothing(
    model: MemoryModel, fields: dict[str, Any], reason: str, problem: str, resync: bool
) -> None:
    with pytest.raises(DeltaError, match=problem) as caught:
        model.take(make_delta(**{"sequence": 1 << 60, "rows": {1: 9.0}} | fields))
    assert caught.value.reason == reason
    assert model.applier.resync_required is resync
    assert model.take(make_delta(11, {1: 1.0}))
    assert model.items == {1: [1.0, -1.0]}


def test_a_higher_epoch_is_taken_at_any_sequence_and_asks_for_a_resync(model: MemoryModel) -> None:
    assert model.take(make_delta(500, {1: 1.0}))
    assert model.take(make_delta(2, {1: 2.0}, epoch=5))
    assert model.take(make_delta(3, {2: 2.0}, epoch=5))
    assert not model.take(make_delta(3, {2: 9.0}, epoch=5))
    with pytest.raises(DeltaError, match="epoch 3"):
        model.take(make_delta(501, {1: 9.0}))
    assert model.items == {1: [2.0, -2.0], 2: [2.0, -2.0]}
    assert model.applier.resync_required


def test_an_export_of_the_new_epoch_needs_no_resync() -> None:
    model = MemoryModel(last_sequence=2, epoch=5)
    assert not model.take(make_delta(2, {1: 9.0}, epoch=5))
    assert model.take(make_delta(3, {1: 1.0}, epoch=5))
    assert not model.applier.resync_required


def test_deltas_and_exports_without_lineage_are_ordered_by_sequence() -> None:
    model = MemoryModel(lineage="", epoch=0)
    old = {"schema_version": 1, "lineage": "", "epoch": 0}
    assert model.take(make_delta(11, {1: 1.0}, **old))
    assert not model.take(make_delta(11, {1: 9.0}, **old))
    assert not model.applier.resync_required


def test_forgotten_ids_ask_for_a_resync(model: MemoryModel) -> None:
    assert model.take(make_delta(11, ids_forgotten=True))
    assert model.applier.resync_required


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"\xff\xff\xff", "not a ModelDelta"),
        (make_delta(11, {1: 1.0}, schema_version=9), "schema_version is 9"),
        (make_delta(11, {1: 1.0}, table="user"), "table 'user' is unknown; tables: item"),
        (make_delta(11, bias=[1.0]), r"float32\[1\], must be float32\[2\]"),
        (make_delta(11, bias=[1.0, 2.0], dtype="<f8"), "float64"),
        (
            make_delta(11, dense=[ModelDelta.Dense(name="bias", dtype="float32", shape=[2], data=bytes(8), first=1)]),
            r"8 bytes from element 1 on for shape \[2\]",
        ),
        (
            make_delta(11, dense=[ModelDelta.Dense(name="bias", dtype="float32", shape=[2], data=bytes(4), first=-1)]),
            "4 bytes from element -1 on",
        ),
    ],
)
def test_a_delta_that_does_not_fit_changes_nothing_and_asks_for_a_resync(
    model: MemoryModel, value: bytes, problem: str
) -> None:
    with pytest.raises(DeltaError, match=problem):
        model.take(value)
    assert model.items == {}
    assert not model.variables["bias"].value.any()
    assert model.applier.resync_required


def test_a_torn_table_is_refused_before_anything_is_written(model: MemoryModel) -> None:
    delta = ModelDelta.FromString(make_delta(11, {1: 1.0}))
    delta.tables.add(name="item", dim=2, fids=b"\0" * 8, values=b"\0" * 4)
    with pytest.raises(DeltaError, match="1 fids x 2 with 4 bytes"):
        model.take(delta.SerializeToString())
    assert model.items == {}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 100)), max_size=30), st.data())
def test_a_replay_from_any_point_ends_in_the_same_state(writes: list[tuple[int, int]], data: st.DataObject) -> None:
    deltas = [make_delta(number, {key: float(value)}) for number, (key, value) in enumerate(writes, start=1)]
    straight, replayed = MemoryModel(last_sequence=0), MemoryModel(last_sequence=0)
    for delta in deltas:
        straight.take(delta)
    for delta in deltas[: data.draw(st.integers(0, len(deltas)))] + deltas:
        replayed.take(delta)
    assert replayed.items == straight.items
    assert not replayed.applier.resync_required


def test_a_delta_that_cannot_be_written_asks_for_a_resync_and_does_not_hold_up_the_next(model: MemoryModel) -> None:
    assign, failures = model.store.assign, [RuntimeError("out of memory")]

    def failing_once(*args: Any) -> None:
        if failures:
            raise failures.pop()
        assign(*args)

    model.store.assign = failing_once  # type: ignore[method-assign]
    with pytest.raises(DeltaError, match="RuntimeError: out of memory"):
        model.take(make_delta(11, {1: 1.0}))
    model.take(make_delta(12, {2: 2.0}))
    assert model.items == {2: [2.0, -2.0]}
    assert model.applier.resync_required


def test_rows_that_are_not_finite_are_left_out_and_the_others_are_assigned(model: MemoryModel) -> None:
    assert model.take(make_delta(11, {1: 1.0, 2: float("nan"), 3: float("inf"), 4: 4.0}, bias=[1.0, 2.0]))
    assert model.items == {1: [1.0, -1.0], 4: [4.0, -4.0]}
    assert model.variables["bias"].value.tolist() == [1.0, 2.0]
    assert model.applier.resync_required


def test_dense_values_that_are_not_finite_are_left_out_and_the_rows_are_assigned(model: MemoryModel) -> None:
    assert model.take(make_delta(11, {1: 1.0}, bias=[1.0, float("nan")]))
    assert model.items == {1: [1.0, -1.0]}
    assert model.variables["bias"].assigned == 0
    assert model.applier.resync_required


def _parts(values: np.ndarray, *cuts: int) -> list[ModelDelta.Dense]:
    """Parts of variable "kernel" that begin at 0 and at each cut."""
    flat, edges = values.astype("<f4").reshape(-1), [0, *cuts, values.size]
    return [
        ModelDelta.Dense(name="kernel", dtype="float32", shape=values.shape, data=flat[a:b].tobytes(), first=a)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def test_a_variable_in_parts_is_assigned_once_and_whole(model: MemoryModel) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for number, part in enumerate(_parts(values, 1, 4), start=11):
        assert model.variables["kernel"].assigned == 0
        model.take(make_delta(number, dense=[part]))
    assert model.variables["kernel"].value.tolist() == values.tolist()
    assert model.variables["kernel"].assigned == 1


def test_a_part_without_the_last_one_is_assigned_at_the_flush(model: MemoryModel) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    model.variables["kernel"].assign(np.full((2, 3), 9, np.float32))
    model.take(make_delta(11, dense=_parts(values, 2)[:1]))
    model.applier.flush()
    assert model.variables["kernel"].value.reshape(-1).tolist() == [0, 1, 9, 9, 9, 9]
    model.applier.flush()
    assert model.variables["kernel"].assigned == 2
