"""How far a trainer has come."""

import numpy as np

from millrace.training.stream.position import Passed, Position


def columns(*rows: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array = np.array(rows, np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def test_applied_rows_are_marked_and_counted_whatever_they_are() -> None:
    position = Position()
    position.applied(*columns((0, 1, 2)))
    position.passed(Passed({0: 7}, {0: "one"}, {0: 5}, duplicates=2, too_old=1, dead_letters=3))
    position.applied(*columns((0, 1, 2), (0, 9, 0)))
    assert (position.rows_applied, position.rows_duplicate, position.rows_too_old) == (3, 2, 1)
    assert position.seen.admit(*columns((0, 9, 0), (0, 9, 1), (0, 4, 0))).new.tolist() == [False, True, False]


def test_offsets_go_back_where_a_topic_was_made_anew() -> None:
    position = Position()
    position.passed(Passed({0: 7, 1: 3}, {0: "one", 1: "one"}))
    position.passed(Passed({0: 2}, {0: "two"}))
    assert (position.offsets, position.topic_ids) == ({0: 2, 1: 3}, {0: "two", 1: "one"})


def test_a_copy_does_not_follow_its_original() -> None:
    position = Position()
    position.passed(Passed({0: 7}, {0: "one"}))
    copied = position.copy()
    position.applied(*columns((0, 1, 2)))
    position.passed(Passed({0: 8}, {0: "two"}))
    assert (copied.offsets, copied.topic_ids, copied.rows_applied) == ({0: 7}, {0: "one"}, 0)
    assert copied.seen.admit(*columns((0, 1, 2))).new.all()
