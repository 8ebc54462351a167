import threading

import pytest

from millrace.runtime import telemetry
from millrace.runtime.deadline import wait_until
from millrace.runtime.errors import UnreachableError, UserError
from millrace.serving.agent.late import EventReader, Late, LateEvents
from tests.fakes.servables import FakeTopic

_SECONDS = 10.0


class _Door:
    """Makes a topic once it is open; before that its server is away."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.topic = FakeTopic(b"event")

    def __call__(self) -> FakeTopic:
        if not self.is_open.is_set():
            raise UnreachableError("--kafka", "h:1", "no broker answers", "start one")
        return self.topic


def test_events_come_once_their_broker_answers_and_healthz_says_what_is_waited_for() -> None:
    door = _Door()
    late: Late[EventReader] = Late(door, "Kafka at late:1")
    events = LateEvents(late)
    assert events.read(seconds=0.0) == []
    assert not events.reached_end()
    wait_until(lambda: "Kafka at late:1" in (telemetry.WAITS.words() or ""), _SECONDS, "the wait is told")
    door.is_open.set()
    wait_until(lambda: late.get() is not None, _SECONDS, "the client")
    assert [record.value for record in events.read()] == [b"event"]
    assert events.reached_end()
    assert "Kafka at late:1" not in (telemetry.WAITS.words() or "")
    late.close()
    assert door.topic.closed


def test_a_wait_ends_when_the_process_does() -> None:
    late = Late(_Door(), "Kafka at never:1")
    late.close()
    assert late.get() is None


def test_a_wrong_setting_is_no_outage() -> None:
    def make() -> FakeTopic:
        raise UserError("--kafka-properties", "f", "refused", "correct it")

    late: Late[EventReader] = Late(make, "Kafka at refused:1")
    late._thread.join()
    with pytest.raises(UserError, match="--kafka-properties=f"):
        LateEvents(late).read()
    late.close()
