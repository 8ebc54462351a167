"""What the parts of one process share, and that no feed sees what an earlier one left."""

import threading
import time
from collections.abc import Iterator

import pytest

from millrace.pipelines.kafka import process
from millrace.pipelines.kafka.process import (
    FIRST_POLL,
    HEARTBEAT,
    RESTING,
    SHARDS,
    LostShardError,
    ShardCache,
    begin_feed,
    progress_of,
)
from millrace.pipelines.kafka.reader import KafkaBlockReader


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    begin_feed()
    yield
    begin_feed()


def test_a_feed_begins_without_what_an_earlier_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(HEARTBEAT, "_clock", lambda: now)
    reader = object.__new__(KafkaBlockReader)
    HEARTBEAT.beat()
    FIRST_POLL.set()
    RESTING.put("source", {("t", 0): 1}, reader)
    SHARDS.put("run", 0, "machine")
    SHARDS.lend("run", 1)
    progress_of("feed").finished(0, 1, {1: 5}, {})
    now += 1000.0
    assert HEARTBEAT.reason() is not None
    begin_feed()
    assert HEARTBEAT.reason() is None
    assert not FIRST_POLL.is_set()
    assert RESTING.take("source", {("t", 0): 1}) is None
    assert SHARDS.take("run", 0) is None
    assert SHARDS.lend("run", 1) is None  # and nobody has it, so this does not wait
    assert progress_of("feed").processed(1) is None


def test_nothing_that_a_process_shares_is_left_out_of_that() -> None:
    """Whoever adds an object to the module has to drop it in `begin_feed` as well, and to test that above."""
    shared = {name for name in process.__all__ if name.isupper()}
    assert shared == {"FIRST_POLL", "HEARTBEAT", "RESTING", "SHARDS"}


def test_feeds_of_one_process_do_not_share_their_progress() -> None:
    assert progress_of("a") is progress_of("a") is not progress_of("b")


def test_only_the_reader_that_rests_at_a_place_leaves_it() -> None:
    first, second = object.__new__(KafkaBlockReader), object.__new__(KafkaBlockReader)
    RESTING.put("source", {("t", 0): 1}, first)
    RESTING.put("source", {("t", 0): 1}, second)
    RESTING.remove("source", {("t", 0): 1}, first)
    assert RESTING.take("source", {("t", 0): 1}) is second
    assert RESTING.take("source", {("t", 0): 1}) is None


def test_a_shard_is_lent_to_one_bundle_at_a_time() -> None:
    cache = ShardCache()
    assert cache.lend("run", 0) is None
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(cache.lend("run", 0)))
    waiting.start()
    cache.put("run", 0, "machine")
    waiting.join(30.0)
    assert got == ["machine"]


def test_a_bundle_that_waits_for_the_shard_of_a_failed_one_fails_too() -> None:
    for _ in range(50):
        cache, raised = ShardCache(), []
        cache.lend("run", 0)

        def lend(cache: ShardCache = cache, raised: list[str] = raised) -> None:
            with pytest.raises(LostShardError) as error:
                cache.lend("run", 0)
            raised.append(str(error.value))

        waiting = threading.Thread(target=lend)
        waiting.start()
        cache.lose("run", 0)
        waiting.join(30.0)
        assert raised == ["shard 0 went down with a bundle that failed"]
        cache.clear()
        assert cache.lend("run", 0) is None


def test_other_shards_are_not_lost() -> None:
    cache = ShardCache()
    cache.lend("run", 0)
    cache.lose("run", 0)
    assert cache.lend("run", 1) is None
