"""Waiting for servers that are away: without limit, told, and never for what is wrong."""

import logging
import threading
import urllib.request

import pytest
from confluent_kafka import KafkaError, KafkaException

from millrace.runtime import outage, telemetry
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import StoppedError, UnreachableError, UserError
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic
from millrace.runtime.servers.dev_servers import DevServers

AWAY = UnreachableError("--kafka", "h:1", "no Kafka broker answers (refused)", "start one")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_RETRY_SECONDS", 0.01)


def failing(times: int, error: Exception) -> object:
    calls = iter(range(times))

    def ask() -> str:
        if next(calls, None) is None:
            return "answer"
        raise error

    return ask


@pytest.mark.parametrize("error", [AWAY, KafkaException(KafkaError(KafkaError._TRANSPORT))])
def test_a_server_that_is_away_is_asked_until_it_answers(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millrace.runtime.outage")
    assert outage.while_away(failing(200, error), "Kafka at h:1") == "answer"
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("waiting for Kafka at h:1 for 0 s: ") and last.startswith("Kafka at h:1 is back after")
    assert telemetry.WAITS.words() is None


@pytest.mark.parametrize(
    "error",
    [
        UserError("--kafka-properties", "f", "refused", "correct it"),
        KafkaException(KafkaError(KafkaError._AUTHENTICATION)),
        ValueError("a bug"),
    ],
)
def test_what_is_wrong_is_not_waited_for(error: Exception) -> None:
    with pytest.raises(type(error)):
        outage.while_away(failing(1, error), "Kafka at h:1")


def test_a_wait_ends_when_what_comes_back_finds_a_wrong_setting() -> None:
    errors = iter([AWAY, AWAY, UserError("topic", "t", "the topic does not exist", "create it")])

    def ask() -> None:
        raise next(errors)

    with pytest.raises(UserError, match="does not exist"):
        outage.while_away(ask, "Kafka at h:1")


def test_a_process_that_waits_says_so_and_can_be_stopped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stop, ended = threading.Event(), []

    def wait() -> None:
        with pytest.raises(StoppedError):
            outage.wait_for_kafka(KafkaConnection("127.0.0.1:1"), stop)
        ended.append(True)

    endpoint = telemetry.MetricsEndpoint()
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        wait_until(lambda: telemetry.WAITS.words() is not None, 30.0, "the wait is told")
        with urllib.request.urlopen(f"http://{endpoint.address}/healthz", timeout=10) as answer:
            assert answer.read().decode().startswith("waiting for Kafka at 127.0.0.1:1 for ")
        with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=10) as answer:
            assert b"millrace_waiting_seconds 0.0\n" not in answer.read()
    finally:
        stop.set()
        thread.join()
        endpoint.close()
    assert ended and "is back" not in caplog.text


def test_waits_for_one_server_are_told_once_with_the_longest_time() -> None:
    now = 0.0
    waits = telemetry.Waits(clock=lambda: now)
    with waits.entry("Kafka at h:1"):
        now = 5.0
        with waits.entry("Kafka at h:1"), waits.entry("ZooKeeper at h:2"):
            now = 7.0
            assert waits.words() == "waiting for Kafka at h:1 for 7 s, waiting for ZooKeeper at h:2 for 2 s"
            assert waits.seconds() == 7.0
    assert waits.words() is None and waits.seconds() == 0.0


@pytest.mark.service
def test_a_broker_that_comes_back_ends_the_wait(own_servers: DevServers) -> None:
    connection = KafkaConnection(own_servers.kafka_address)
    own_servers.kafka.kill()
    done = threading.Event()

    def ask() -> None:
        outage.while_away(lambda: ensure_topic(connection, "a"), f"Kafka at {connection.bootstrap_servers}")
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: telemetry.WAITS.words() is not None, 60.0, "the wait is told")
    own_servers.kafka.restart()
    assert done.wait(60.0)
    thread.join()
