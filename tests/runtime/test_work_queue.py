"""The queue of files that readers share, what it saves, and reading on within a file."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.runtime.work_queue import Position, Work, WorkQueue, WorkReader
from tests.conformance.covers import covers


@pytest.fixture
def patterns(tmp_path: Path) -> list[str]:
    """a_* to e_*, each of which matches two files of two lines."""
    for letter in "abcde":
        for number in range(2):
            lines = "".join(f"{letter}.{number}.{line}\n" for line in range(2))
            (tmp_path / f"{letter}_{number}").write_text(lines, encoding="utf-8")
    return [f"{tmp_path}/{letter}_*" for letter in "abcde"]


def drain(queue: WorkQueue) -> list[str]:
    return [Path(work.path).name for work in iter(queue.take, None)]


def lines(path: str, position: Position) -> Iterator[tuple[str, Position]]:
    with open(path, "rb") as file:
        file.seek(position[0] if position else 0)
        while line := file.readline():
            yield line.decode().strip(), (file.tell(),)


@covers("data:v10")
def test_files_come_in_lexical_order_and_then_the_end_for_everybody(patterns: list[str]) -> None:
    queue = WorkQueue(patterns)
    assert drain(queue) == [f"{letter}_{number}" for letter in "abcde" for number in range(2)]
    assert queue.take() is None
    assert queue.take() is None


@covers("data:v10")
def test_a_restored_queue_goes_on_within_a_file(patterns: list[str]) -> None:
    queue = WorkQueue(patterns)
    reader = iter(WorkReader(queue, lines))
    assert next(reader) == "a.0.0"
    saved = queue.save()
    assert [next(reader), next(reader)] == ["a.0.1", "a.1.0"]
    other = WorkQueue([])
    other.restore(saved)
    assert list(WorkReader(other, lines))[:3] == ["a.0.1", "a.1.0", "a.1.1"]


@covers("data:v10")
def test_an_empty_list_of_patterns_is_the_end_and_matches_nothing() -> None:
    def match(pattern: str) -> list[str]:
        raise AssertionError(pattern)

    assert WorkQueue([], match).take() is None


@covers("data:v10")
def test_a_queue_refills_itself_once_and_then_stays_empty() -> None:
    queue = WorkQueue(["numbers"], lambda _: ["2", "1"])
    assert [work.path for work in iter(queue.take, None)] == ["1", "2"]
    assert [queue.take() for _ in range(3)] == [None] * 3


def test_a_pattern_is_matched_only_when_its_files_are_needed() -> None:
    matched: list[str] = []

    def match(pattern: str) -> list[str]:
        matched.append(pattern)
        return [f"{pattern}{number}" for number in range(2)] if pattern != "b" else []

    queue = WorkQueue(["a", "b", "c"], match)
    assert matched == []
    queue.take()
    queue.take()
    assert matched == ["a"]
    assert queue.take() == Work("c0", ticket=3)
    assert matched == ["a", "b", "c"]


def test_a_match_that_fails_is_tried_again() -> None:
    answers: list[list[str] | OSError] = [OSError("the disk is gone"), ["a"]]

    def match(_: str) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    queue = WorkQueue(["*"], match)
    with pytest.raises(OSError, match="gone"):
        queue.take()
    assert queue.take() == Work("a", ticket=1)


def test_files_in_work_are_saved_with_their_position_and_finished_ones_are_not() -> None:
    queue = WorkQueue(["*"], lambda _: ["a", "b", "c", "d"])
    first, _, third = (queue.take() for _ in range(3))
    assert first is not None and third is not None
    queue.finish(first)
    queue.report(third, (7, 1))
    other = WorkQueue([])
    other.restore(queue.save())
    assert [work[:2] for work in iter(other.take, None)] == [("b", ()), ("c", (7, 1)), ("d", ())]


def test_saving_does_not_disturb_the_readers(patterns: list[str]) -> None:
    queue = WorkQueue(patterns)
    for expected in range(10, 0, -1):
        queue.save()
        work = queue.take()
        assert work is not None, expected
        queue.finish(work)


def test_many_readers_get_each_file_once() -> None:
    queue = WorkQueue([str(number) for number in range(100)], lambda pattern: [f"{pattern}-{n}" for n in range(5)])
    taken: list[list[str]] = [[] for _ in range(8)]

    def read(into: list[str]) -> None:
        for work in iter(queue.take, None):
            into.append(work.path)
            queue.finish(work)

    threads = [threading.Thread(target=read, args=(into,)) for into in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path for into in taken for path in into) == sorted(f"{a}-{b}" for a in range(100) for b in range(5))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"version": 1}', b'{"version": 2, "patterns": [], "files": []}', b"\xff"]
)
def test_the_state_of_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="work queue"):
        WorkQueue([]).restore(data)


def test_only_a_file_in_work_can_be_finished() -> None:
    queue = WorkQueue([])
    with pytest.raises(ValueError, match="not in work"):
        queue.finish(Work("a", ticket=1))
    with pytest.raises(ValueError, match="not in work"):
        queue.report(Work("a", ticket=1), (1,))
