"""What the brokers tell about topics, and what stands for it where they do not."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, Uuid

from millrace.runtime import kafka_topics
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.kafka_topics import KafkaTopic, TopicDescriber


def _done(result: object) -> Future:
    future: Future = Future()
    if isinstance(result, int):
        future.set_exception(KafkaException(KafkaError(result)))
    else:
        future.set_result(result)
    return future


class _Admin:
    def __init__(self, cluster: object, topics: dict[str, object]) -> None:
        self.cluster, self.topics = cluster, topics

    def describe_cluster(self, request_timeout: float) -> Future:
        return _done(self.cluster)

    def describe_topics(self, topics: object, request_timeout: float) -> dict[str, Future]:
        return {name: _done(result) for name, result in self.topics.items()}

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions={1: None, 0: None})})


def _topic(topic_id: Uuid | None) -> SimpleNamespace:
    return SimpleNamespace(topic_id=topic_id, partitions=[SimpleNamespace(id=1), SimpleNamespace(id=0)])


def _describe(monkeypatch: pytest.MonkeyPatch, admin: _Admin) -> dict[str, KafkaTopic]:
    monkeypatch.setattr(kafka_topics, "make_admin", lambda _: admin)
    return TopicDescriber(KafkaConnection("here:1")).describe(list(admin.topics), 1.0)


def test_a_topic_has_the_ids_of_itself_and_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = _Admin(SimpleNamespace(cluster_id="c"), {"t": _topic(Uuid(1, 2)), "gone": KafkaError.UNKNOWN_TOPIC_OR_PART})
    assert _describe(monkeypatch, admin) == {"t": KafkaTopic("c", str(Uuid(1, 2)), (0, 1))}


def test_names_stand_for_ids_that_brokers_do_not_tell_and_a_warning_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denied = KafkaError.TOPIC_AUTHORIZATION_FAILED
    found = _describe(monkeypatch, _Admin(denied, {"old": _topic(Uuid(0, 0)), "denied": denied}))
    assert found == {
        "old": KafkaTopic("here:1", "name:old", (0, 1)),
        "denied": KafkaTopic("here:1", "name:denied", (0, 1)),
    }
    assert len(caplog.records) == 1 and "made anew" in caplog.text


def test_an_answer_that_does_not_come_is_an_error_and_no_other_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaException):
        _describe(monkeypatch, _Admin(SimpleNamespace(cluster_id="c"), {"t": KafkaError._TIMED_OUT}))
