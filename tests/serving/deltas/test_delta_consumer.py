from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.runtime.deadline import wait_until
from millrace.serving.deltas.delta_consumer import DeltaApplier, DeltaConsumer, DeltaError
from tests.fakes.servables import FakeTopic

_SECONDS = 10.0


class _Store:
    """Tables as dictionaries."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, list[float]]] = {"item": {}}

    def table(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(dim=2)

    def assign(self, table: str, ids: np.ndarray, values: np.ndarray) -> None:
        self.rows[table].update({int(key): value.tolist() for key, value in zip(ids, values, strict=True)})

    def erase(self, table: str, ids: np.ndarray) -> None:
        for key in ids:
            self.rows[table].pop(int(key), None)


class _Variable:
    shape = (2,)
    dtype = np.dtype("float32")

    def __init__(self) -> None:
        self.value = np.zeros(2, np.float32)

    def assign(self, value: np.ndarray) -> None:
        self.value = value.copy()


@pytest.fixture
def parts() -> Any:
    store, variable = _Store(), _Variable()
    return SimpleNamespace(
        store=store, variable=variable, applier=DeltaApplier(store, ["item"], {"bias": variable}, last_sequence=10)
    )


def _delta(sequence: int, rows: dict[int, float] | None = None, evicted: tuple[int, ...] = (), **fields: Any) -> bytes:
    delta = ModelDelta(model_name="m", sequence=sequence, schema_version=1, created_at_ms=1000)
    if rows or evicted:
        rows = rows or {}
        delta.tables.add(
            name=fields.pop("table", "item"),
            dim=2,
            fids=np.array(list(rows), "<i8").tobytes(),
            values=np.array([[value, -value] for value in rows.values()], "<f4").tobytes(),
            evicted_fids=np.array(evicted, "<i8").tobytes(),
        )
    if "bias" in fields:
        values = np.array(fields.pop("bias"), fields.pop("dtype", "<f4"))
        delta.dense.add(name="bias", dtype=values.dtype.name, shape=values.shape, data=values.tobytes())
    for name, value in fields.items():
        setattr(delta, name, value)
    return delta.SerializeToString()


def test_entries_are_assigned_and_erased_and_dense_variables_replaced(parts: Any) -> None:
    parts.applier.apply(_delta(11, {1: 0.5, 2: 1.5}, bias=[3.0, 4.0]))
    parts.applier.apply(_delta(12, {1: 2.5}, evicted=(2,)))
    assert parts.store.rows["item"] == {1: [2.5, -2.5]}
    assert parts.variable.value.tolist() == [3.0, 4.0]
    assert (parts.applier.applied, parts.applier.entries, parts.applier.resync_required) == (2, 4, False)


def test_what_is_inside_the_export_or_was_applied_is_ignored(parts: Any) -> None:
    assert parts.applier.apply(_delta(10, {1: 9.0})) is None
    assert parts.applier.apply(_delta(11, {1: 1.0})) is not None
    assert parts.applier.apply(_delta(11, {1: 9.0})) is None
    assert parts.store.rows["item"] == {1: [1.0, -1.0]}
    assert not parts.applier.resync_required


def test_a_gap_asks_for_a_resync_and_later_deltas_still_apply(parts: Any) -> None:
    parts.applier.apply(_delta(11, {1: 1.0}))
    parts.applier.apply(_delta(13, {1: 3.0}))
    assert parts.applier.resync_required
    assert parts.store.rows["item"] == {1: [3.0, -3.0]}


def test_each_shard_has_its_own_sequence(parts: Any) -> None:
    parts.applier.apply(_delta(11, {1: 1.0}, shard=0))
    parts.applier.apply(_delta(11, {2: 1.0}, shard=1))
    assert set(parts.store.rows["item"]) == {1, 2}
    assert not parts.applier.resync_required


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"\xff\xff\xff", "not a ModelDelta"),
        (_delta(11, {1: 1.0}, schema_version=9), "schema_version is 9"),
        (_delta(11, {1: 1.0}, table="user"), "table 'user' is unknown; tables: item"),
        (_delta(11, bias=[1.0]), r"float32\[1\], must be float32\[2\]"),
        (_delta(11, bias=[1.0, 2.0], dtype="<f8"), "float64"),
    ],
)
def test_a_delta_that_does_not_fit_changes_nothing(parts: Any, value: bytes, problem: str) -> None:
    with pytest.raises(DeltaError, match=problem):
        parts.applier.apply(value)
    assert parts.store.rows == {"item": {}}
    assert not parts.variable.value.any()


def test_a_torn_table_is_refused_before_anything_is_written(parts: Any) -> None:
    delta = ModelDelta.FromString(_delta(11, {1: 1.0}))
    delta.tables.add(name="item", dim=2, fids=b"\0" * 8, values=b"\0" * 4)
    with pytest.raises(DeltaError, match="1 fids x 2 with 4 bytes"):
        parts.applier.apply(delta.SerializeToString())
    assert parts.store.rows == {"item": {}}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 100)), max_size=30), st.data())
def test_a_replay_from_any_point_ends_in_the_same_state(writes: list[tuple[int, int]], data: st.DataObject) -> None:
    deltas = [_delta(number, {key: float(value)}) for number, (key, value) in enumerate(writes, start=1)]
    straight, replayed = _Store(), _Store()
    applier = DeltaApplier(straight, ["item"], {})
    for delta in deltas:
        applier.apply(delta)
    applier = DeltaApplier(replayed, ["item"], {})
    for delta in deltas[: data.draw(st.integers(0, len(deltas)))] + deltas:
        applier.apply(delta)
    assert replayed.rows == straight.rows
    assert not applier.resync_required


def test_the_consumer_applies_what_there_is_then_what_comes(parts: Any) -> None:
    topic = FakeTopic(_delta(11, {1: 1.0}), b"\xff\xff\xff", _delta(12, {2: 2.0}))
    consumer = DeltaConsumer("m", parts.applier, lambda: topic)
    consumer.start()
    try:
        assert consumer.wait_caught_up(_SECONDS)
        assert set(parts.store.rows["item"]) == {1, 2}
        topic.put(_delta(13, {3: 3.0}))
        wait_until(lambda: 3 in parts.store.rows["item"], _SECONDS, "the live delta")
    finally:
        consumer.close()
    assert topic.closed


def test_a_consumer_without_a_broker_does_not_claim_to_have_caught_up(parts: Any) -> None:
    topic = FakeTopic()
    topic.at_end = False
    consumer = DeltaConsumer("m", parts.applier, lambda: topic)
    consumer.start()
    assert not consumer.wait_caught_up(0.05)
    consumer.close()


def test_a_delta_that_cannot_be_written_asks_for_a_resync_and_does_not_hold_up_the_next(parts: Any) -> None:
    assign, failures = parts.store.assign, [RuntimeError("out of memory")]

    def failing_once(*args: Any) -> None:
        if failures:
            raise failures.pop()
        assign(*args)

    parts.store.assign = failing_once
    with pytest.raises(DeltaError, match="RuntimeError: out of memory"):
        parts.applier.apply(_delta(11, {1: 1.0}))
    parts.applier.apply(_delta(12, {2: 2.0}))
    assert parts.store.rows["item"] == {2: [2.0, -2.0]}
    assert parts.applier.resync_required


def test_values_that_are_not_finite_are_refused(parts: Any) -> None:
    with pytest.raises(DeltaError, match="not finite"):
        parts.applier.apply(_delta(11, {1: float("nan")}))
