"""Dead letters whose broker is away: they wait, and so does what must not pass them."""

import pytest

from millrace.runtime.kafka_client import KafkaConnection, UndeliveredError
from millrace.training.stream import dead_letter_writer
from millrace.training.stream.dead_letter_writer import DeadLetterWriter
from millrace.training.stream.gate import Refused

NOWHERE = KafkaConnection("127.0.0.1:1")


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> DeadLetterWriter:
    monkeypatch.setattr(dead_letter_writer, "ensure_topic", lambda *_: None)
    return DeadLetterWriter(NOWHERE, "dead", "train")


def test_what_passes_an_undelivered_dead_letter_waits_and_fails_in_the_end(writer: DeadLetterWriter) -> None:
    writer.wait(writer.last, 0.0)
    writer.send(Refused("not_arrow", "why", 0, (b"a", b"b")), 3, 17)
    assert writer.last == 2
    writer.wait(0, 0.0)
    with pytest.raises(UndeliveredError, match="2 dead letters"):
        writer.wait(2, 0.1)


def test_letters_wait_up_to_a_limit_of_memory(writer: DeadLetterWriter) -> None:
    assert not writer.full
    writer.send(Refused("not_arrow", "why", 0, (bytes(1_000_000),) * 80), 3, 17)
    assert writer.full
