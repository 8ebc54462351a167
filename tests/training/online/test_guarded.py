"""What an alarm does: nothing is learned or published, servers are held, and a restart goes on only when told to."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.examples.feed_ranking import FeedRanking
from millrace.runtime.errors import UserError
from millrace.runtime.kafka_client import UndeliveredError
from millrace.runtime.telemetry import Condition
from millrace.training.online.guarded import GuardedModel, begin_guarded
from millrace.training.state.checkpoint import Checkpoints
from millrace.training.state.guard_file import read_guard_state
from millrace.training.stream.batch_queue import BlockRows, Ticket
from millrace.training.stream.position import Position
from millrace.training.task import Guard

ROWS = 64
TOPIC = "the train topic's id"


class GuardedRanking(FeedRanking):
    guard = Guard(past_rows=2048, gap_rows=512, least_rows=1024)


class Holds:
    """What was announced; the broker is away for the first `failures` attempts."""

    def __init__(self, failures: int = 0) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self._failures = failures

    def rollback(self, version: int, base: Path, as_of_ms: int, reason: str) -> None:
        self._send("rollback", version, as_of_ms)

    def release(self, reason: str) -> None:
        self._send("release")

    def _send(self, *what: Any) -> None:
        self._failures -= 1
        if self._failures >= 0:
            raise UndeliveredError("no broker")
        self.sent.append(what)


class Trainer:
    """A guarded model and a clock that goes on by 100 ms with each batch of 64 rows, one block of partition 0."""

    def __init__(
        self,
        model_dir: Path,
        good_since: dict[int, int] | None = None,
        failures: int = 0,
        past: dict[str, Any] | None = None,
        versions: dict[int, int] | None = None,
        now_ms: int = 1_000_000,
    ) -> None:
        self.model_dir, self.now_ms, self.offset, self.topic_id = model_dir, now_ms, 0, TOPIC
        versions = {7: 0} if versions is None else versions
        for version in versions:
            self.folder(version).mkdir(parents=True, exist_ok=True)
        self.holds, self.condition, self.rng = Holds(failures), Condition(), np.random.default_rng(1)
        task = GuardedRanking()
        checkpoints = Checkpoints(model_dir, task.name, task.schema_fingerprint())
        self.guarded = GuardedModel(
            task, model_dir, model_dir / "exports", versions, self.holds,
            begin_guarded(model_dir, checkpoints, None if good_since is None else lambda: (good_since, TOPIC)),
            past or {}, Position({0: 0}, topic_ids={0: TOPIC}), self.condition, lambda: self.now_ms,
        )  # fmt: skip

    def folder(self, version: int) -> Path:
        return self.model_dir / "exports" / str(version)

    def export(self, version: int) -> None:
        self.folder(version).mkdir()
        self.guarded.exported(version, self.now_ms)

    def learn(self, batches: int, flipped: bool = False) -> None:
        for _ in range(batches):
            logits = self.rng.normal(0, 1.5, (ROWS, 1)).astype(np.float32)
            labels = self.rng.random((ROWS, 1)) < 1 / (1 + np.exp(-logits))
            none = np.zeros(0, np.int64)
            ticket = Ticket(
                ROWS, (labels ^ flipped).astype(np.float32), np.ones(ROWS, np.float32), none, none, none,
                np.zeros(ROWS, np.int64),
                blocks=(BlockRows(0, self.offset, ROWS, self.topic_id),),
            )  # fmt: skip
            self.guarded.learned(ticket, logits, np.ones(ROWS, bool), np.ones(1), Position({0: self.offset}))
            self.offset += 1
            self.now_ms += 100


def alarmed(model_dir: Path) -> tuple[Trainer, dict[str, Any]]:
    """A trainer that poison has stopped, and what its judge knew before that."""
    trainer = Trainer(model_dir)
    trainer.learn(60)
    past = trainer.guarded.past()
    trainer.learn(20, flipped=True)
    return trainer, past


def test_after_an_alarm_nothing_is_learned_or_published_and_servers_are_held_before_it_began(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer.learn(60)
    trainer.export(8)
    trainer.learn(60)
    trainer.export(9)
    begun, offset = trainer.now_ms, trainer.offset
    assert trainer.guarded.may_learn and trainer.guarded.may_publish and trainer.condition.reason() is None
    trainer.learn(20, flipped=True)
    assert not trainer.guarded.may_learn and not trainer.guarded.may_publish
    assert not trainer.guarded.may_announce(begun) and trainer.guarded.may_announce(begun - 3_000)
    ((kind, version, as_of_ms),) = trainer.holds.sent
    assert (kind, version) == ("rollback", 8) and as_of_ms <= begun
    reason = trainer.condition.reason()
    assert reason is not None and "log loss" in reason and "--resume-from-good" in reason
    state = read_guard_state(tmp_path)
    assert state is not None and state.suspect_offsets[0] <= offset < state.offsets[0]


def test_a_hold_that_no_broker_took_is_announced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tmp_path, failures=1)
    trainer.learn(60)
    trainer.learn(20, flipped=True)
    assert trainer.holds.sent == []
    monkeypatch.setattr("millrace.training.online.guarded._RETRY_SECONDS", 0.0)
    monkeypatch.setattr(trainer.guarded, "_retry_at", 0.0)
    trainer.guarded.poll()
    assert [each[0] for each in trainer.holds.sent] == ["rollback"]


def test_a_restart_after_an_alarm_stands_and_holds_until_it_is_told_to_resume(tmp_path: Path) -> None:
    first, past = alarmed(tmp_path)
    state = read_guard_state(tmp_path)
    assert state is not None
    second = Trainer(tmp_path)
    second.guarded.poll()
    assert not second.guarded.may_learn and second.holds.sent == first.holds.sent
    third = Trainer(tmp_path, {}, past=past)
    assert third.guarded.may_learn and not third.guarded.may_publish and third.guarded.state is not None
    assert passed_over(third) == list(range(state.suspect_offsets[0], state.offsets[0]))
    third.offset = state.offsets[0]
    third.learn(8)
    assert third.guarded.may_publish
    third.export(10)
    third.guarded.poll()
    assert third.holds.sent == [("release",)] and third.condition.reason() is None
    third.guarded.saved(Position({0: state.offsets[0] - 1}, topic_ids={0: TOPIC}))
    assert read_guard_state(tmp_path) is not None
    third.guarded.saved(Position({0: state.offsets[0]}, topic_ids={0: TOPIC}))
    assert read_guard_state(tmp_path) is None


def passed_over(trainer: Trainer, topic_id: str = TOPIC) -> list[int]:
    """Offsets of partition 0 that are."""
    state = trainer.guarded.state
    assert state is not None
    return [offset for offset in range(200) if state.passes_over(0, offset, topic_id)]


def test_rows_that_came_after_the_alarm_are_passed_over_up_to_where_they_are_good_again(tmp_path: Path) -> None:
    first, past = alarmed(tmp_path)
    state = read_guard_state(tmp_path)
    assert state is not None and state.offsets[0] < 120
    again = Trainer(tmp_path, {0: 120}, past=past)
    assert passed_over(again) == list(range(state.suspect_offsets[0], 120))
    again.guarded.saved(Position({0: 119}, topic_ids={0: TOPIC}))
    assert read_guard_state(tmp_path) == again.guarded.state
    restarted = Trainer(tmp_path, {0: 150}, past=past)  # the flag is still there: it has done what it says
    assert passed_over(restarted) == passed_over(again)


def test_offsets_of_a_topic_that_was_made_anew_are_not_passed_over(tmp_path: Path) -> None:
    first, past = alarmed(tmp_path)
    again = Trainer(tmp_path, {}, past=past)
    assert passed_over(again) and passed_over(again, "another") == []
    again.learn(8)
    again.export(10)
    again.guarded.poll()
    again.guarded.saved(Position({0: 1}, topic_ids={0: "another"}))
    assert read_guard_state(tmp_path) is None, "the rows in question are gone"


def test_what_is_suspicious_of_a_topic_that_was_made_anew_begins_at_its_beginning(tmp_path: Path) -> None:
    first = Trainer(tmp_path)
    first.learn(60)
    first.offset, first.topic_id = 0, "another"
    first.learn(20, flipped=True)
    state = read_guard_state(tmp_path)
    assert state is not None and state.topic_ids == {0: "another"}
    assert state.suspect_offsets.get(0, 0) == 0 < state.offsets[0]


def test_a_second_alarm_does_not_bring_back_the_deltas_that_the_first_one_found_wrong(tmp_path: Path) -> None:
    first, past = alarmed(tmp_path)
    again = Trainer(tmp_path, {}, past=past, now_ms=first.now_ms + 1_000)
    again.learn(4)
    again.learn(20, flipped=True)
    assert again.holds.sent == first.holds.sent, "the same version as of the same time"
    assert Trainer(tmp_path).guarded.state == again.guarded.state


def test_poison_that_goes_on_after_a_resume_is_found_by_what_was_known_before(tmp_path: Path) -> None:
    first, past = alarmed(tmp_path)
    again = Trainer(tmp_path, {}, past=past)
    again.learn(20, flipped=True)
    assert not again.guarded.may_learn and not again.guarded.may_publish
    assert [each[0] for each in again.holds.sent] == ["rollback"]


def test_the_newest_version_that_no_alarm_can_question_is_said_and_servers_are_held_at_one_that_is_on_disk(
    tmp_path: Path,
) -> None:
    trainer = Trainer(tmp_path)
    assert trainer.guarded.trusted_version == 7  # what was exported before the start
    trainer.learn(60)
    trainer.export(8)
    trainer.learn(2)
    trainer.export(9)
    assert trainer.guarded.trusted_version == 7
    trainer.learn(60)
    assert trainer.guarded.trusted_version == 9
    shutil.rmtree(trainer.folder(9))
    shutil.rmtree(trainer.folder(7))
    assert trainer.guarded.trusted_version == 8
    trainer.learn(20, flipped=True)
    assert trainer.holds.sent[0][:2] == ("rollback", 8)


def test_a_version_with_what_an_alarm_questions_is_named_by_no_later_hold(tmp_path: Path) -> None:
    first = Trainer(tmp_path)
    first.learn(60)
    past = first.guarded.past()
    first.learn(1, flipped=True)
    first.export(8)
    exported_ms = first.now_ms
    first.learn(20, flipped=True)
    state = read_guard_state(tmp_path)
    assert state is not None and state.suspect_ms <= exported_ms and state.version == 7
    again = Trainer(tmp_path, {}, past=past, versions={7: 0, 8: exported_ms}, now_ms=first.now_ms)
    assert again.guarded.trusted_version == 7
    again.learn(20)
    again.export(9)
    again.guarded.poll()
    again.learn(20, flipped=True)
    assert again.holds.sent[0] == ("release",) and again.holds.sent[1][:2] in (("rollback", 7), ("rollback", 9))


def test_resuming_without_an_alarm_is_no_error(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, {})
    assert trainer.guarded.may_learn and trainer.guarded.may_publish


def test_a_guard_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "guard.json").write_text('{"reason": 1}')
    with pytest.raises(UserError, match="guard.json"):
        read_guard_state(tmp_path)
