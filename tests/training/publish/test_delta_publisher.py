"""Deltas: absolute values in numbered messages; nothing is forgotten when the broker fails."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from millrace.ops.embedding_table import EmbeddingStore, TouchedKeys
from millrace.ops.table_config import Sgd, TableConfig, Zeros
from millrace.protos.model_delta_pb2 import ModelDelta
from millrace.training.publish import delta_publisher
from millrace.training.publish.delta_publisher import DeltaPublisher
from millrace.training.publish.delta_split import delta_messages
from millrace.training.publish.outbox import Outbox
from millrace.training.publish.published import ModelWriter
from millrace.training.publish.transactions import TransactionalProducer
from millrace.training.state.lease import LeaseLostError


class FakeRecord:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset


class FakeBroker:
    """One partition; `refuse` makes commits fail, `lose_answers` commits and reports a failure all the same."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes]] = []
        self.refuse = self.lose_answers = False
        self.limit = 10_000_000
        self.clock = 0.0
        self.turn: FakeProducer | None = None

    def make(self, *_: Any, **settings: Any) -> "FakeProducer":
        return FakeProducer(self, settings["message_max_bytes"])

    @property
    def deltas(self) -> list[ModelDelta]:
        return [ModelDelta.FromString(value) for topic, value in self.log if topic == "d"]


def kafka_error(code: int, **kinds: bool) -> KafkaException:
    return KafkaException(KafkaError(code, "refused", **kinds))


class FakeProducer:
    def __init__(self, broker: FakeBroker, batch_bytes: int) -> None:
        self._broker, self._batch_bytes, self._records = broker, batch_bytes, []

    def init_transactions(self, _: float) -> None:
        self._broker.turn = self

    def begin_transaction(self) -> None:
        self._records = []

    def produce(self, topic: str, value: bytes, key: Any, partition: int, on_delivery: Any) -> None:
        self._records.append((topic, value, on_delivery))

    def flush(self, _: float) -> int:
        offset = len(self._broker.log)
        for number, (_, value, done) in enumerate(self._records):
            too_large = max(len(value), self._batch_bytes) > self._broker.limit
            done(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE) if too_large else None, FakeRecord(offset + number))
        return 0

    def commit_transaction(self, _: float) -> None:
        if self._broker.turn is not self:
            raise kafka_error(KafkaError._FENCED, fatal=True)
        if not self._broker.refuse:
            self._broker.log += [(topic, value) for topic, value, _ in self._records]
        if self._broker.refuse or self._broker.lose_answers:
            raise kafka_error(KafkaError._TIMED_OUT)

    def purge(self) -> None:
        self._records = []


class FakeDense:
    names = ["logit/kernel"]

    def __init__(self) -> None:
        self.variables = [np.ones((2, 1), np.float32)]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    made = FakeBroker()
    monkeypatch.setattr(
        delta_publisher,
        "newest_delta",
        lambda *_: (made.deltas[-1] if made.deltas else None, len(made.log)),
    )
    return made


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Iterator[EmbeddingStore]:
    name = f"test/{request.node.name}"
    yield EmbeddingStore([TableConfig("t", 2, Sgd(1.0), Zeros()), TableConfig("u", 1, Sgd(1.0), Zeros())], name)
    EmbeddingStore.release(name)


def new_outbox(broker: FakeBroker, taken_over: Callable[[], str | None] = lambda: None) -> Outbox:
    return Outbox(TransactionalProducer(None, "id", 1_000_000, broker.make), taken_over)  # type: ignore[arg-type]


def new_publisher(broker: FakeBroker, store: EmbeddingStore, **settings: Any) -> DeltaPublisher:
    return DeltaPublisher(
        settings.pop("outbox", None) or new_outbox(broker),
        None,  # type: ignore[arg-type]
        "d",
        ModelWriter("m", "l", settings.pop("epoch", 3)),
        store,
        settings.pop("dense", None) or FakeDense(),  # type: ignore[arg-type]
        clock=lambda: broker.clock,
        **settings,
    )


def touch(store: EmbeddingStore, ids: list[int]) -> None:
    store.apply_gradients("t", ids, np.full((len(ids), 2), -1.0, np.float32))


def send(deltas: DeltaPublisher, step: int = 1) -> int:
    sent = deltas.publish(step, base_version=5, event_time_ms=99)
    deltas.flush(30.0)
    return sent


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
    assert send(deltas) == 0
    assert applied(broker.deltas) == {3: [1.0, 1.0], 4: [1.0, 1.0]}
    tables, dense = broker.deltas
    assert (tables.sequence, tables.base_version, tables.global_step, tables.event_time_ms) == (1, 5, 11, 99)
    assert (tables.model_name, tables.lineage, tables.epoch, tables.schema_version) == ("m", "l", 3, 2)
    assert dense.dense[0].name == "logit/kernel" and list(dense.dense[0].shape) == [2, 1]
    assert deltas.position == (2, 2)


def test_a_heartbeat_follows_each_second_in_which_nothing_changed(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    sent = []
    for _ in range(4):
        sent.append(send(deltas, step=7))
        broker.clock += 0.5
    assert sent == [1, 0, 1, 0]  # the first with the dense variables
    last = broker.deltas[-1]
    assert (last.sequence, last.global_step, last.event_time_ms, len(last.tables), len(last.dense)) == (2, 7, 99, 0, 0)


def test_a_refused_delta_goes_out_later_with_the_values_of_then(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    touch(store, [3])
    broker.refuse = True
    send(deltas)
    touch(store, [3, 8])
    send(deltas)  # the broker is given time to come back
    broker.refuse, broker.clock = False, 60.0
    send(deltas)
    assert applied(broker.deltas) == {3: [2.0, 2.0], 8: [1.0, 1.0]}
    assert [delta.sequence for delta in broker.deltas] == [1, 2]
    assert [len(delta.dense) for delta in broker.deltas] == [0, 1]


def test_forgotten_ids_are_told_to_servers_until_they_have_heard_and_an_export_follows(
    broker: FakeBroker, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = new_publisher(broker, store)
    broker.refuse = True
    monkeypatch.setattr(store, "steal_touched", lambda: TouchedKeys({}, ["t"]))
    send(deltas)
    monkeypatch.undo()
    assert [deltas.has_lost_ids(), deltas.has_lost_ids()] == [True, False]
    broker.refuse, broker.clock = False, 60.0
    monkeypatch.setattr(delta_publisher, "newest_delta", lambda *_: (None, 0))
    send(deltas)
    touch(store, [1])
    send(deltas)
    assert [delta.ids_forgotten for delta in broker.deltas] == [True, False]


def test_a_lost_answer_does_not_reuse_a_sequence_number(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    broker.lose_answers = True
    touch(store, [3])
    send(deltas)
    broker.lose_answers, broker.clock = False, 60.0
    send(deltas)
    assert [delta.sequence for delta in broker.deltas] == [1, 2, 3, 4]
    assert applied(broker.deltas) == {3: [1.0, 1.0]}


def test_a_restarted_publisher_goes_on_where_the_topic_ends(broker: FakeBroker, store: EmbeddingStore) -> None:
    touch(store, [1])
    send(new_publisher(broker, store))
    touch(store, [2])
    again = new_publisher(broker, store, epoch=4)
    send(again)
    assert [(delta.epoch, delta.sequence) for delta in broker.deltas] == [(3, 1), (3, 2), (4, 3), (4, 4)]


def test_numbers_go_on_from_the_checkpoint_when_the_topic_was_emptied(
    broker: FakeBroker, store: EmbeddingStore
) -> None:
    deltas = new_publisher(broker, store, sequence=500)
    touch(store, [1])
    send(deltas)
    assert broker.deltas[0].sequence == 501


def test_a_publisher_whose_successor_has_begun_sends_nothing_more_and_says_who_it_is(
    broker: FakeBroker, store: EmbeddingStore
) -> None:
    outbox = new_outbox(broker, lambda: "the trainer of epoch 4")
    zombie = new_publisher(broker, store, outbox=outbox)
    send(zombie)
    successor = new_publisher(broker, store, epoch=4)
    send(successor)
    touch(store, [1])
    send(zombie)
    with pytest.raises(LeaseLostError, match="epoch 4 has taken over"):
        outbox.check()
    broker.clock = 60.0
    send(zombie)
    assert [delta.epoch for delta in broker.deltas] == [3, 4]


def test_a_publisher_whose_transaction_took_too_long_goes_on(broker: FakeBroker, store: EmbeddingStore) -> None:
    outbox = new_outbox(broker)
    deltas = new_publisher(broker, store, outbox=outbox)
    send(deltas)
    broker.turn = None  # the broker has ended its turn, and nobody else has one
    touch(store, [1])
    send(deltas)
    broker.clock = 60.0
    send(deltas)
    outbox.check()
    assert applied(broker.deltas) == {1: [1.0, 1.0]}


@pytest.mark.parametrize("kilobytes", [280, 3000])
def test_dense_variables_of_any_size_go_out_in_parts_that_fit(
    broker: FakeBroker, store: EmbeddingStore, kilobytes: int
) -> None:
    dense = FakeDense()
    dense.names = ["big/kernel", "bias"]
    dense.variables = [np.random.default_rng(1).random((kilobytes * 25, 10), np.float32), np.ones(3, np.float32)]
    broker.limit = 1_000_000
    deltas = new_publisher(broker, store, dense=dense, record_bytes=900_000)
    touch(store, list(range(100_000)))
    send(deltas)
    assert all(len(value) <= 900_000 for _, value in broker.log)
    assert not any(delta.tables and delta.dense for delta in broker.deltas)
    for name, variable in zip(dense.names, dense.variables, strict=True):
        parts = [part for delta in broker.deltas for part in delta.dense if part.name == name]
        found = np.zeros(variable.size, np.float32)
        for part in parts:
            values = np.frombuffer(part.data, "<f4")
            found[part.first : part.first + len(values)] = values
            assert tuple(part.shape) == variable.shape
        np.testing.assert_array_equal(found.reshape(variable.shape), variable)
    assert len(applied(broker.deltas)) == 100_000


def test_only_dense_variables_that_changed_go_out_again_and_at_their_own_interval(
    broker: FakeBroker, store: EmbeddingStore
) -> None:
    dense = FakeDense()
    dense.names = ["a", "b"]
    dense.variables = [np.ones(2, np.float32), np.ones(2, np.float32)]
    deltas = new_publisher(broker, store, dense=dense, dense_seconds=10.0)
    send(deltas)
    dense.variables[1] = np.zeros(2, np.float32)
    broker.clock = 5.0
    send(deltas)
    broker.clock = 10.0
    send(deltas)
    assert [[part.name for part in delta.dense] for delta in broker.deltas] == [["a", "b"], [], ["b"]]


def test_what_is_not_finite_is_left_out(
    broker: FakeBroker, store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    dense = FakeDense()
    dense.variables = [np.array([[1.0], [np.nan]], np.float32)]
    deltas = new_publisher(broker, store, dense=dense)
    touch(store, [1, 2])
    looked_up = store.lookup
    store.lookup = lambda table, ids: np.where(np.asarray(ids)[:, None] == 2, np.inf, looked_up(table, ids))  # type: ignore[method-assign]
    send(deltas)
    assert applied(broker.deltas) == {1: [1.0, 1.0]}
    assert not any(delta.dense for delta in broker.deltas)
    assert "table t: 1 entries are not finite" in caplog.text
    assert "1 of 1 dense variables are not finite" in caplog.text


def test_messages_get_smaller_when_the_topic_takes_less_than_it_did(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    broker.limit = 200_000
    touch(store, list(range(50_000)))
    for _ in range(5):
        send(deltas)
    assert len(applied(broker.deltas)) == 50_000
    assert all(len(value) <= 200_000 for _, value in broker.log)


def test_what_fits_into_no_message_is_left_to_exports_and_not_tried_for_ever(
    broker: FakeBroker, store: EmbeddingStore
) -> None:
    deltas = new_publisher(broker, store)
    broker.limit = 100
    touch(store, [1])
    for _ in range(10):
        send(deltas)
    assert deltas.has_lost_ids()
    assert not store.steal_touched()


def test_an_erased_entry_goes_out_as_evicted(broker: FakeBroker, store: EmbeddingStore) -> None:
    deltas = new_publisher(broker, store)
    touch(store, [1, 2])
    send(deltas)
    store.erase("t", [1])
    send(deltas)
    assert applied(broker.deltas) == {2: [1.0, 1.0]}


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
