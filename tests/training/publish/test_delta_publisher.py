"""Deltas: absolute values in numbered messages; nothing is forgotten when the broker fails."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from millrace.ops.embedding_table import EmbeddingStore, TouchedKeys
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.training.publish import delta_publisher
from millrace.training.publish.delta_publisher import DeltaPublisher, delta_messages


class FakeRecord:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset


class FakeBroker:
    """One partition; `refuse` makes deliveries fail, `lose_acks` keeps the message and reports a failure."""

    def __init__(self) -> None:
        self.log: list[ModelDelta] = []
        self.refuse = self.lose_acks = False
        self.clock = 0.0

    def make(self, *_: Any, **__: Any) -> "FakeProducer":
        return FakeProducer(self)


class FakeProducer:
    def __init__(self, broker: FakeBroker) -> None:
        self._broker, self._waiting = broker, []

    def produce(self, topic: str, value: bytes, partition: int, on_delivery: Any) -> None:
        assert len(value) < 1_000_000
        self._waiting.append((value, on_delivery))

    def poll(self, _: float) -> None:
        waiting, self._waiting = self._waiting, []
        for value, done in waiting:
            if not self._broker.refuse:
                self._broker.log.append(ModelDelta.FromString(value))
            failed = self._broker.refuse or self._broker.lose_acks
            done("timed out" if failed else None, FakeRecord(len(self._broker.log) - 1))


class FakeDense:
    names = ["logit/kernel"]

    def __init__(self) -> None:
        self.variables = [np.ones((2, 1), np.float32)]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    made = FakeBroker()
    monkeypatch.setattr(delta_publisher, "ensure_topic", lambda *_, **__: None)
    monkeypatch.setattr(delta_publisher, "watermarks", lambda *_: {0: (0, len(made.log))})
    monkeypatch.setattr(delta_publisher, "_last_record", lambda *_: made.log[-1].SerializeToString())
    return made


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[EmbeddingStore]:
    name = f"test/{request.node.name}"
    yield EmbeddingStore([TableConfig("t", 2, Sgd(1.0), Zeros()), TableConfig("u", 1, Sgd(1.0), Zeros())], name)
    EmbeddingStore.release(name)


def new_publisher(broker: FakeBroker, store: EmbeddingStore) -> DeltaPublisher:
    return DeltaPublisher(None, "d", "m", store, FakeDense(), make=broker.make, clock=lambda: broker.clock)  # type: ignore[arg-type]


def touch(store: EmbeddingStore, ids: list[int]) -> None:
    store.apply_gradients("t", ids, np.full((len(ids), 2), -1.0, np.float32))


def send(deltas: DeltaPublisher, step: int = 1) -> None:
    deltas.publish(step, base_version=5, event_time_ms=99)
    deltas.poll()


def applied(log: list[ModelDelta]) -> dict[int, list[float]]:
    """Table `t` of a server that applied the log."""
    values: dict[int, list[float]] = {}
    for delta in log:
        for table in delta.tables:
            if table.name == "t":
                rows = np.frombuffer(table.values, "<f4").reshape(-1, table.dim)
                values |= dict(zip(np.frombuffer(table.fids, "<i8").tolist(), rows.tolist(), strict=True))
                for fid in np.frombuffer(table.evicted_fids, "<i8").tolist():
                    values.pop(fid, None)
    return values


def test_touched_entries_go_out_once_with_their_values(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    touch(store, [3, 4])
    send(deltas, step=11)
    send(deltas)
    assert applied(broker.log) == {3: [1.0, 1.0], 4: [1.0, 1.0]}
    first = broker.log[0]
    assert len(broker.log) == 1
    assert (first.sequence, first.base_version, first.global_step, first.event_time_ms) == (1, 5, 11, 99)
    assert first.dense[0].name == "logit/kernel" and list(first.dense[0].shape) == [2, 1]
    assert (deltas.sequence, deltas.next_offset) == (1, 1)


def test_a_refused_delta_goes_out_later_with_the_values_of_then(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    touch(store, [3])
    broker.refuse = True
    send(deltas)
    touch(store, [3, 8])
    send(deltas)  # the broker is given time to come back
    broker.refuse, broker.clock = False, 60.0
    send(deltas)
    assert applied(broker.log) == {3: [2.0, 2.0], 8: [1.0, 1.0]}
    assert [delta.sequence for delta in broker.log] == [1]


def test_forgotten_ids_are_said_once_so_that_an_export_follows(
    broker: FakeBroker, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = new_publisher(broker, store)
    monkeypatch.setattr(store, "steal_touched", lambda: TouchedKeys({}, ["t"]))
    send(deltas)
    assert [deltas.has_lost_ids(), deltas.has_lost_ids()] == [True, False]


def test_a_lost_acknowledgement_does_not_reuse_a_sequence_number(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    broker.lose_acks = True
    touch(store, [3])
    send(deltas)
    broker.lose_acks, broker.clock = False, 60.0
    send(deltas)
    assert [delta.sequence for delta in broker.log] == [1, 2]


def test_a_restarted_publisher_goes_on_where_the_topic_ends(broker: FakeBroker, store: EmbeddingStore) -> None:
    touch(store, [1])
    send(new_publisher(broker, store))
    touch(store, [2])
    again = new_publisher(broker, store)
    assert (again.sequence, again.next_offset) == (1, 1)
    send(again)
    assert [delta.sequence for delta in broker.log] == [1, 2]


def test_an_erased_entry_goes_out_as_evicted(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    touch(store, [1, 2])
    send(deltas)
    store.erase("t", [1])
    send(deltas)
    assert applied(broker.log) == {2: [1.0, 1.0]}


def test_a_large_delta_is_split_into_messages_that_hold_everything_once(store: EmbeddingStore) -> None:
    touch(store, list(range(1000)))
    store.apply_gradients("u", list(range(500)), np.ones((500, 1), np.float32))
    store.erase("t", list(range(900, 1000)))
    messages = list(delta_messages(store, dict(store.steal_touched()), max_bytes=1000))
    found: dict[str, list[int]] = {"t": [], "u": [], "gone": []}
    for tables in messages:
        assert sum(len(t.fids) + len(t.values) + len(t.evicted_fids) for t in tables) <= 1000
        for table in tables:
            found[table.name] += np.frombuffer(table.fids, "<i8").tolist()
            found["gone"] += np.frombuffer(table.evicted_fids, "<i8").tolist()
    assert found == {"t": list(range(900)), "u": list(range(500)), "gone": list(range(900, 1000))}
