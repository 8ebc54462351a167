"""What a bundle of writes promises, without a broker."""

import threading
import time

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.display import DisplayData
from confluent_kafka import KafkaError, KafkaException

from millrace.pipelines.kafka import sink
from millrace.pipelines.kafka.sink import KafkaRecord, RecordTooLargeError, WriteToKafka, WriteToKafkaDoFn
from millrace.runtime import telemetry
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError

CONNECTION = KafkaConnection("127.0.0.1:1")
LIMIT = 1000


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
        time.sleep(0 if self.acknowledges else 0.001)
        while self.acknowledges and self.callbacks:
            self.callbacks.pop()(self.error, None)
        return len(self.callbacks)


class _Error:
    def str(self) -> str:
        return "broker says no"


@pytest.fixture(autouse=True)
def producer(monkeypatch: pytest.MonkeyPatch) -> _FakeProducer:
    fake = _FakeProducer()
    monkeypatch.setattr(sink, "make_producer", lambda *_, **__: fake)
    monkeypatch.setattr(sink, "_shared_producers", sink._SharedProducers())
    monkeypatch.setattr(sink, "_largest_record", lambda *_: LIMIT)
    return fake


def _write(*records: KafkaRecord, delivery_seconds: float | None = 60.0) -> None:
    do_fn = WriteToKafkaDoFn(CONNECTION, "t", delivery_seconds=delivery_seconds)
    do_fn.start_bundle()
    for record in records:
        assert list(do_fn.process(record)) == []
    do_fn.finish_bundle()


TWO = (KafkaRecord(b"1"), KafkaRecord(b"2", b"k", 3, (("h", b"v"),)))


def test_a_bundle_ends_when_its_messages_are_acknowledged(producer: _FakeProducer) -> None:
    _write(*TWO)
    assert producer.values == [b"1", b"2"]


def test_a_delivery_error_fails_the_bundle(producer: _FakeProducer) -> None:
    producer.error = _Error()
    with pytest.raises(UndeliveredError, match="t: broker says no"):
        _write(*TWO)


def test_a_missing_acknowledgement_fails_the_bundle_and_replaces_the_producer(producer: _FakeProducer) -> None:
    producer.acknowledges = False
    with pytest.raises(UndeliveredError, match="2 messages not acknowledged"):
        _write(*TWO, delivery_seconds=0.05)
    assert sink._shared_producers._producers == {}


def test_a_bundle_that_is_not_retried_waits_as_long_as_brokers_are_away_and_says_so(
    producer: _FakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "_SLOW_SECONDS", 0.02)
    for outage in range(20):
        producer.acknowledges, producer.values = False, []
        bundle = threading.Thread(target=_write, args=TWO, kwargs={"delivery_seconds": None})
        bundle.start()
        wait_until(lambda: telemetry.WAITS.words() is not None, 30.0, f"wait {outage} is told")
        assert str(telemetry.WAITS.words()).startswith("waiting for Kafka at 127.0.0.1:1 for ")
        assert bundle.is_alive()
        producer.acknowledges = True
        bundle.join(30.0)
        assert not bundle.is_alive() and producer.values == [b"1", b"2"]
        assert telemetry.WAITS.words() is None


def test_a_producer_that_gives_nothing_up_is_not_the_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []
    monkeypatch.setattr(sink, "make_producer", lambda _, **settings: made.append(settings) or _FakeProducer())
    _write(*TWO)
    _write(*TWO, delivery_seconds=None)
    _write(*TWO, delivery_seconds=None)
    assert [settings.get("message_timeout_ms") for settings in made] == [None, 0]


def test_a_refusal_fails_a_bundle_that_would_wait(producer: _FakeProducer) -> None:
    producer.error = _Error()
    with pytest.raises(UndeliveredError, match="t: broker says no"):
        _write(*TWO, delivery_seconds=None)


def test_a_producer_that_has_failed_for_good_is_replaced(
    producer: _FakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    monkeypatch.setattr(producer, "produce", refuse)
    with pytest.raises(UndeliveredError, match="t: Local: Fatal error"):
        _write(*TWO)
    assert sink._shared_producers._producers == {}


def test_a_full_queue_is_waited_for(producer: _FakeProducer, monkeypatch: pytest.MonkeyPatch) -> None:
    produce, full = producer.produce, [BufferError(), BufferError(), BufferError()]

    def refuse(*arguments: object, **settings: object) -> None:
        if full:
            raise full.pop()
        produce(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(producer, "produce", refuse)
    _write(*TWO)
    assert producer.values == [b"1", b"2"]
    full.extend([BufferError(), BufferError()])
    monkeypatch.setattr(producer, "poll", lambda _: full.append(BufferError()))
    with pytest.raises(UndeliveredError, match="the producer's queue is full"):
        _write(*TWO, delivery_seconds=0.05)


@pytest.mark.parametrize(
    "record",
    [KafkaRecord(b"x" * LIMIT), KafkaRecord(b"", b"x" * LIMIT), KafkaRecord(b"", headers=(("h", b"x" * LIMIT),))],
)
def test_a_record_that_is_too_large_is_refused_with_topic_and_size_before_it_is_sent(
    producer: _FakeProducer, record: KafkaRecord
) -> None:
    with pytest.raises(RecordTooLargeError, match=rf"t: a record of 1\d\d\d bytes .*max.message.bytes={LIMIT}"):
        _write(record)
    assert producer.values == []


def test_a_record_that_is_too_large_can_become_an_output(producer: _FakeProducer) -> None:
    large = KafkaRecord(b"x" * LIMIT)
    with beam.Pipeline() as pipeline:
        refused = pipeline | beam.Create([*TWO, large]) | WriteToKafka(CONNECTION, "t", too_large="output")
        assert_that(refused, equal_to([large]))
    assert sorted(producer.values) == [b"1", b"2"]


def test_an_unknown_treatment_of_large_records_is_refused() -> None:
    with pytest.raises(UserError, match="too_large=drop: unknown; choose fail or output"):
        WriteToKafka(CONNECTION, "t", too_large="drop")  # type: ignore[arg-type]


def test_a_write_shows_where_it_writes_and_has_its_type() -> None:
    write = WriteToKafka(CONNECTION, "t")
    shown = {item.key: item.value for item in DisplayData.create_from(write).items}
    assert (shown["brokers"], shown["topic"], shown["too_large"]) == ("127.0.0.1:1", "t", "fail")
    assert (beam.Pipeline() | beam.Create([KafkaRecord(b"")]) | write).element_type == KafkaRecord
