"""Poisons the rows of a trainer that is served, and measures what the guard lets through.

python -m tests.chaos.poison [--seeds 10] [--seed N] [--data FOLDER] [--keep FOLDER]

Each seed trains a model of its own on ratings up to a place that the seed chooses. Then rows come at 1,000 per second,
in turn clean and of each kind of poison, and a client asks the server all the time. A run passes when

- publishing stops before the model has learned more than 3 s (event time) of poisoned rows, and no delta is created
  after the alarm;
- the server is held as of a time before the first poisoned row: it answers, bit for bit, what it answered once before
  the hold, or what it answers after a restart, and goes on so;
- `/healthz` of the trainer and the event say why;
- `millrace train --resume-from-good` goes on with rows that follow, and servers are released by themselves;
- no request fails meanwhile.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from millrace.examples.movies import MovieRanking
from millrace.pipelines.traffic.ratings import RatingsConfig, write_ratings
from millrace.protos.model_event_pb2 import ModelEvent
from millrace.runtime.child_process import ChildProcess
from millrace.runtime.deadline import wait_until
from millrace.runtime.kafka_client import KafkaConnection
from millrace.runtime.servers.dev_servers import DevServers
from millrace.runtime.topics import Topics
from millrace.training.state.checkpoint import newest_manifest
from millrace.training.state.guard_file import GuardState, read_guard_state
from millrace.transforms.batch import record_batch
from tests.benchmarks.bench_guard import KINDS
from tests.chaos.rating_blocks import RatingBlocks
from tests.chaos.serving_loop import START_SECONDS, ServingLoop, Watcher, health, probe

_TASK = MovieRanking()
_PATH = "millrace.examples.movies:MovieRanking"
_MOST_SECONDS = 3.0  # of poisoned rows, in event time
_POISONED_ROWS = 4_000  # what is not found by then is not found
_FIRST_ROWS = (12_000, 52_000)  # clean ones before the first poison; the guard judges after some 10,000
_CLEAN_ROWS = (
    4_000  # before each poison, at the rate of the event time: deltas are out that an alarm must not take back
)
_NEXT_ROWS = 8_000  # after `--resume-from-good`; the guard is content after some 3,000
_BEHIND_ROWS = 500  # after the release: the checkpoint with them ends the alarm
_SECONDS = 180.0
# Exports and checkpoints come more often than by default, so that a run is short.
_FLAGS = ("--export-seconds", "5", "--checkpoint-seconds", "2", "--create-topics")


@dataclass(frozen=True)
class Result:
    """One run; `problem` is "" when it passed.

    Attributes:
      rows, event_seconds: poisoned rows learned before the stop, and the event time between the first and last of them.
      late_deltas: deltas created after the alarm.
      asked, failed: requests from the poison to the release.
      held_seconds, back_seconds: from the first poisoned row until servers are held, and from the start with
        `--resume-from-good` until they serve a newer version.
      reason: of the alarm.
    """

    kind: str
    seed: int
    rows: int = 0
    event_seconds: float = 0.0
    late_deltas: int = 0
    asked: int = 0
    failed: int = 0
    held_seconds: float = 0.0
    back_seconds: float = 0.0
    reason: str = ""
    problem: str = ""

    def line(self) -> str:
        cells = (
            f"{self.seed:>4}  {self.kind:<20}", f"{self.rows:>6}", f"{self.event_seconds:>7.2f}",
            f"{self.late_deltas:>6}", f"{self.failed:>4} of {self.asked:<5}", f"{self.held_seconds:>6.1f}",
            f"{self.back_seconds:>6.1f}",
        )  # fmt: skip
        return "  ".join((*cells, f"FAILED: {self.problem}" if self.problem else f"ok: {self.reason}"))


HEADER = f"{'seed':>4}  {'kind':<20}    rows  event s  deltas  failed requests  held s  back s"


def run_seed(kafka: KafkaConnection, zookeeper: str, data: Path, seed: int, folder: Path) -> Iterator[Result]:
    """Poisons one model with each kind in turn; one that fails ends the seed. `folder` keeps the logs."""
    folder.mkdir(parents=True)
    topics = Topics(f"poison-{seed}-{time.time_ns() // 1_000_000}.")
    loop = ServingLoop(kafka, zookeeper, topics, folder, *_FLAGS)
    run = _Seed(loop, RatingBlocks(kafka, topics.train(_TASK.name), _TASK, data, seed), seed)
    kinds = list(KINDS)
    random.Random(seed).shuffle(kinds)
    kind = kinds[0]
    try:
        run.begin()
        for kind in kinds:
            yield run.poison(kind)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:  # the other seeds must still run
        yield Result(kind, seed, problem=str(error)[:300])
    finally:
        run.close()


class _Seed:
    """One model, from its birth."""

    def __init__(self, loop: ServingLoop, blocks: RatingBlocks, seed: int) -> None:
        self._loop, self._blocks, self._seed = loop, blocks, seed
        self._model_dir, self._starts = loop.model_dir(_TASK.name), 0
        rows = blocks.rows.slice(0, 64)
        inputs = probe(
            rows.column(record_batch.UID).to_pylist(), rows.column(record_batch.ITEM_ID).to_pylist(), genres="", year=""
        )
        self._watcher = Watcher(loop.address, _TASK.name, inputs, "like")

    def begin(self) -> None:
        """Starts all, and returns once the server answers a model that has learned the first rows."""
        self._trainer = self._start_trainer()
        server, agent = self._loop.start_server(_TASK.name), self._loop.start_agent(_TASK.name)
        self._blocks.send(random.Random(self._seed).randrange(*_FIRST_ROWS))
        for process in (self._trainer, server, agent):
            process.wait_ready(START_SECONDS)
        self._wait(lambda: self._watcher.ask() is not None, "the server answers")
        self._watcher.start()

    def poison(self, kind: str) -> Result:
        """From clean rows through an alarm to the release."""
        model, watcher = _TASK.name, self._watcher
        self._wait_until_learned()
        self._blocks.send_slowly(_CLEAN_ROWS)
        asked, failed = watcher.asked, len(watcher.failed)
        poison = self._blocks.send_poison(_POISONED_ROWS, kind, lambda: self._state() is not None)
        self._wait(lambda: self._state() is not None, "an alarm", 20.0)
        state = self._alarm()
        hold = self._wait_held(state.reason)
        held_seconds = time.time() - poison.sent_ms / 1000
        held_answer = watcher.now()[1]
        # A busy server may apply two deltas between two requests; then nobody has seen what it is held at.
        was_seen = watcher.seen_before(held_answer, hold.created_at_ms)
        code, why = health(self._trainer)
        assert code == 503 and state.reason in why, f"/healthz says {code} {why}"
        assert self._trainer.stop(60.0) == 0, self._trainer.log_tail()
        late = [each for each in self._loop.deltas(model) if each.created_at_ms > hold.created_at_ms]
        assert watcher.now()[1] == held_answer, "the answer changes while the model is held"
        failures = watcher.failed[failed:]
        if not was_seen:
            self._check_a_restarted_server(held_answer)
        failed = len(watcher.failed)
        back_seconds = self._resume(held_answer, hold)
        failures += watcher.failed[failed:]
        rows, event_seconds = poison.learned(state.offsets)
        problems = {
            f"{event_seconds:.2f} s of poisoned rows were learned": event_seconds > _MOST_SECONDS,
            f"{len(late)} deltas were created after the alarm": bool(late),
            f"servers are held as of {hold.as_of_ms - poison.sent_ms} ms after the first poisoned row": (
                hold.as_of_ms > poison.sent_ms
            ),
            f"requests failed, such as {failures[:1]}": bool(failures),
        }
        return Result(
            kind, self._seed, rows, event_seconds, len(late), watcher.asked - asked, len(failures), held_seconds,
            back_seconds, state.reason,
            "; ".join(words for words, is_true in problems.items() if is_true),
        )  # fmt: skip

    def close(self) -> None:
        self._watcher.close()
        self._loop.stop()

    def _resume(self, held: bytes, hold: ModelEvent) -> float:
        """Goes on from before the alarm; returns the seconds until servers follow again."""
        begun = time.monotonic()
        self._trainer = self._start_trainer("--resume-from-good")
        self._trainer.wait_ready(START_SECONDS)
        assert self._watcher.now()[1] == held, "the answer changes before the release"
        self._blocks.send(_NEXT_ROWS)

        def is_released() -> bool:
            assert self._alarm().resumed, f"another alarm: {self._alarm().reason}"
            return self._loop.holds(_TASK.name)[-1].kind == ModelEvent.RELEASE

        self._wait(is_released, "servers are released")
        self._wait(lambda: self._watcher.now()[2] > hold.version, "the server serves a newer version")
        back = time.monotonic() - begun
        self._blocks.send_slowly(_BEHIND_ROWS)
        self._wait(lambda: self._state() is None, "the alarm is behind")
        code, text = health(self._trainer)
        assert code == 200, f"/healthz says {code} {text} after the release"
        return back

    def _check_a_restarted_server(self, held: bytes) -> None:
        """A server that loads version and deltas anew answers the same."""
        self._loop.restart("server")

        def answers() -> bool:
            answer = self._watcher.ask()
            assert answer is None or answer[0] == held, "a restarted server answers something else while it is held"
            return answer is not None

        self._wait(answers, "the restarted server answers")

    def _wait_held(self, reason: str) -> ModelEvent:
        """The event that holds the server, once it does."""

        def is_announced() -> bool:
            holds = self._loop.holds(_TASK.name)
            return bool(holds) and (holds[-1].kind, holds[-1].reason) == (ModelEvent.ROLLBACK, reason)

        self._wait(is_announced, "the hold is announced with its reason")
        hold = self._loop.holds(_TASK.name)[-1]
        self._wait(lambda: self._loop.is_held(hold), "the server is held")
        asked = self._watcher.asked
        self._wait(lambda: self._watcher.asked > asked + 1, "the held server answers")
        return hold

    def _wait_until_learned(self) -> None:
        """Until all rows that were sent are in a checkpoint, so that poison meets the trainer at once."""

        def is_learned() -> bool:
            newest = newest_manifest(self._model_dir)
            return newest is not None and sum(o.next_offset for o in newest[1].offsets) >= self._blocks.sent

        self._wait(is_learned, "all clean rows are learned")

    def _alarm(self) -> GuardState:
        state = self._state()
        assert state is not None, "the alarm is gone"
        return state

    def _state(self) -> GuardState | None:
        return read_guard_state(self._model_dir)

    def _start_trainer(self, *flags: str) -> ChildProcess:
        self._starts += 1
        return self._loop.start_trainer(_PATH, _TASK.name, *flags, name=f"trainer-{self._starts}")

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = _SECONDS) -> None:
        def is_met() -> bool:
            if not self._trainer.running():
                raise RuntimeError(f"the trainer ended: {self._trainer.log_tail()[-500:]}")
            return condition()

        wait_until(is_met, seconds, what, 0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="runs of each kind (default: 10)")
    parser.add_argument("--seed", type=int, metavar="N", help="run this seed alone")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="MovieLens (default: ratings made up)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the logs there")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    print(HEADER, flush=True)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        data = arguments.data or make_ratings(folder / "ratings")
        servers = DevServers(folder / "servers", lambda _: None)
        servers.up()
        try:
            kafka = KafkaConnection(servers.kafka_address)
            for seed in seeds:
                for result in run_seed(kafka, servers.zookeeper_address, data, seed, folder / f"seed-{seed}"):
                    print(result.line(), flush=True)
                    results.append(result)
        finally:
            servers.down()
    failed = [result for result in results if result.problem]
    print(f"{len(results) - len(failed)} of {len(seeds) * len(KINDS)} passed", flush=True)
    return 0 if len(results) == len(seeds) * len(KINDS) and not failed else 1


def make_ratings(folder: Path) -> Path:
    """As many ratings, users and movies as in MovieLens' small set."""
    write_ratings(folder, RatingsConfig(ratings=100_000, users=610, movies=9_700))
    return folder


if __name__ == "__main__":
    sys.exit(main())
