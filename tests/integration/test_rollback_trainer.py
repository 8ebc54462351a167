"""A hold while two real trainers export and send deltas, to agents that share a server: restarts and compaction."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.examples.movies import MovieRanking
from millrace.pipelines.traffic.ratings import RatingsConfig, write_ratings
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection, ensure_topic
from millrace.runtime.topics import Topics
from tests.chaos.rating_blocks import RatingBlocks
from tests.chaos.serving_loop import START_SECONDS, ServingLoop, Watcher, probe
from tests.conftest import RunCli
from tests.fakes.train_blocks import make_batch, produce_blocks

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]  # five processes, each started again or more

MOVIES, FEED = MovieRanking(), FeedRanking()
PATHS = {MOVIES.name: "millrace.examples.movies:MovieRanking", FEED.name: "millrace.examples.feed_ranking:FeedRanking"}
SECONDS = 180.0
# Brokers compact what is older than 100 ms as soon as one record of it is superseded, at their next look.
COMPACTED_SOON = {
    "cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.0001",
    "min.compaction.lag.ms": "0", "max.compaction.lag.ms": "100",
}  # fmt: skip


class Rows:
    """Sends rows of both models twice per second until `close`."""

    def __init__(self, kafka: KafkaConnection, topics: Topics, ratings: Path) -> None:
        self._kafka, self._feed_topic, self._record = kafka, topics.train(FEED.name), 0
        self._ratings = RatingBlocks(kafka, topics.train(MOVIES.name), MOVIES, ratings, 0)
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._loop)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(0.5):
            self._ratings.send(100)
            produce_blocks(self._kafka, self._feed_topic, [make_batch(FEED, self._record, 25)])
            self._record += 25


@pytest.fixture
def loop(kafka: KafkaConnection, zookeeper: str, topics: Topics, tmp_path: Path) -> Iterator[ServingLoop]:
    ensure_topic(kafka, topics.model_events, config=COMPACTED_SOON)
    for task in (MOVIES, FEED):
        ensure_topic(kafka, topics.train(task.name), 4)
    loop = ServingLoop(kafka, zookeeper, topics, tmp_path, "--export-seconds", "2", "--checkpoint-seconds", "1")
    yield loop
    loop.stop()


@pytest.fixture
def rows(loop: ServingLoop, kafka: KafkaConnection, topics: Topics, tmp_path: Path) -> Iterator[None]:
    write_ratings(tmp_path / "ratings", RatingsConfig(ratings=200_000))
    rows = Rows(kafka, topics, tmp_path / "ratings")
    yield
    rows.close()


@pytest.fixture
def watchers(loop: ServingLoop) -> Iterator[dict[str, Watcher]]:
    ids = [*range(1, 41)]
    watchers = {
        MOVIES.name: Watcher(loop.address, MOVIES.name, probe(ids, ids, genres="", year=""), "like"),
        FEED.name: Watcher(loop.address, FEED.name, probe(ids, ids, device="phone", hour=7), "click"),
    }
    yield watchers
    for watcher in watchers.values():
        watcher.close()


def test_a_hold_answers_the_same_bits_through_exports_deltas_restarts_and_compaction(
    kafka: KafkaConnection,
    topics: Topics,
    loop: ServingLoop,
    rows: None,
    watchers: dict[str, Watcher],
    run_millrace: RunCli,
    tmp_path: Path,
) -> None:
    movies, feed = watchers[MOVIES.name], watchers[FEED.name]
    trainers = {model: loop.start_trainer(path, model, name=f"trainer-{model}") for model, path in PATHS.items()}
    processes = [*trainers.values(), loop.start_server(MOVIES.name)]
    processes += [loop.start_agent(model, f"agent-{model}") for model in PATHS]
    for process in processes:
        process.wait_ready(START_SECONDS)
    for watcher in watchers.values():
        wait_until(lambda: watcher.ask() is not None, SECONDS, "the server answers")  # noqa: B023
        watcher.start()

    def versions(model: str = MOVIES.name) -> list[int]:
        return sorted(each.version for each in loop.events(model) if each.kind == ModelEvent.EXPORT)

    def wait_moves() -> None:
        """Both models export and send deltas, and the answers of the other one change."""
        newest, deltas, states = versions()[-1], len(loop.deltas(MOVIES.name)), len(feed.states)

        def moved() -> bool:
            for trainer in trainers.values():
                assert trainer.running(), trainer.log_tail()
            return versions()[-1] > newest and len(loop.deltas(MOVIES.name)) > deltas + 2 and len(feed.states) > states

        wait_until(moved, SECONDS, "a further export, deltas, and another answer of the other model", 0.2)

    def told(command: str, *words: str) -> None:
        address = ("--kafka", kafka.bootstrap_servers, "--topic-prefix", topics.prefix, "--reason", "test")
        done = run_millrace(command, "--model", MOVIES.name, *words, *address, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr

    wait_moves()
    version = versions()[-1]
    wait_moves()
    told("rollback", "--to", str(version))
    held = movies.ask()
    assert held is not None and held[1] == version
    since = len(movies.states)

    def check_held() -> None:
        wait_until(lambda: movies.ask() == held, SECONDS, "the server answers as it did when it was held")
        wait_moves()
        assert {state[1:] for state in movies.states[since:]} <= {held}

    check_held()
    trainers[MOVIES.name].kill()
    trainers[MOVIES.name] = loop.start_trainer(PATHS[MOVIES.name], MOVIES.name, name=f"trainer-{MOVIES.name}")
    trainers[MOVIES.name].wait_ready(START_SECONDS)
    check_held()
    for again in (f"agent-{MOVIES.name}", "server"):
        loop.restart(again)
        check_held()

    wait_until(lambda: version not in versions(), SECONDS, "the topic is compacted", 0.5)
    loop.stop(f"agent-{MOVIES.name}")
    (tmp_path / f"agent-{MOVIES.name}.json").unlink()  # nothing but the topic is left to say so
    loop.restart("server")
    loop.restart(f"agent-{MOVIES.name}")
    check_held()

    told("release")
    wait_until(lambda: movies.now()[2] > version, SECONDS, "the newest version is served")
    moving = len(movies.states)
    wait_until(lambda: len(movies.states) > moving, SECONDS, "its deltas are served")
