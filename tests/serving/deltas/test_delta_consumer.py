from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from millrace.runtime.deadline import wait_until
from millrace.serving.deltas import delta_consumer
from millrace.serving.deltas.delta_consumer import DeltaConsumer
from millrace.serving.deltas.freshness import VersionFreshness
from tests.fakes.deltas import MemoryModel, make_delta
from tests.fakes.servables import FakeTopic

_SECONDS = 10.0


@pytest.fixture
def model() -> MemoryModel:
    return MemoryModel()


@pytest.fixture
def freshness() -> VersionFreshness:
    return VersionFreshness("m", 1, clock=lambda: 10.0)


Follow = Callable[..., DeltaConsumer]


@pytest.fixture
def follow(model: MemoryModel, freshness: VersionFreshness) -> Iterator[Follow]:
    """follow(topic, as_of_ms=None): a consumer that has started."""
    consumers = []

    def start(topic: FakeTopic, as_of_ms: int | None = None) -> DeltaConsumer:
        consumer = DeltaConsumer("m:1", model.applier, freshness, topic.open_at, {0: 0}, as_of_ms)
        consumers.append(consumer)
        consumer.start()
        return consumer

    yield start
    for consumer in consumers:
        consumer.close()


def test_the_consumer_applies_what_there_is_then_what_comes(model: MemoryModel, follow: Follow) -> None:
    topic = FakeTopic(make_delta(11, {1: 1.0}), b"\xff\xff\xff", make_delta(12, {2: 2.0}))
    consumer = follow(topic)
    assert consumer.wait_caught_up(_SECONDS)
    assert set(model.items) == {1, 2}
    topic.put(make_delta(13, {3: 3.0}))
    wait_until(lambda: 3 in model.items, _SECONDS, "the live delta")
    consumer.close()
    assert topic.closed


def test_a_consumer_without_a_broker_does_not_claim_to_have_caught_up(follow: Follow) -> None:
    topic = FakeTopic()
    topic.at_end = topic.heard = False
    assert not follow(topic).wait_caught_up(0.05)


def test_a_version_does_not_wait_long_for_a_broker_that_is_away(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_consumer, "_BROKER_SECONDS", 0.05)
    topic = FakeTopic()
    topic.at_end = topic.heard = False
    assert not follow(topic).wait_caught_up(10**6)  # does not wait: no broker has answered


def test_a_version_waits_for_its_deltas_while_a_broker_answers(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_consumer, "_BROKER_SECONDS", 0.05)
    topic = FakeTopic()
    topic.at_end = False
    consumer = follow(topic)
    waiting = ThreadPoolExecutor(1).submit(consumer.wait_caught_up, _SECONDS)
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    topic.at_end = True
    assert waiting.result(_SECONDS)


def test_a_stream_of_refused_deltas_is_one_line_of_the_log(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    topic = FakeTopic(*[make_delta(20 + i, epoch=1) for i in range(500)])
    assert follow(topic).wait_caught_up(_SECONDS)
    (record,) = [record for record in caplog.records if "not applied" in record.getMessage()]
    assert "(epoch): is of epoch 1" in record.getMessage()


def test_refused_deltas_are_told_to_the_freshness_and_do_not_make_it_younger(
    model: MemoryModel, freshness: VersionFreshness, follow: Follow
) -> None:
    topic = FakeTopic(
        make_delta(11, {1: 1.0}, created_at_ms=4000, event_time_ms=3000),
        make_delta(12, {1: 9.0}, lineage="other", created_at_ms=9000, event_time_ms=9000),
    )
    assert follow(topic).wait_caught_up(_SECONDS)
    assert (freshness.delta_lag_ms(), freshness.model_age_ms()) == (6000, 7000)
    assert freshness.resync_required


def test_a_topic_made_anew_is_read_from_its_beginning_and_asks_for_a_resync(
    model: MemoryModel, freshness: VersionFreshness, follow: Follow
) -> None:
    topic = FakeTopic(make_delta(11, {1: 1.0}), make_delta(12, {1: 2.0}))
    assert follow(topic).wait_caught_up(_SECONDS)
    topic.begin_anew()
    wait_until(lambda: len(topic.opened) == 2, _SECONDS, "opened again")
    topic.put(make_delta(13, {1: 3.0}))
    wait_until(lambda: model.items == {1: [3.0, -3.0]}, _SECONDS, "the first delta of the new topic")
    assert topic.opened == [{0: 0}, {0: 0}]
    assert freshness.resync_required


def _stamped(count: int) -> list[bytes]:
    """Delta 11 + i is created at (i + 1) * 100 ms."""
    return [make_delta(11 + i, {i: 1.0}, created_at_ms=(i + 1) * 100) for i in range(count)]


def test_a_held_consumer_applies_up_to_the_time_and_reads_nothing_more(model: MemoryModel, follow: Follow) -> None:
    topic = FakeTopic(*_stamped(1000))
    consumer = follow(topic, as_of_ms=300)
    assert consumer.wait_caught_up(_SECONDS)
    wait_until(lambda: topic.closed, _SECONDS, "the topic is closed")
    assert set(model.items) == {0, 1, 2}
    assert len(topic.opened) == 1


def test_the_end_of_a_hold_goes_on_where_it_stood(model: MemoryModel, follow: Follow) -> None:
    topic = FakeTopic(*_stamped(500))
    consumer = follow(topic, as_of_ms=300)
    wait_until(lambda: topic.closed, _SECONDS, "the topic is closed")
    assert consumer.hold(None)
    wait_until(lambda: len(model.items) == 500, _SECONDS, "all deltas")
    assert topic.opened == [{0: 0}, {0: 3}]
    assert not model.applier.resync_required


def test_a_hold_in_place_is_refused_once_later_deltas_are_applied(model: MemoryModel, follow: Follow) -> None:
    topic = FakeTopic(*_stamped(3))
    consumer = follow(topic)
    assert consumer.wait_caught_up(_SECONDS)
    assert not consumer.hold(200)
    assert consumer.hold(300)
    topic.put(make_delta(14, {9: 1.0}, created_at_ms=400))
    wait_until(lambda: topic.closed, _SECONDS, "the topic is closed")
    assert 9 not in model.items
