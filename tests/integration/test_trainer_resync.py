"""A delta that a server lost leads to an export within seconds, though the next one by schedule is an hour away."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic, flush_or_raise, make_producer
from millrace.runtime.topics import Topics
from millrace.training.online.options import OnlineOptions
from millrace.training.online.trainer import train_online
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = pytest.mark.service

TASK = FeedRanking()
_SECONDS = 90.0


@pytest.fixture
def exports(kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> Iterator[Path]:
    """The folder of the versions of a trainer in this process that has learned a block and exported it."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            train_online(TASK, kafka, topics, OnlineOptions(tmp_path, export_seconds=3600.0, create_topics=True), stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    folder = tmp_path / "exports" / "standalone"
    try:
        produce_blocks(kafka, topics.train(TASK.name), [make_batch(TASK, 0, 10, audit=False)])
        wait_until(lambda: bool(errors or versions(folder)), _SECONDS, "the first export")
        yield folder
    finally:
        stop.set()
        thread.join(_SECONDS)
    assert not errors


def versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def forced() -> float:
    return prometheus_client.REGISTRY.get_sample_value("millrace_exports_forced_total", {"reason": "resync"}) or 0.0


def say(kafka: KafkaConnection, topics: Topics, version: int) -> None:
    """What an agent says of a server that has met a gap in the deltas."""
    status = {
        "model_name": TASK.name, "bzid": "default", "target_version": version, "is_held": False,
        "resync_required": True,
    }  # fmt: skip
    producer = make_producer(kafka)
    producer.produce(topics.serving_status, json.dumps(status).encode(), b"replica")
    flush_or_raise(producer)


def test_a_server_that_lost_a_delta_gets_an_export_at_once_and_one_only(
    exports: Path, kafka: KafkaConnection, topics: Topics
) -> None:
    (first,) = versions(exports)
    before = forced()
    ensure_topic(kafka, topics.serving_status)  # no agent had reported when the trainer began
    # Nothing was learned since the first export: the server needs another version all the same.
    wait_until(lambda: say(kafka, topics, first) or len(versions(exports)) == 2, _SECONDS, "an export", 0.5)
    assert forced() == before + 1
    # Those that repeat what is answered are read before the one of the new version.
    for _ in range(5):
        say(kafka, topics, first)
    assert versions(exports)[0] == first and forced() == before + 1
